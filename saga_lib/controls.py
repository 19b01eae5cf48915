"""What takes the place of the reward to see whether it matters: the oracle and its control."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

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
    rng: np.random.Generator, truth: Sequence[int] | None = None,
) -> Buffer:  # fmt: skip
    """Take the place of Phase B: K balanced pairs, each with the true answer, which earns reward and advantage 1.

    An upper bound for any reward signal: replay then maximises the log-probability of the true attribute values.
    `truth` gives for each class the class whose attributes it is said to have (the control with wrong attributes).
    """
    pairs, same = PairStream(batch.labels, rng).draw(num_pairs)

    def told(position: int) -> dict[str, str]:
        attributes = split.attributes(batch.indices[position])
        return attributes if truth is None else split.class_attributes[truth[int(batch.labels[position])]]

    answers = [comparison_answer(vocabulary, told(a), told(b)) for a, b in pairs]
    ids = [supervisor.answer_ids(answer) for answer in answers]
    width = max(map(len, ids))
    tokens = torch.full((len(ids), width), supervisor.eos_token_id)
    mask = torch.zeros(len(ids), width, dtype=torch.bool)
    for row, answer in enumerate(ids):
        tokens[row, : len(answer)] = torch.tensor(answer)
        for places in attribute_tokens(supervisor, answer).values():
            mask[row, places] = True
    device = supervisor.device
    lengths = torch.tensor([len(answer) for answer in ids], device=device)
    ended = (tokens == supervisor.eos_token_id).to(device)
    rollouts = Rollouts(tokens.to(device), mask.to(device), answers, ended, lengths)
    ones = torch.ones(len(ids), 1)
    return Buffer(pairs, same, rollouts, ones, ones, {"contributing_pairs": len(ids), "pairs_drawn": len(ids)})


def derangement(count: int, rng: np.random.Generator) -> list[int]:
    """Return a random permutation of `count` ≥ 2 items that leaves none in its place."""
    while True:
        order = rng.permutation(count)
        if not (order == np.arange(count)).any():
            return order.tolist()
