"""One training step of SAGA (Alg. 1): phases A, B and C.

Three losses meet at the *boundary*: detached copies of the tower's outputs. Phase A leaves the gradient of L_DML there,
phase C that of L_GRPO, and one backward pass (`tower_backward`) carries their sum through the tower. L_KL trains the
pooler only. The language model ψ is frozen throughout.

Shapes: N images of the step, Np visual tokens of D dimensions per image, K contributing pairs, G rollouts per pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from saga_lib import ranks, towers
from saga_lib.answers import parse_answer, parse_verdict
from saga_lib.config import RunConfig
from saga_lib.encoder import Encoder
from saga_lib.losses import attention_alignment_loss, group_advantages, grpo_loss
from saga_lib.pairs import PairStream
from saga_lib.supervisor.attention import AttentionTap
from saga_lib.supervisor.base import Prefix, Supervisor
from saga_lib.supervisor.replay import completion_log_probs, teacher_attention
from saga_lib.supervisor.rollouts import Rollouts, Sampling, gathered_rollouts, generate_rollouts
from saga_lib.towers import VisualTokens
from saga_lib.vocabulary import PLAIN_KEYS, AnswerKeys

# ------------------------------------------------------------------------------------- phase A: metric learning


@dataclass(frozen=True)
class MetricLosses:
    """What phase A computes on embeddings: weight·L_DML + anchor_weight·L_anchor."""

    dml: nn.Module  # (z (N, D_e), labels (N,)) -> scalar
    weight: float = 1.0  # λ_dml
    anchor: Callable[[Tensor, np.ndarray], Tensor] | None = None  # (z, indices (N,)) -> scalar, see `saga_lib.anchor`
    anchor_weight: float = 1.0


@dataclass
class MicroBatch:
    """A class-balanced batch after phase A: the tower's outputs and the gradient of L_DML at the boundary."""

    indices: np.ndarray  # (N,) int, positions in the split
    labels: np.ndarray  # (N,) int, classes
    tokens: VisualTokens  # the tower's outputs, with its graph unless `encode` is given
    dml_gradient: Tensor  # (N, Np, D), of λ_dml·L_DML (and the anchor) with respect to the merged tokens
    loss: float  # L_DML
    embeddings: Tensor  # (N, D_e), detached
    loss_anchor: float = 0.0
    norms: tuple[float, ...] = ()  # with an anchor: of the gradients of λ_dml·L_DML and λ_anchor·L_anchor at the embeddings
    encode: Callable[[slice], VisualTokens] | None = None  # returns some of this rank's share of the images with a graph
    tower_images: int = 0  # images that `encode` takes at a time; 0: all


def dml_phase(
    encoder: Encoder, losses: MetricLosses, pixels: Tensor, indices: np.ndarray, labels: np.ndarray, tower_images: int = 0
) -> MicroBatch:
    """Phase A: embed a batch; leave the gradient of the metric losses in φ, in the proxies and at the boundary.

    `pixels` are preprocessed images, of N this rank's share; `indices`, `labels` (N,) say which. With `tower_images` > 0 the tower keeps no
    graph during phases B and C: it encodes that many images at a time here, and once more in `tower_backward` (gradient caching, arXiv
    2101.06983). The gradient is the same up to rounding, because the tower treats images one by one (batch norms are in evaluation mode).
    """

    def encode(rows: slice) -> VisualTokens:
        with towers.autocast(pixels.device):
            return encoder.tower(pixels[rows])

    with torch.set_grad_enabled(not tower_images):
        own = VisualTokens.cat([encode(rows) for rows in _slices(len(pixels), tower_images or len(pixels))])
    tokens = own if ranks.size() == 1 else VisualTokens.of([ranks.gathered(tensor.detach()) for tensor in own.tensors()])
    with towers.autocast(pixels.device):
        boundary = tokens.merged.detach().requires_grad_(True)
        z, _ = encoder.pooler(boundary)
    loss = losses.dml(z, torch.as_tensor(labels, device=z.device))
    anchor = losses.anchor(z, indices) if losses.anchor else z.new_zeros(())
    parts = (losses.weight * loss, losses.anchor_weight * anchor)
    norms = tuple(float(torch.autograd.grad(part, z, retain_graph=True)[0].norm()) for part in parts if losses.anchor)
    if (total := parts[0] + parts[1]).requires_grad:
        total.backward()
    gradient = torch.zeros_like(boundary) if boundary.grad is None else boundary.grad
    again, z = encode if tower_images else None if tokens is own else lambda _: own, ranks.of_first(z.detach())
    return MicroBatch(indices, labels, tokens, gradient, float(loss.detach()), z, float(anchor.detach()), norms, again, tower_images)


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, total, size)]


# --------------------------------------------------------------------------------- phase B: dynamic sampling


@dataclass(frozen=True)
class RolloutSettings:
    """How phase B samples answers and searches for K pairs whose rollouts disagree; see the fields of `RunConfig`."""

    sampling: Sampling
    pairs_per_wave: int
    contributing_pairs: int  # K
    max_waves: int
    max_micro_batches: int
    hard_pairs: float
    advantage: str = "grpo"
    token_mean: str = "buffer"

    @classmethod
    def from_config(cls, config: RunConfig, draft: Sequence[int | None] = ()) -> RolloutSettings:
        """Take the settings from a run's configuration; `draft` is that of `Sampling`."""
        sampling = Sampling(config.group_size, config.max_new_tokens, config.temperature, config.top_p, draft)
        return cls(sampling, **{f.name: getattr(config, f.name) for f in fields(cls) if f.name != "sampling"})


class Wave(NamedTuple):
    """What one wave of phase B drew: P pairs with G rollouts each."""

    pairs: np.ndarray  # (P, 2) int, positions in the step's images
    same_class: np.ndarray  # (P,) bool
    rollouts: Rollouts  # P·G rows, pair-major
    rewards: Tensor  # (P, G) float32, each 0 or 1


@dataclass
class Buffer:
    """The contributing pairs of a step (phase B) with their answers, and what dynamic sampling went through."""

    pairs: np.ndarray  # (K, 2) int, positions in the step's images
    same_class: np.ndarray  # (K,) bool
    rollouts: Rollouts | None  # K·G rows, pair-major; None without pairs
    rewards: Tensor  # (K, G) float32
    advantages: Tensor  # (K, G) float32
    statistics: dict[str, float] = field(default_factory=dict)

    @property
    def group_size(self) -> int:
        return self.rewards.shape[1]

    @classmethod
    def from_waves(cls, waves: Sequence[Wave], settings: RolloutSettings, eos_token_id: int) -> Buffer:
        """Keep the first K pairs with rewards of both kinds: without them, all advantages of a group are 0."""
        group = settings.sampling.group_size
        drawn = Wave(
            np.concatenate([np.zeros((0, 2), dtype=np.int64), *(wave.pairs for wave in waves)]),
            np.concatenate([np.zeros(0, dtype=bool), *(wave.same_class for wave in waves)]),
            Rollouts.cat([wave.rollouts for wave in waves], eos_token_id) if waves else None,
            torch.cat([torch.zeros(0, group), *(wave.rewards for wave in waves)]),
        )
        means = drawn.rewards.mean(1).double().numpy()
        kept = np.flatnonzero((0 < means) & (means < 1))[: settings.contributing_pairs]
        rows = torch.as_tensor(kept[:, None] * group + np.arange(group)).flatten()
        rewards, statistics = drawn.rewards[torch.as_tensor(kept)], _statistics(drawn, means, kept)
        if not len(kept):
            return cls(drawn.pairs[kept], drawn.same_class[kept], None, rewards, rewards, statistics)
        rollouts, advantages = drawn.rollouts.select(rows), group_advantages(rewards, kind=settings.advantage)
        if settings.token_mean == "answer":  # L_GRPO divides by the buffer's tokens: undo that for each answer
            lengths = rollouts.mask.sum(1).view_as(advantages).to(advantages)
            advantages = advantages * lengths.mean() / lengths.clamp_min(1)
        return cls(drawn.pairs[kept], drawn.same_class[kept], rollouts, rewards, advantages, statistics)


def _statistics(drawn: Wave, means: np.ndarray, kept: np.ndarray) -> dict[str, float]:
    """Return what a run logs about phase B: all that was `drawn`, the mean reward (P,) of each pair, and which were kept."""

    def mean(values: np.ndarray, of_none: float) -> float:
        return float(np.mean(values)) if len(values) else of_none

    same, rollouts = drawn.same_class, drawn.rollouts
    num_rollouts = max(1, drawn.rewards.numel())
    valid = [parse_answer(text) is not None for text in rollouts.texts[ranks.share(num_rollouts)]] if rollouts else []
    return {
        "pairs_drawn": len(means),
        "contributing_pairs": len(kept),
        "contributing_fraction": int(((0 < means) & (means < 1)).sum()) / max(1, len(means)),
        "contributing_same_class": mean(same[kept], 0.0),
        "reward_mean": mean(means, 0.0),
        "verdict_accuracy_same": mean(means[same], float("nan")),
        "verdict_accuracy_different": mean(means[~same], float("nan")),
        "json_valid": sum(ranks.gathered_list(valid)) / num_rollouts,
        "truncated": int((~rollouts.finished).sum()) / num_rollouts if rollouts else 0.0,
        "rollout_tokens": int(rollouts.mask.sum()) if rollouts else 0,
    }


def rollout_phase(
    supervisor: Supervisor, prompt_ids: Tensor, verdict_key: str, next_batch: Callable[[], MicroBatch], settings: RolloutSettings,
    rng: np.random.Generator,
) -> tuple[Buffer, list[MicroBatch]]:  # fmt: skip
    """Phase B, without gradient: sample waves of balanced pairs, G rollouts each, until K pairs have mixed rewards.

    `next_batch` runs phase A on a further micro-batch. Each wave takes its pairs from a new one while `max_micro_batches`
    allows (the paper's refill), then from the unused pairs of the last. After `max_waves` the step goes on with what it has.
    Returns the buffer and the micro-batches, whose images the buffer's positions count through.
    """
    draws = ranks.Draws(torch.Generator(device=prompt_ids.device).manual_seed(int(rng.integers(2**62))))
    batches: list[MicroBatch] = []
    waves: list[Wave] = []
    num_mixed = 0
    while len(waves) < settings.max_waves and num_mixed < settings.contributing_pairs:
        if len(waves) < settings.max_micro_batches:
            offset = sum(len(batch.labels) for batch in batches)
            batches.append(next_batch())
            embeddings = batches[-1].embeddings.float().cpu().numpy() if settings.hard_pairs else None
            stream = PairStream(batches[-1].labels, rng, embeddings, settings.hard_pairs)
        pairs, same = stream.draw(settings.pairs_per_wave)
        if not len(pairs):
            break
        images = batches[-1].tokens.detach()[torch.as_tensor(pairs[ranks.share(len(pairs))].reshape(-1), device=prompt_ids.device)]
        with towers.autocast(prompt_ids.device):
            own = generate_rollouts(supervisor, prompt_ids, images, settings.sampling, draws) if len(images.merged) else None
        draws.finish()
        rollouts = gathered_rollouts(own, supervisor, settings.sampling.max_new_tokens)
        rewards = score(rollouts, same, verdict_key, settings.sampling.group_size)
        num_mixed += int((rewards != rewards[:, :1]).any(1).sum())
        waves.append(Wave(pairs + offset, same, rollouts, rewards))
    return Buffer.from_waves(waves, settings, supervisor.eos_token_id), batches


def score(rollouts: Rollouts, same_class: np.ndarray, verdict_key: str, group_size: int) -> Tensor:
    """Return rewards (P, G) float32: 1 where the parsed verdict equals 1[y_a = y_b], else, and for answers that were cut, 0 (Eq. 3)."""
    own, finished = ranks.share(len(rollouts.texts)), rollouts.finished.tolist()
    read = [parse_verdict(text, verdict_key, ended) for text, ended in zip(rollouts.texts[own], finished[own], strict=True)]
    verdicts = zip(ranks.gathered_list(read), np.repeat(same_class, group_size), strict=True)
    correct = [verdict is not None and verdict == bool(wanted) for verdict, wanted in verdicts]
    return torch.tensor(correct, dtype=torch.float32).view(-1, group_size)


# ---------------------------------------------------------------------------------------- phase C: gradients


@dataclass(frozen=True)
class ReplaySettings:
    """What phase C computes and how much of it at a time; the fields are those of `RunConfig`."""

    attention_layer: int  # ℓ of L_KL, from 0
    lambda_lm: float
    lambda_kl: float
    replay_pairs: int = 1  # pairs at a time
    replay_rows: int = 0  # rollouts of a pair at a time, 0 = all G
    deepstack_gradient: bool = True
    keys: AnswerKeys = PLAIN_KEYS  # of the answers: L_KL looks for the descriptions under them

    @classmethod
    def from_config(cls, config: RunConfig, keys: AnswerKeys = PLAIN_KEYS) -> ReplaySettings:
        """Take the settings from a run's configuration, and the keys from its vocabulary."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(cls) if f.name != "keys"}, keys=keys)


@dataclass
class Replayed:
    """What phase C found: the gradient of λ_lm·L_GRPO at the boundary of all images of the step, and the two losses."""

    gradient: VisualTokens  # (N, Np, D) each
    loss_lm: float
    loss_kl: float
    grad_kl: float  # norm at φ, of λ_kl·L_KL


def replay_phase(
    encoder: Encoder, supervisor: Supervisor, prompt_ids: Tensor, tokens: VisualTokens, buffer: Buffer, settings: ReplaySettings
) -> Replayed:
    """Phase C: replay the buffer through p_ψ; return ∇λ_lm·L_GRPO at the boundary and leave ∇λ_kl·L_KL in φ.

    `tokens` (N, Np, D) are all images of the step. L_GRPO is normalised by the number of tokens of the whole buffer (Eqs. 4-5), however few
    pairs are replayed at a time. L_KL averages over the answers with reward 1 (Eq. 7); its teacher and the tokens are detached.
    """
    boundary, own = tokens.boundary(), ranks.share(len(buffer.pairs))
    num_tokens = int(buffer.rollouts.mask.sum())
    loss_lm, teachers = 0.0, []
    for start in range(own.start, own.stop, settings.replay_pairs):
        pairs = buffer.pairs[start : min(start + settings.replay_pairs, own.stop)]
        images = boundary[torch.as_tensor(pairs.reshape(-1), device=prompt_ids.device)]
        with towers.autocast(prompt_ids.device):
            prompt = supervisor.prefill(prompt_ids, images)
        for prefix, places in _in_parts(prompt, buffer.group_size, settings.replay_rows):
            rows = (torch.arange(start, start + len(pairs))[:, None] * buffer.group_size + places).flatten()
            part = buffer.rollouts.select(rows)
            with towers.autocast(prompt_ids.device):
                log_probs, tap = completion_log_probs(supervisor, prefix, part.tokens, part.mask, settings.attention_layer)
            advantages = buffer.advantages.flatten()[rows].to(log_probs.device)
            loss = grpo_loss(log_probs, advantages, part.mask, num_tokens)
            (settings.lambda_lm * loss).backward()
            loss_lm += float(loss.detach())
            if settings.lambda_kl:
                right = buffer.rewards.flatten()[rows] == 1
                teachers += _teachers(supervisor, prompt_ids, tap, part, right, pairs.repeat(len(places), 0), settings.keys)
    loss_kl, grad_kl, teachers = 0.0, 0.0, ranks.gathered_maps(teachers, tokens.merged)
    if teachers:
        loss_kl, grad_kl = _alignment_backward(encoder, tokens.merged.detach(), teachers, settings.lambda_kl)
    grads, loss_lm = ranks.gathered_gradients(boundary.tensors(), loss_lm)
    if not settings.deepstack_gradient:
        grads = [grads[0], *(torch.zeros_like(g) for g in grads[1:])]
    return Replayed(VisualTokens.of(grads), loss_lm, loss_kl, grad_kl)


def _in_parts(prompt: Prefix, group_size: int, replay_rows: int) -> Iterator[tuple[Prefix, Tensor]]:
    """Yield a prompt with the rollouts (positions in the group) to replay after it, `replay_rows` at a time, 0 = all.

    The caller back-propagates each part before it asks for the next, so that only one part's graph is in memory. The
    parts' gradients gather in copies of the prompt's keys and values; after the last part, one backward pass carries
    them through the prompt. The gradient is that of all rollouts at once, and nothing is computed twice.
    """
    if not 0 < replay_rows < group_size:
        yield prompt, torch.arange(group_size)
        return
    shared = prompt.fork(detach=True)
    for places in torch.arange(group_size).split(replay_rows):
        yield shared.fork(), places
    reached = [(x, leaf.grad) for x, leaf in zip(prompt.tensors(), shared.tensors(), strict=True) if leaf.grad is not None]
    torch.autograd.backward(*zip(*reached, strict=True))


def _teachers(
    supervisor: Supervisor, prompt_ids: Tensor, tap: AttentionTap, part: Rollouts, right: Tensor, pairs: np.ndarray, keys: AnswerKeys
) -> list[tuple[np.ndarray, Tensor]]:
    """Return (pair, ᾱ) of the replayed rollouts that are `right` (R,) bool and describe both images: a row of `pairs` (R, 2), (2, Np)."""
    found = []
    for row in right.nonzero()[:, 0].tolist():
        answer = part.tokens[row, : part.lengths[row]].tolist()
        attention = teacher_attention(supervisor, tap, row, answer, prompt_ids, keys)
        if attention is not None:
            found.append((pairs[row], attention))
    return found


def _alignment_backward(encoder: Encoder, merged: Tensor, teachers: list[tuple[np.ndarray, Tensor]], weight: float) -> tuple[float, float]:
    """Add the gradient of weight·L_KL (Eq. 7) to φ; return L_KL and the norm of that gradient. `merged` is (N, Np, D)."""
    parameters = list(encoder.pooler.parameters())
    before = [None if p.grad is None else p.grad.clone() for p in parameters]
    unique, inverse = np.unique(np.concatenate([pair for pair, _ in teachers]), return_inverse=True)
    with towers.autocast(merged.device):  # on a GPU the tokens are bf16 and the pooler's weights float32
        _, beta = encoder.pooler(merged[torch.as_tensor(unique, device=merged.device)])
    beta = beta[torch.as_tensor(inverse, device=merged.device)]
    kl = attention_alignment_loss(torch.cat([attention for _, attention in teachers]), beta, reduction="sum") / len(teachers)
    if kl.requires_grad:
        (weight * kl).backward()
    added = [p.grad if old is None else p.grad - old for p, old in zip(parameters, before, strict=True) if p.grad is not None]
    return float(kl.detach()), total_norm(added)


def tower_backward(batches: list[MicroBatch], language_gradient: VisualTokens | None) -> None:
    """Carry the gradients at the boundary through the tower: one backward pass per micro-batch, or per `tower_images` of it.

    `language_gradient` (N, Np, D) each is that of `replay_phase`, over the images of all micro-batches in order.
    """
    start = 0
    for batch in batches:
        own, stop = ranks.share(len(batch.labels)), start + len(batch.labels)
        gradients = [batch.dml_gradient]
        if language_gradient is not None:
            gradients[0] = gradients[0] + language_gradient.merged[start:stop]
            gradients += [g[start:stop] for g in language_gradient.deepstack]
        gradients = [g[own] for g in gradients]
        for rows in _slices(len(gradients[0]), batch.tower_images or max(1, len(gradients[0]))):
            outputs = (batch.encode(rows) if batch.encode else batch.tokens).tensors()[: len(gradients)]
            torch.autograd.backward(outputs, [g[rows].to(o.dtype) for g, o in zip(gradients, outputs, strict=True)])
        start = stop


def total_norm(tensors: list[Tensor]) -> float:
    """Return the Euclidean norm of all tensors together, summed in float64."""
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))
