"""What each token of each rollout sends to each patch of the two images, at several moments of training.

For a rollout g of a pair and its token t, this is the norm, per patch, of A_g · ∂ log π(y_t) / ∂X: the part of GRPO's gradient (Eqs. 4–5)
that this token sends into the merged tokens X of the tower. DeepStack features are held fixed, as in the audit: the pooler reads X alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saga_lib import towers
from saga_lib.encoder import Encoder
from saga_lib.losses import group_advantages
from saga_lib.step import Buffer, score
from saga_lib.supervisor.base import Supervisor
from saga_lib.supervisor.replay import attribute_tokens, completion_log_probs
from saga_lib.supervisor.rollouts import Rollouts, Sampling, generate_rollouts
from saga_lib.towers import VisualTokens
from saga_lib.training import Session
from saga_lib.vocabulary import AnswerKeys, Vocabulary
from saga_study.audit import token_kinds

TRUE, FALSE = 1, 2  # of a described value, by the image's true attributes


@dataclass(frozen=True)
class PairRollouts:
    """The G rollouts of one pair at one moment of training."""

    tokens: list[list[str]]  # per rollout, the text of each token
    rewards: list[float]
    advantages: list[float]
    norms: list[np.ndarray]  # per rollout (T, 2, Np) float32: what each token sends to each patch of each image
    marks: list[list[int]]  # per rollout and token: TRUE or FALSE where it is part of a described value, else 0


@dataclass(frozen=True)
class Moment:
    """All shown pairs at one moment of training."""

    name: str
    pairs: list[PairRollouts]


MOST_TOKENS = 120  # of an answer that are measured, each by a backward pass of its own; miniature answers have 56


def token_norms(
    supervisor: Supervisor, prompt_ids: Tensor, images: VisualTokens, ids: Tensor, advantage: float, places: Sequence[int] | None = None
) -> np.ndarray:  # fmt: skip
    """Return (T, 2, Np) float32: the norm per patch of advantage · ∂ log π(y_t) / ∂X for each token of an answer (T,) about two images.

    `places` are the tokens that are measured, all by default; others are 0.
    """
    norms = np.zeros((len(ids), *images.merged.shape[:2]), np.float32)
    places = list(range(len(ids)) if places is None else places) if advantage else []
    if not places:
        return norms
    merged = images.merged.detach().requires_grad_(True)
    given = VisualTokens(merged, tuple(feature.detach() for feature in images.deepstack))
    mask = torch.ones(1, len(ids), dtype=torch.bool, device=ids.device)
    with towers.autocast(ids.device):
        log_probs, _ = completion_log_probs(supervisor, supervisor.prefill(prompt_ids, given), ids[None], mask)
    for place in places:
        [gradient] = torch.autograd.grad(log_probs[0, place], merged, retain_graph=place != places[-1])
        norms[place] = (abs(advantage) * gradient.float().norm(dim=-1)).cpu().numpy()
    return norms


def _telling_first(supervisor: Supervisor, vocabulary: Vocabulary, ids: Sequence[int]) -> list[int]:
    """Return at most MOST_TOKENS places of an answer: those of values, differences and the verdict before the rest."""
    kinds, _ = token_kinds(supervisor, vocabulary, ids)
    return sorted(sorted(range(len(ids)), key=lambda place: kinds[place] == "rest")[:MOST_TOKENS])


def value_marks(supervisor: Supervisor, ids: Sequence[int], keys: AnswerKeys, truth: Sequence[Mapping[str, str]]) -> list[int]:
    """Return for each token of an answer whether it describes an image truly (TRUE, FALSE) or not at all (0); truth: of both, or empty."""
    marks = [0] * len(ids)
    for (section, attribute), places in attribute_tokens(supervisor, ids, keys).items() if truth else ():
        said = supervisor.decode([ids[place] for place in places]).strip()
        for place in places:
            marks[place] = TRUE if said == truth[keys.items.index(section)].get(attribute) else FALSE
    return marks


def pair_rollouts(
    encoder: Encoder, session: Session, pair: tuple[int, int], group_size: int, generator: torch.Generator
) -> PairRollouts:  # fmt: skip
    """Sample G answers about two train images with the tokens of `encoder`, and measure what each of their tokens sends where."""
    supervisor, prompt_ids, c, train = session.supervisor, session.prompt_ids, session.config, session.benchmark.train
    pixels, same_class = session.train_pixels[np.array(pair)], bool(train.labels[pair[0]] == train.labels[pair[1]])
    truth = [train.attributes(image) for image in pair] if train.class_attributes else []
    with torch.no_grad(), towers.autocast(session.device):
        images = encoder.tower(pixels.to(session.device))
        sampling = Sampling(group_size, c.max_new_tokens, c.temperature, c.top_p, session.draft)
        rollouts: Rollouts = generate_rollouts(supervisor, prompt_ids, images, sampling, generator)
    rewards = score(rollouts, np.array([same_class]), session.vocabulary.verdict_key, group_size)
    advantages = group_advantages(rewards)[0].tolist()
    answers = [row[:length] for row, length in zip(rollouts.tokens, rollouts.lengths.tolist(), strict=True)]
    texts = [[supervisor.decode([token]) for token in answer.tolist()] for answer in answers]
    norms = [
        token_norms(supervisor, prompt_ids, images, ids, a, _telling_first(supervisor, session.vocabulary, ids.tolist()))
        for ids, a in zip(answers, advantages, strict=True)
    ]
    marks = [value_marks(supervisor, ids.tolist(), session.vocabulary.keys, truth) for ids in answers]
    return PairRollouts(texts, rewards[0].tolist(), advantages, norms, marks)


def moments_of_training(
    session: Session, pairs: Sequence[tuple[int, int]], steps: Sequence[int], trained: Encoder | None, group_size: int = 8, seed: int = 0
) -> list[Moment]:  # fmt: skip
    """Return the same pairs of train images before training, after some steps that are taken here, and with a trained encoder.

    pairs: positions in the train split. steps: ascending numbers of steps of `session`, which they train. `trained`: what the whole run
    left, if its weights are on this machine.
    """
    encoders: list[tuple[str, Encoder | None]] = [("before training", None)]
    encoders += [(f"after {count} steps", None) for count in steps]
    encoders += [(f"after all {session.total_steps} steps", trained)] if trained is not None else []
    found = []
    for place, (name, given) in enumerate(encoders):
        while given is None and place and session.step < steps[place - 1]:
            session.run_step()
        encoder = given.to(session.device) if given is not None else session.encoder
        generator = torch.Generator(device=session.device).manual_seed(seed)
        found.append(Moment(name, [pair_rollouts(encoder, session, pair, group_size, generator) for pair in pairs]))
    return found


def pairs_to_show(buffer: Buffer, indices: np.ndarray, count: int = 3) -> list[tuple[int, int]]:
    """Return contributing pairs of a step as positions in the train split, evenly divided verdicts first, both kinds where there are both.

    indices: (N,) which train images the step's images are.
    """
    order = sorted(range(len(buffer.pairs)), key=lambda k: abs(float(buffer.rewards[k].mean()) - 0.5))
    same, different = ([k for k in order if bool(buffer.same_class[k]) == kind] for kind in (True, False))
    chosen = different[: max(count - 1, count - len(same))] + same[:count]
    return [tuple(int(image) for image in indices[buffer.pairs[k]]) for k in chosen[:count]]
