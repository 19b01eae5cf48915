"""One training step of SAGA (Alg. 1): phases A, B and C.

Three losses meet at *boundary tensors*, detached copies of the tower's outputs: phase A leaves the gradient of
L_DML there, phase C that of L_GRPO, and one backward then carries their sum through the tower. L_KL reaches the
pooler only. ψ is frozen throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from saga_lib.config import RunConfig
from saga_lib.encoder import Encoder
from saga_lib.losses import attention_alignment_loss, group_advantages, grpo_loss
from saga_lib.pairs import PairStream
from saga_lib.prompts import parse_answer, parse_verdict
from saga_lib.supervisor.base import Supervisor
from saga_lib.supervisor.replay import completion_log_probs, teacher_attention
from saga_lib.supervisor.rollouts import Rollouts, Sampling, generate_rollouts
from saga_lib.towers import VisualTokens, autocast

# -------------------------------------------------------------------------------------------------- phases


@dataclass
class MicroBatch:
    """A class-balanced batch after phase A: the tower's outputs and the DML gradient at their boundary."""

    indices: np.ndarray  # (N,) into the split
    labels: np.ndarray  # (N,)
    tokens: VisualTokens  # with the tower's graph, unless `encode` makes it
    dml_gradient: Tensor  # (N, Np, D)
    loss: float
    embeddings: Tensor  # (N, D_e), detached
    encode: Callable[[slice], VisualTokens] | None = None  # the tokens of some of the images again, with a graph of their own
    tower_images: int = 0  # that are encoded at a time


@dataclass
class Buffer:
    """Contributing pairs of a step (Phase B) with their answers, and what dynamic sampling went through."""

    pairs: np.ndarray  # (K, 2) positions in the step's images
    same_class: np.ndarray  # (K,) bool
    rollouts: Rollouts | None  # K·G rows
    rewards: Tensor  # (K, G)
    advantages: Tensor  # (K, G)
    statistics: dict[str, float] = field(default_factory=dict)

    @property
    def group_size(self) -> int:
        return self.rewards.shape[1]


def dml_phase(
    encoder: Encoder, dml_loss: nn.Module, pixels: Tensor, indices: np.ndarray, labels: np.ndarray, weight: float, tower_images: int = 0
) -> MicroBatch:
    """Phase A: embed a batch and back-propagate λ_dml·L_DML to φ, the proxies and the tower's boundary.

    With `tower_images` the tower keeps no graph while the language model speaks: it encodes so many images at a time, and again
    in `tower_backward`. The same gradient but for rounding, as a tower treats images one by one (it is in evaluation mode, so that
    batch norms do too), for one more forward pass (gradient caching, Gao et al. 2021, arXiv 2101.06983).
    """

    def encode(rows: slice) -> VisualTokens:
        with autocast(pixels.device):
            return encoder.tower(pixels[rows])

    if tower_images:
        with torch.no_grad():
            tokens = VisualTokens.cat([encode(rows) for rows in _slices(len(pixels), tower_images)])
    else:
        tokens = encode(slice(None))
    with autocast(pixels.device):
        boundary = tokens.merged.detach().requires_grad_(True)
        z, _ = encoder.pooler(boundary)
    loss = dml_loss(z, torch.as_tensor(labels, device=z.device))
    if loss.requires_grad:
        (weight * loss).backward()
    gradient = torch.zeros_like(boundary) if boundary.grad is None else boundary.grad
    again = {"encode": encode, "tower_images": tower_images} if tower_images else {}
    return MicroBatch(indices, labels, tokens, gradient, float(loss.detach()), z.detach(), **again)


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, total, size)]


def rollout_phase(
    supervisor: Supervisor, prompt_ids: Tensor, verdict_key: str, next_batch: Callable[[], MicroBatch],
    config: RunConfig, rng: np.random.Generator, draft: Sequence[int | None] = (),
) -> tuple[Buffer, list[MicroBatch]]:  # fmt: skip
    """Phase B, no gradient: waves of balanced pairs, G rollouts each, until K groups have mixed rewards.

    Each wave draws from a further micro-batch while `max_micro_batches` allows (the paper's refill), else goes on
    with the last one's unused pairs. After `max_waves` the step proceeds with what there is and says so.
    """
    generator = torch.Generator(device=prompt_ids.device).manual_seed(int(rng.integers(2**62)))
    sampling = Sampling(config.group_size, config.max_new_tokens, config.temperature, config.top_p, draft)
    batches: list[MicroBatch] = []
    stream, offset = None, 0
    kept: list[tuple[np.ndarray, bool, Rollouts, Tensor]] = []
    rewards_seen, correct_by_kind, valid, cut, num_tokens, num_rollouts = [], {True: [], False: []}, 0, 0, 0, 0
    for wave in range(config.max_waves):
        if wave < config.max_micro_batches:
            offset = sum(len(batch.labels) for batch in batches)
            batches.append(next_batch())
            embeddings = batches[-1].embeddings.float().cpu().numpy() if config.hard_pairs else None
            stream = PairStream(batches[-1].labels, rng, embeddings, config.hard_pairs)
        pairs, same = stream.draw(config.pairs_per_wave)
        if not len(pairs):
            break
        tokens = batches[-1].tokens.detach()[torch.as_tensor(pairs.reshape(-1), device=prompt_ids.device)]
        with autocast(prompt_ids.device):
            rollouts = generate_rollouts(supervisor, prompt_ids, tokens, sampling, generator)
        rewards = score(rollouts.texts, same, verdict_key, config.group_size)
        valid += sum(parse_answer(text) is not None for text in rollouts.texts)
        cut += int((~rollouts.finished).sum())
        num_tokens += int(rollouts.mask.sum())
        num_rollouts += len(rollouts.texts)
        for p in range(len(pairs)):
            mean = float(rewards[p].mean())
            rewards_seen.append(mean)
            correct_by_kind[bool(same[p])].append(mean)
            if 0 < mean < 1:
                rows = torch.arange(p * config.group_size, (p + 1) * config.group_size)
                kept.append((pairs[p] + offset, bool(same[p]), rollouts.select(rows), rewards[p]))
        if len(kept) >= config.contributing_pairs:
            break
    num_mixed = len(kept)
    kept = kept[: config.contributing_pairs]
    rewards = torch.stack([k[3] for k in kept]) if kept else torch.zeros(0, config.group_size)
    advantages = group_advantages(rewards) if kept else rewards
    if config.signal_control == "shuffled":  # same numbers, same rollouts, no relation between them
        advantages = advantages.flatten()[torch.as_tensor(rng.permutation(advantages.numel()))].view_as(advantages)
    buffer = Buffer(
        np.asarray([k[0] for k in kept], dtype=np.int64).reshape(-1, 2),
        np.asarray([k[1] for k in kept], dtype=bool),
        Rollouts.cat([k[2] for k in kept], supervisor.eos_token_id) if kept else None,
        rewards,
        advantages,
        {
            "pairs_drawn": len(rewards_seen),
            "contributing_pairs": len(kept),
            "contributing_fraction": num_mixed / max(1, len(rewards_seen)),
            "contributing_same_class": float(np.mean([k[1] for k in kept])) if kept else 0.0,
            "reward_mean": float(np.mean(rewards_seen)) if rewards_seen else 0.0,
            "verdict_accuracy_same": float(np.mean(correct_by_kind[True])) if correct_by_kind[True] else float("nan"),
            "verdict_accuracy_different": (
                float(np.mean(correct_by_kind[False])) if correct_by_kind[False] else float("nan")
            ),
            "json_valid": valid / max(1, num_rollouts),
            "truncated": cut / max(1, num_rollouts),
            "rollout_tokens": num_tokens,
        },
    )
    return buffer, batches


def score(texts: list[str], same_class: np.ndarray, verdict_key: str, group_size: int) -> Tensor:
    """Return rewards (P, G): 1 where the parsed verdict equals 1[y_a = y_b], else 0 (Eq. 3)."""
    wanted = np.repeat(same_class, group_size)
    verdicts = [parse_verdict(text, verdict_key) for text in texts]
    correct = [verdict is not None and verdict == bool(w) for verdict, w in zip(verdicts, wanted, strict=True)]
    return torch.tensor(correct, dtype=torch.float32).view(-1, group_size)


@dataclass
class Replayed:
    """Phase C's results: the GRPO gradient at the boundary of all images of the step, and the two losses."""

    gradient: VisualTokens  # (N, Np, D) each
    loss_lm: float
    loss_kl: float
    grad_kl: float  # norm at φ, of λ_kl·L_KL


def replay_phase(
    encoder: Encoder, supervisor: Supervisor, prompt_ids: Tensor, tokens: VisualTokens, buffer: Buffer,
    attention_layer: int, lambda_lm: float, lambda_kl: float, replay_pairs: int = 1, deepstack_gradient: bool = True,
    replay_rows: int = 0,
) -> Replayed:  # fmt: skip
    """Phase C: replay the buffer through p_ψ; leave ∇λ_lm·L_GRPO at the boundary and ∇λ_kl·L_KL in φ.

    `tokens` (N, Np, D) are all images of the step. Token-level normalisation spans the buffer, however few pairs
    are replayed at a time. L_KL averages over the answers with reward 1; teacher and tokens are detached.

    With `replay_rows` only so many rollouts of each pair are alive at a time: each part is back-propagated to the prompt's keys
    and values, then their summed gradient through the prompt. The same gradient without recomputing anything.
    """
    boundary = tokens.boundary()
    group = buffer.group_size
    num_tokens = int(buffer.rollouts.mask.sum())
    total_lm = 0.0
    teachers, students = [], []
    for start in range(0, len(buffer.pairs), replay_pairs):
        pairs = buffer.pairs[start : start + replay_pairs]
        images = boundary[torch.as_tensor(pairs.reshape(-1), device=prompt_ids.device)]
        with autocast(prompt_ids.device):
            prompt = supervisor.prefill(prompt_ids, images)
        width = min(replay_rows, group) or group
        in_parts = width < group
        shared = prompt.fork(detach=True) if in_parts else prompt
        for places in torch.arange(group).split(width):
            rows = (torch.arange(start, start + len(pairs))[:, None] * group + places).flatten()
            part = buffer.rollouts.select(rows)
            with autocast(prompt_ids.device):
                log_probs, tap = completion_log_probs(
                    supervisor, shared.fork() if in_parts else shared, part.tokens, part.mask, attention_layer
                )
            advantages = buffer.advantages.flatten()[rows].to(log_probs.device)
            loss = grpo_loss(log_probs, advantages, part.mask, num_tokens)
            (lambda_lm * loss).backward()
            total_lm += float(loss.detach())
            if lambda_kl:
                for row in (buffer.rewards.flatten()[rows] == 1).nonzero()[:, 0].tolist():
                    answer = part.tokens[row, : part.lengths[row]].tolist()
                    teacher = teacher_attention(supervisor, tap, row, answer, prompt_ids)
                    if teacher is not None:
                        teachers.append(teacher)
                        students.append(pairs[row // len(places)])
        if in_parts:
            reached = [(x, leaf.grad) for x, leaf in zip(prompt.tensors(), shared.tensors(), strict=True) if leaf.grad is not None]
            torch.autograd.backward(*zip(*reached, strict=True))
    loss_kl, grad_kl = 0.0, 0.0
    if teachers:
        before = [None if p.grad is None else p.grad.clone() for p in encoder.pooler.parameters()]
        used = np.concatenate(students)
        unique, inverse = np.unique(used, return_inverse=True)
        with autocast(prompt_ids.device):  # the tokens are bf16 there, the pooler's weights float32
            _, beta = encoder.pooler(tokens.merged.detach()[torch.as_tensor(unique, device=prompt_ids.device)])
        beta = beta[torch.as_tensor(inverse, device=prompt_ids.device)]
        kl = attention_alignment_loss(torch.cat(teachers), beta, reduction="sum") / len(teachers)
        if kl.requires_grad:
            (lambda_kl * kl).backward()
        loss_kl = float(kl.detach())
        grad_kl = total_norm(
            [
                p.grad if old is None else p.grad - old
                for p, old in zip(encoder.pooler.parameters(), before, strict=True)
                if p.grad is not None
            ]
        )
    grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in boundary.tensors()]
    if not deepstack_gradient:
        grads = [grads[0], *(torch.zeros_like(g) for g in grads[1:])]
    return Replayed(VisualTokens(grads[0], tuple(grads[1:])), total_lm, loss_kl, grad_kl)


def tower_backward(batches: list[MicroBatch], language_gradient: VisualTokens | None) -> None:
    """Carry the gradients gathered at the boundary through the tower, one backward per micro-batch or part of it."""
    start = 0
    for batch in batches:
        stop = start + len(batch.labels)
        gradients = [batch.dml_gradient]
        if language_gradient is not None:
            gradients[0] = gradients[0] + language_gradient.merged[start:stop]
            gradients += [g[start:stop] for g in language_gradient.deepstack]
        for rows in _slices(len(batch.labels), batch.tower_images or len(batch.labels)):
            tokens = batch.encode(rows) if batch.encode else batch.tokens
            outputs = tokens.tensors()[: len(gradients)]
            torch.autograd.backward(outputs, [g[rows].to(o.dtype) for g, o in zip(gradients, outputs, strict=True)])
        start = stop


def total_norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))
