"""What a supervisor can do before any training: reading attributes, valid answers, verdicts, mixed groups."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from saga_lib.prompts import (
    comparison_prompt,
    description_answer,
    description_prompt,
    generic_prompt,
    parse_answer,
    parse_verdict,
    varied_items,
)
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
            item = (parse_answer(text) or {}).get("item_1")
            read.append(item if isinstance(item, dict) else {})
    return read


def reading_accuracy(read: Sequence[dict], truth: Sequence[dict], vocabulary: Vocabulary) -> dict[str, float]:
    """Return the fraction of images whose attribute was read correctly, per attribute."""
    return {
        name: float(np.mean([r.get(name) == t[name] for r, t in zip(read, truth, strict=True)]))
        for name in vocabulary.attribute_names
    }


@dataclass
class VerdictReport:
    """Free-running verdicts of groups of G rollouts over balanced pairs; per-pair arrays."""

    same_class: np.ndarray  # (B,) bool
    mean_reward: np.ndarray  # (B,) float, fraction of correct verdicts in the group
    valid_json: float  # fraction of rollouts
    truncated: float  # fraction of rollouts
    texts: list[str]
    tokens: float = 0.0  # generated per rollout
    seconds: float = 0.0  # per rollout; the median over waves, of which the first may warm up

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
    tower: nn.Module, supervisor: Supervisor, vocabulary: Vocabulary, pixels: Tensor, pairs: np.ndarray,
    same_class: np.ndarray, group_size: int = 8, max_new_tokens: int = 1024, temperature: float = 0.7,
    top_p: float = 0.95, seed: int = 0, pairs_per_wave: int = 16, prompt: str = "structured",
) -> VerdictReport:  # fmt: skip
    """Let the supervisor compare `pairs` (B, 2) of image indices; return what its rollouts did.

    `prompt` is "structured" (the vocabulary's comparison), "generic", or else the prompt itself.
    """
    from saga_lib.towers import autocast

    known = {"structured": comparison_prompt, "generic": generic_prompt}
    ids = supervisor.prompt_ids(known[prompt](vocabulary) if prompt in known else prompt)
    draft = comparison_draft(supervisor, vocabulary) if prompt == "structured" else []
    sampling = Sampling(group_size, max_new_tokens, temperature, top_p, draft)
    generator = torch.Generator(device=supervisor.device).manual_seed(seed)
    rewards, texts, valid, cut, tokens, seconds = [], [], [], [], [], []
    for start in range(0, len(pairs), pairs_per_wave):
        chunk = pairs[start : start + pairs_per_wave]
        started = time.perf_counter()
        with autocast(supervisor.device):
            images = tower(pixels[torch.as_tensor(chunk.reshape(-1))].to(supervisor.device))
            rollouts = generate_rollouts(supervisor, ids, images, sampling, generator)
        seconds.append((time.perf_counter() - started) / len(rollouts.texts))
        tokens += rollouts.lengths.tolist()
        wanted = np.repeat(same_class[start : start + pairs_per_wave], group_size)
        verdicts = [parse_verdict(text, vocabulary.verdict_key) for text in rollouts.texts]
        rewards += [float(v is not None and v == w) for v, w in zip(verdicts, wanted, strict=True)]
        valid += [parse_answer(text) is not None for text in rollouts.texts]
        cut += (~rollouts.finished).tolist()
        texts += rollouts.texts
    grouped = np.asarray(rewards).reshape(-1, group_size)
    return VerdictReport(
        np.asarray(same_class), grouped.mean(1), float(np.mean(valid)), float(np.mean(cut)), texts, float(np.mean(tokens)),
        float(np.median(seconds)),
    )  # fmt: skip
