"""What a supervisor can do before any training: how well it reads attributes, and how right and how varied its verdicts are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from saga_lib.answers import parse_answer, parse_verdict
from saga_lib.prompts import comparison_prompt, generic_prompt, varied_items
from saga_lib.reading import ITEM, description_answer, description_prompt
from saga_lib.supervisor.base import Supervisor
from saga_lib.supervisor.rollouts import Sampling, comparison_draft, expected_tokens, generate_rollouts
from saga_lib.vocabulary import Vocabulary


@torch.no_grad()
def read_attributes(
    tower: nn.Module, supervisor: Supervisor, vocabulary: Vocabulary, pixels: Tensor, batch_size: int = 64,
    max_new_tokens: int = 1024,
) -> list[dict[str, str]]:  # fmt: skip
    """Describe images greedily; return per image the attributes read (empty where the answer is invalid)."""
    ids = supervisor.prompt_ids(description_prompt(vocabulary), num_images=1)
    draft = expected_tokens(supervisor, [description_answer(vocabulary, item) for item in varied_items(vocabulary)])
    greedy = Sampling(1, max_new_tokens, temperature=0, draft=draft)
    read: list[dict[str, str]] = []
    for chunk in pixels.split(batch_size):
        for text in generate_rollouts(supervisor, ids, tower(chunk.to(supervisor.device)), greedy).texts:
            item = (parse_answer(text, ITEM) or {}).get(ITEM)
            read.append(item if isinstance(item, dict) else {})
    return read


def reading_accuracy(read: Sequence[dict], truth: Sequence[dict], vocabulary: Vocabulary) -> dict[str, float]:
    """Return the fraction of images whose attribute was read correctly, per attribute."""
    return {
        name: float(np.mean([r.get(name) == t[name] for r, t in zip(read, truth, strict=True)]))
        for name in vocabulary.attribute_names
    }


@dataclass(frozen=True)
class Question:
    """What a supervisor is asked about two images."""

    vocabulary: Vocabulary
    prompt: str = "structured"  # the vocabulary's comparison prompt | "generic", which names no attributes | any other: the text itself

    def text(self) -> str:
        known = {"structured": comparison_prompt, "generic": generic_prompt}
        return known[self.prompt](self.vocabulary) if self.prompt in known else self.prompt


@dataclass(frozen=True)
class LabelledPairs:
    """Pairs of images to compare, with the truth."""

    pixels: Tensor  # (N, patches, patch_dim) as the tower's `preprocess` returns them
    rows: np.ndarray  # (B, 2) int, rows of `pixels`
    same_class: np.ndarray  # (B,) bool


@dataclass
class VerdictReport:
    """The verdicts of G sampled answers to each of B pairs."""

    same_class: np.ndarray  # (B,) bool
    mean_reward: np.ndarray  # (B,) float, fraction of correct verdicts in the group
    valid_json: float  # fraction of rollouts
    truncated: float  # fraction of rollouts
    texts: list[str]
    tokens: float = 0.0  # generated per rollout
    seconds: float = 0.0  # per rollout; the median over waves, of which the first may warm up
    readable: float = 0.0  # fraction of rollouts that ended with a verdict

    @property
    def accuracy(self) -> float:
        """Return the verdict accuracy over all sampled rollouts."""
        return float(self.mean_reward.mean())

    @property
    def mixed(self) -> np.ndarray:
        """Return (B,) bool: groups whose rewards disagree, the only ones GRPO learns from."""
        return (self.mean_reward > 0) & (self.mean_reward < 1)


@torch.no_grad()
def assess_verdicts(
    tower: nn.Module, supervisor: Supervisor, question: Question, pairs: LabelledPairs, sampling: Sampling, seed: int = 0,
    pairs_per_wave: int = 16,
) -> VerdictReport:  # fmt: skip
    """Sample the supervisor's answers to a question about each pair and report how they agree with the truth.

    `sampling.draft` is set here: the structured prompt has one, others have none.
    """
    from saga_lib.towers import autocast

    ids, verdict_key = supervisor.prompt_ids(question.text()), question.vocabulary.verdict_key
    draft = comparison_draft(supervisor, question.vocabulary) if question.prompt == "structured" else []
    sampling = replace(sampling, draft=draft)
    generator = torch.Generator(device=supervisor.device).manual_seed(seed)
    texts, finished, tokens, seconds = [], [], [], []
    for start in range(0, len(pairs.rows), pairs_per_wave):
        wave = slice(start, start + pairs_per_wave)
        started = time.perf_counter()
        with autocast(supervisor.device):
            images = tower(pairs.pixels[torch.as_tensor(pairs.rows[wave].reshape(-1))].to(supervisor.device))
            rollouts = generate_rollouts(supervisor, ids, images, sampling, generator)
        seconds.append((time.perf_counter() - started) / len(rollouts.texts))
        tokens += rollouts.lengths.tolist()
        finished += rollouts.finished.tolist()
        texts += rollouts.texts
    verdicts = [parse_verdict(text, verdict_key, ended) for text, ended in zip(texts, finished, strict=True)]
    valid = [parse_answer(text, verdict_key) is not None for text in texts]
    wanted = np.repeat(pairs.same_class, sampling.group_size)
    right = np.asarray([v is not None and v == w for v, w in zip(verdicts, wanted, strict=True)], dtype=float)
    return VerdictReport(
        np.asarray(pairs.same_class), right.reshape(-1, sampling.group_size).mean(1), float(np.mean(valid)),
        float(np.mean(np.logical_not(finished))), texts, float(np.mean(tokens)), float(np.median(seconds)),
        float(np.mean([verdict is not None for verdict in verdicts])),
    )  # fmt: skip
