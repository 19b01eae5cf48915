"""Controls: what takes the place of the reward, to see whether the reward matters.

The oracle replays the true attributes in place of sampled answers; its control describes each image by another class's
attributes. The control of GRPO shuffles the advantages over the rollouts of a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from saga_lib.datasets.splits import Split
from saga_lib.pairs import PairStream
from saga_lib.prompts import comparison_answer
from saga_lib.step import Buffer, MicroBatch
from saga_lib.supervisor.base import Supervisor
from saga_lib.supervisor.replay import attribute_tokens
from saga_lib.supervisor.rollouts import Rollouts
from saga_lib.vocabulary import Vocabulary


def oracle_phase(
    supervisor: Supervisor, vocabulary: Vocabulary, split: Split, batch: MicroBatch, num_pairs: int,
    rng: np.random.Generator, swapped: Sequence[int] | None = None,
) -> Buffer:  # fmt: skip
    """Take the place of phase B: K = `num_pairs` balanced pairs, each with its true answer, of reward and advantage 1.

    What a perfect reader gives by the same path: replay maximises the log-probability of the true attribute values, and of nothing else in
    the answer. For the control with wrong attributes, `swapped` gives for each class the class whose attributes the answers name instead.
    """
    pairs, same = PairStream(batch.labels, rng).draw(num_pairs)

    def attributes(position: int) -> dict[str, str]:
        if swapped is None:
            return split.attributes(batch.indices[position])
        return split.class_attributes[swapped[int(batch.labels[position])]]

    answers = [comparison_answer(vocabulary, attributes(a), attributes(b)) for a, b in pairs]
    ids = [supervisor.answer_ids(answer) for answer in answers]
    width = max(map(len, ids))
    tokens = torch.full((len(ids), width), supervisor.eos_token_id)
    mask = torch.zeros(len(ids), width, dtype=torch.bool)
    for row, answer in enumerate(ids):
        tokens[row, : len(answer)] = torch.tensor(answer)
        for places in attribute_tokens(supervisor, answer, vocabulary.keys).values():
            mask[row, places] = True
    device = supervisor.device
    lengths = torch.tensor([len(answer) for answer in ids], device=device)
    rollouts = Rollouts(tokens.to(device), mask.to(device), answers, torch.ones_like(lengths, dtype=torch.bool), lengths)
    ones = torch.ones(len(ids), 1)
    return Buffer(pairs, same, rollouts, ones, ones, {"contributing_pairs": len(ids), "pairs_drawn": len(ids)})


def shuffled(advantages: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the advantages (K, G) permuted over all rollouts of the step: the same numbers, unrelated to the answers."""
    return advantages.flatten()[torch.as_tensor(rng.permutation(advantages.numel()))].view_as(advantages)


def shuffled_in_group(advantages: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the advantages (K, G) permuted within each group, so that groups keep mean zero."""
    order = torch.as_tensor(rng.permuted(np.tile(np.arange(advantages.shape[1]), (len(advantages), 1)), axis=1))
    return advantages.gather(1, order.to(advantages.device))


def derangement(count: int, rng: np.random.Generator) -> list[int]:
    """Return a random permutation of `count` ≥ 2 items that leaves none in its place."""
    while True:
        order = rng.permutation(count)
        if not (order == np.arange(count)).any():
            return order.tolist()
