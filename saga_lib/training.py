"""One training step of SAGA (Alg. 1) and the loop around it.

Three losses meet at *boundary tensors*, detached copies of the tower's outputs: phase A leaves the gradient of
L_DML there, phase C that of L_GRPO, and one backward then carries their sum through the tower. L_KL reaches the
pooler only. ψ is frozen throughout.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from saga_lib.adapters import adapter_parameters, add_adapters, merge_adapters, save_adapters
from saga_lib.audit import audit_step
from saga_lib.config import OWN_IMAGES, TIMM, RunConfig, code_digest, content_key, exact_code_digest
from saga_lib.datasets import Benchmark, Split, run_benchmark
from saga_lib.encoder import Encoder, TimmTower, VisualTokens
from saga_lib.errors import SagaError
from saga_lib.files import read_json, write_atomically, write_json
from saga_lib.losses import attention_alignment_loss, group_advantages, grpo_loss, make_dml_loss
from saga_lib.pairs import PairStream, balanced_batches
from saga_lib.paths import BY_HAND
from saga_lib.prompts import (
    Vocabulary,
    comparison_answer,
    comparison_prompt,
    generic_prompt,
    load_vocabulary,
    parse_answer,
    parse_verdict,
)
from saga_lib.retrieval import hits_at_1, map_at_r, nearest_neighbours, nmi, recall_at_k
from saga_lib.runs import Run, run_folder
from saga_lib.supervisor import Supervisor, load_supervisor
from saga_lib.supervisor.replay import attribute_tokens, completion_log_probs, teacher_attention
from saga_lib.supervisor.rollouts import Rollouts, comparison_draft, generate_rollouts

RECALL_KS = (1, 2, 4, 8)
PRELOAD_BYTES = 2**30  # splits whose pixels fit are preprocessed once
MAX_STEPS_WITHOUT_PAIRS = 25


# ------------------------------------------------------------------------------------------------- inputs


def supervisor_source(config: RunConfig) -> str:
    """Return the folder or hub id of a run's supervisor; "miniature" is the shipped checkpoint of the domain.

    Your own images take the checkpoint that knows their vocabulary, if one does.
    """
    if config.supervisor != "miniature":
        if config.revision and Path(config.supervisor).is_dir():
            raise SagaError(f"revision {config.revision!r} is for supervisors from the hub; {config.supervisor} is a local folder")
        return config.supervisor
    from saga_lib.miniature.pretraining import CHECKPOINTS
    from saga_lib.miniature.world import DOMAINS, benchmark_spec, is_miniature

    if is_miniature(config.dataset):
        return str(CHECKPOINTS / benchmark_spec(config.dataset).domain)
    domain = next((name for name in DOMAINS if config.vocabulary == f"miniature_{name}"), "")
    if not (CHECKPOINTS / domain / "config.json").is_file():
        known = ", ".join(f"miniature_{name}" for name in DOMAINS if (CHECKPOINTS / name / "config.json").is_file())
        what = f"vocabulary {config.vocabulary}" if config.dataset == OWN_IMAGES else config.dataset
        raise SagaError(
            f"the miniature supervisor has never seen anything like {what} (it knows {known}); name another supervisor, "
            "a folder or a hub id"
        )
    return str(CHECKPOINTS / domain)


def run_inputs(config: RunConfig) -> dict[str, str]:
    """Return the checksums of what a run reads: the benchmark's pixels, the supervisor's files, a vocabulary of its own."""
    source = supervisor_source(config)
    checksum = hashlib.sha256(source.encode()).hexdigest()
    if Path(source).is_dir():
        files = [path for path in sorted(Path(source).iterdir()) if path.suffix in (".json", ".safetensors", ".jinja")]
        checksum = _files_checksum(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))
    inputs = {"benchmark": run_benchmark(config).checksum, "supervisor": checksum[:12]}
    if config.vocabulary:
        inputs["vocabulary"] = hashlib.sha256(repr(load_vocabulary(config.vocabulary)).encode()).hexdigest()[:12]
    return inputs


@lru_cache
def _files_checksum(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Return the sha256 of files (path, size, time of change) with their names; once a process, 8B models have 17 GB of them."""
    checksum = hashlib.sha256()
    for path, _, _ in files:
        checksum.update(path.name.encode())
        with open(path, "rb") as content:
            while block := content.read(2**22):
                checksum.update(block)
    return checksum.hexdigest()


class PixelStore:
    """Preprocessed pixels of a split, kept in memory when they fit, else read as needed."""

    def __init__(self, split: Split, tower: nn.Module) -> None:
        self.split, self.tower = split, tower
        one = tower.preprocess([split.open(0)])
        self._all = None
        if one.numel() * 4 * len(split) <= PRELOAD_BYTES:
            chunks = [range(i, min(i + 256, len(split))) for i in range(0, len(split), 256)]
            self._all = torch.cat([tower.preprocess(split.images(chunk)) for chunk in chunks])

    def __getitem__(self, indices: np.ndarray) -> Tensor:
        """Return pixels (n, …) float32 of the images at `indices` (n,)."""
        if self._all is not None:
            return self._all[torch.as_tensor(indices)]
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(self.split.open, indices.tolist()))
        return self.tower.preprocess(images)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Yield the pixels of the whole split in order."""
        for start in range(0, len(self.split), size):
            yield self[np.arange(start, min(start + size, len(self.split)))]


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
            rollouts = generate_rollouts(
                supervisor, prompt_ids, tokens, config.group_size, config.max_new_tokens, config.temperature,
                config.top_p, generator, draft,
            )  # fmt: skip
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
        _, beta = encoder.pooler(tokens.merged.detach()[torch.as_tensor(unique, device=prompt_ids.device)])
        beta = beta[torch.as_tensor(inverse, device=prompt_ids.device)]
        kl = attention_alignment_loss(torch.cat(teachers), beta, reduction="sum") / len(teachers)
        if kl.requires_grad:
            (lambda_kl * kl).backward()
        loss_kl = float(kl.detach())
        grad_kl = _norm(
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


def autocast(device: torch.device):
    """Return bf16 autocast on a GPU (the tower's master weights stay float32), nothing on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


# ---------------------------------------------------------------------------------------------- one run


class Session:
    """Everything a run holds in memory: models, data, optimizer and the step counter."""

    def __init__(self, config: RunConfig, device: torch.device | None = None) -> None:
        self.config = config
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.benchmark: Benchmark = run_benchmark(config)
        if config.evaluate_on == "validation":
            self.benchmark = self.benchmark.for_tuning()
        if (count := len(self.benchmark.test)) <= max(RECALL_KS):
            raise SagaError(
                f"the {self.benchmark.test.name} split of {self.benchmark.name} has {count} images; Recall@{max(RECALL_KS)} needs at "
                f"least {max(RECALL_KS) + 1}: add images or test classes, or set images_per_class higher"
            )
        if config.audit_every and self.benchmark.train.class_attributes is None:
            raise SagaError(f"audit_every: {config.dataset} has no attribute truth to audit against; only miniature benchmarks do")
        self.vocabulary = load_vocabulary(self.benchmark.vocabulary)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        source, supervisor = supervisor_source(config), None
        if source.startswith(TIMM):
            tower = TimmTower.pretrained(source.removeprefix(TIMM), config.image_size)
        else:
            tower, supervisor = load_supervisor(source, config.image_size, self.device, dtype, config.revision or None)
        torch.manual_seed(config.seed)
        self.encoder = Encoder(tower, config.pooler, config.embedding_dim).to(self.device)
        self.encoder.requires_grad_(True)
        if config.lora_rank:
            add_adapters(tower, config.lora_rank, config.lora_alpha, config.seed)
        for parameter in tower.merger_parameters():
            parameter.requires_grad_(config.train_mergers)
        dim = config.embedding_dim or tower.width
        self.dml_loss = make_dml_loss(
            config.dml_loss, len(self.benchmark.train.class_names), dim, **dict(config.dml_options)
        ).to(self.device)
        self.supervisor: Supervisor | None = None  # frees the language model unless it is needed
        if config.needs_supervisor():
            if config.attention_layer >= supervisor.num_layers:
                raise SagaError(
                    f"attention_layer {config.attention_layer} counts from 0, and {source} has {supervisor.num_layers} layers"
                )
            self.supervisor = supervisor
            supervisor.recomputes = config.recompute_layers
            is_generic = config.prompt == "generic"
            self.prompt_ids = supervisor.prompt_ids((generic_prompt if is_generic else comparison_prompt)(self.vocabulary))
            self.draft = [] if is_generic else comparison_draft(supervisor, self.vocabulary)
        self._told = None
        if config.signal_control == "wrong":  # every class is told another's attributes, always the same
            self._told = derangement(len(self.benchmark.train.class_names), np.random.default_rng([config.seed, 2**31]))
        self.train_pixels = PixelStore(self.benchmark.train, tower)
        self.step, self.batches_used, self.steps_without_pairs = 0, 0, 0
        self.audited: list[dict] = []  # rows of the last step's audit, if it had one
        size = min(config.batch_size, config.batch_images_per_class * len(self.benchmark.train.class_names))
        self.total_steps = config.steps or config.epochs * max(1, len(self.benchmark.train) // size)
        self.optimizer = self._make_optimizer()
        self._stream = self._batches()

    def _make_optimizer(self) -> torch.optim.Optimizer:
        c = self.config
        groups = [
            {"params": [p for p in self.encoder.tower.parameters() if p.requires_grad], "peak_lr": c.lr_tower},
            {"params": list(self.encoder.pooler.parameters()), "peak_lr": c.lr_pooler},
            {"params": list(self.dml_loss.parameters()), "peak_lr": c.lr_proxies},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=0.0, weight_decay=c.weight_decay)

    def trained_parameters(self) -> dict[str, int]:
        """Return how many parameters the run trains, by part; what it does not train is 0."""
        tower, trains = self.encoder.tower, self.total_steps > 0

        def count(parameters: Iterable[nn.Parameter]) -> int:
            return sum(p.numel() for p in parameters if p.requires_grad) if trains else 0

        adapters, mergers = count(adapter_parameters(tower)), count(tower.merger_parameters())
        return {
            "tower": count(tower.parameters()) - adapters - mergers, "adapters": adapters, "mergers": mergers,
            "pooler": count(self.encoder.pooler.parameters()), "proxies": count(self.dml_loss.parameters()),
        }  # fmt: skip

    def _batches(self) -> Iterator[np.ndarray]:
        c = self.config
        labels = self.benchmark.train.labels
        return balanced_batches(labels, c.batch_size, c.batch_images_per_class, c.seed, start=self.batches_used)

    def next_micro_batch(self) -> MicroBatch:
        """Draw the next class-balanced batch and run phase A on it."""
        indices = next(self._stream)
        self.batches_used += 1
        pixels = self.train_pixels[indices].to(self.device)
        labels = self.benchmark.train.labels[indices]
        c = self.config
        return dml_phase(self.encoder, self.dml_loss, pixels, indices, labels, c.lambda_dml, c.tower_images)

    def run_step(self) -> dict[str, float]:
        """Run one optimizer step (Alg. 1) and return its metrics."""
        c, clock = self.config, _Clock(self.device)
        rng = np.random.default_rng([c.seed, self.step])
        self.optimizer.zero_grad(set_to_none=True)
        metrics: dict[str, float] = {"step": self.step + 1, "steps": self.total_steps}
        buffer, replayed = None, None
        if c.language_signal == "grpo":
            first = [self.next_micro_batch()]
            clock.lap("seconds_a")

            def next_batch() -> MicroBatch:
                return first.pop() if first else self.next_micro_batch()

            buffer, batches = rollout_phase(
                self.supervisor, self.prompt_ids, self.vocabulary.verdict_key, next_batch, c, rng, self.draft
            )
            clock.lap("seconds_b")
        else:
            batches = [self.next_micro_batch()]
            clock.lap("seconds_a")
        if c.language_signal == "oracle":
            buffer = oracle_phase(
                self.supervisor, self.vocabulary, self.benchmark.train, batches[0], c.contributing_pairs, rng, self._told
            )
        self.audited = []
        if buffer is not None and len(buffer.pairs) and self._is_audited(self.step + 1):
            self.audited = self._audit(buffer, batches)
            clock.lap("seconds_audit")
        if buffer is not None and len(buffer.pairs):
            replayed = replay_phase(
                self.encoder, self.supervisor, self.prompt_ids, VisualTokens.cat([b.tokens for b in batches]), buffer,
                c.attention_layer, c.lambda_lm, c.lambda_kl, c.replay_pairs, c.deepstack_gradient, c.replay_rows,
            )  # fmt: skip
        metrics["loss_dml"] = sum(batch.loss for batch in batches)
        metrics["grad_dml"] = _norm([batch.dml_gradient for batch in batches])
        if replayed:
            metrics["grad_lm"] = _norm(list(replayed.gradient.tensors()))  # before balancing, which may rest with the DML loss
            if c.balance_gradients:
                scale = c.lambda_lm * metrics["grad_dml"] / max(metrics["grad_lm"], 1e-12)
                replayed.gradient = VisualTokens(*_scaled(replayed.gradient, scale))
        tower_backward(batches, replayed.gradient if replayed else None)
        if replayed:
            metrics |= {"loss_lm": replayed.loss_lm, "loss_kl": replayed.loss_kl, "grad_kl": replayed.grad_kl}
        if buffer is not None:
            metrics |= buffer.statistics
            if c.language_signal == "grpo":
                metrics["verdict_accuracy"] = metrics["reward_mean"]
        self._check(metrics, buffer)
        self._update(metrics)
        clock.lap("seconds_c")
        metrics |= clock.laps
        if buffer is not None and "rollout_tokens" in metrics:
            metrics["tokens_per_second"] = metrics["rollout_tokens"] / max(clock.laps["seconds_b"], 1e-9)
        metrics["peak_gib"] = _peak_gib(self.device)
        self.step += 1
        return metrics

    def _is_audited(self, step: int) -> bool:
        every = self.config.audit_every
        return every > 0 and (step == 1 or step % every == 0)

    def _audit(self, buffer: Buffer, batches: list[MicroBatch]) -> list[dict]:
        labels = np.concatenate([batch.labels for batch in batches])
        attributes = self.benchmark.train.class_attributes
        truth = [(attributes[a], attributes[b]) for a, b in labels[buffer.pairs]]
        tokens = VisualTokens.cat([batch.tokens.detach() for batch in batches])
        rows = audit_step(self.supervisor, self.vocabulary, self.prompt_ids, tokens, buffer, truth)
        return [{"step": self.step + 1} | row for row in rows]  # step as in the metrics, from 1

    def _check(self, metrics: dict, buffer: Buffer | None) -> None:
        where = f"step {metrics['step']} of {self.config.dataset}/{self.config.method}, seed {self.config.seed}"
        for loss, weight in (("dml", self.config.lambda_dml), ("lm", self.config.lambda_lm), ("kl", self.config.lambda_kl)):
            value, gradient = metrics.get(f"loss_{loss}"), metrics.get(f"grad_{loss}")
            if gradient is None or not weight or (loss == "kl" and self.config.pooler == "mean"):
                continue
            name = {"dml": f"DML loss ({self.config.dml_loss})", "lm": "GRPO loss", "kl": "KL loss"}[loss]
            if not (math.isfinite(value) and math.isfinite(gradient)):
                raise SagaError(f"{where}: the {name} or its gradient is not finite; lower its learning rate or weight")
            # a DML loss may rest once every pair is easy; one that starts without a gradient never begins
            if gradient == 0 and value != 0 and (loss != "dml" or self.step == 0):
                raise SagaError(f"{where}: the gradient of the {name} has vanished; it no longer trains anything")
        self.steps_without_pairs = 0 if buffer is None or len(buffer.pairs) else self.steps_without_pairs + 1
        if self.steps_without_pairs >= MAX_STEPS_WITHOUT_PAIRS:
            raise SagaError(
                f"{where}: in {MAX_STEPS_WITHOUT_PAIRS} steps no pair had rollouts of both rewards, so GRPO learns "
                "nothing; raise temperature or max_waves, use harder pairs, a structured prompt or another supervisor"
            )

    def _update(self, metrics: dict) -> None:
        c = self.config
        scale = learning_rate_scale(self.step, self.total_steps, c.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
        # Proxies are left out of the clip: their many gradients would set the scale of everyone's step.
        norm = nn.utils.clip_grad_norm_([p for p in self.encoder.parameters() if p.grad is not None], c.max_grad_norm)
        metrics["grad_total"], metrics["lr_tower"] = float(norm), c.lr_tower * scale
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self) -> dict:
        """Embed the test split and return Recall@K, MAP@R, NMI and every query's hit at rank 1 (Sec. 4)."""
        modes = [(module, module.training) for module in self.encoder.modules()]  # a tower's differs from its encoder's
        self.encoder.eval()
        store = PixelStore(self.benchmark.test, self.encoder.tower)
        with autocast(self.device):
            parts = [self.encoder(chunk.to(self.device))[0].float().cpu().numpy() for chunk in store.chunks(64)]
        for module, was_training in modes:
            module.training = was_training
        embeddings, labels = np.concatenate(parts), self.benchmark.test.labels
        counts = np.bincount(labels)
        neighbours, _ = nearest_neighbours(embeddings, min(max(*RECALL_KS, int(counts.max()) - 1), len(labels) - 1))
        recall = recall_at_k(embeddings, labels, RECALL_KS, neighbours)
        return {
            "recall": {str(k): v for k, v in recall.items()},
            "map_at_r": map_at_r(embeddings, labels, neighbours),
            "nmi": nmi(embeddings, labels),
            "num_queries": len(labels),
            "num_classes": len(self.benchmark.test.class_names),
            "hits_at_1": "".join("1" if hit else "0" for hit in hits_at_1(embeddings, labels, neighbours)),
        }

    # ------------------------------------------------------------------------------------- checkpoints

    def save(self, folder: Path) -> None:
        """Write encoder, proxies, optimizer and counters; the counters come last and make the rest valid.

        All randomness of step s is drawn from (seed, s) and the batch stream from its counter, so these counters
        are the whole sampler and generator state.
        """
        from safetensors.torch import save_file

        tensors = {f"encoder.{n}": t for n, t in self.encoder.state_dict().items()}
        tensors |= {f"dml.{n}": t for n, t in self.dml_loss.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
        name = f"state-{self.step}.safetensors"
        write_atomically(folder / name, lambda path: save_file(tensors, path))
        counters = {"step": self.step, "batches_used": self.batches_used, "steps_without_pairs": self.steps_without_pairs}
        write_json(folder / "counters.json", counters | {"file": name})
        for old in folder.glob("state-*.safetensors"):
            if old.name != name:
                old.unlink()

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint written by `save`; raises `SagaError` naming a damaged file."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        counters = read_json(folder / "counters.json")
        path = folder / counters["file"]
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise SagaError(f"checkpoint {path} is damaged ({error}); delete {folder} to start this run over") from None

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        self.encoder.load_state_dict(part("encoder."))
        self.dml_loss.load_state_dict(part("dml."))
        state: dict[int, dict] = {}
        for name, tensor in part("optimizer.").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        self.step, self.batches_used = counters["step"], counters["batches_used"]
        self.steps_without_pairs = counters["steps_without_pairs"]
        self._stream = self._batches()


def derangement(count: int, rng: np.random.Generator) -> list[int]:
    """Return a random permutation of `count` ≥ 2 items that leaves none in its place."""
    while True:
        order = rng.permutation(count)
        if not (order == np.arange(count)).any():
            return order.tolist()


def learning_rate_scale(step: int, total: int, warmup_fraction: float) -> float:
    """Return the factor on the peak learning rate: linear warm-up, then cosine to zero."""
    warmup = max(1, round(warmup_fraction * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def train(config: RunConfig, folder: Path | None = None, report: Callable[[dict], None] | None = None) -> Run:
    """Train a run to its last step, evaluate it on the test split and return it, its record in `folder`.

    Without a folder the run lives in the by-hand study. `report` is called with every step's metrics.
    Writes `config.json`, `metrics.jsonl` (a line per step), `audit.jsonl` (a line per audited step), `encoder/` (with
    `lora_rank`, adapters merged into it and once more by themselves in `adapters/`) and, last, `evaluation.json`, whose
    presence makes the run complete. A killed run goes on from `checkpoint/` with the same numbers.
    """
    folder = Path(folder) if folder else run_folder(BY_HAND, config)
    inputs = run_inputs(config)
    code = {"code": code_digest(), "exact_code": exact_code_digest()}
    record = {"config": config.to_dict(), "inputs": inputs, **code, "key": content_key(config, inputs)}
    write_json(folder / "config.json", record)
    session = Session(config)
    checkpoint = folder / "checkpoint"
    if (checkpoint / "counters.json").is_file():
        session.restore(checkpoint)
    metrics_path = folder / "metrics.jsonl"
    spent = _keep_metrics(metrics_path, session.step)
    audit_path = folder / "audit.jsonl"
    _keep_audit(audit_path, session.step)
    started = time.perf_counter()
    with open(metrics_path, "a", encoding="utf-8") as lines:
        while session.step < session.total_steps:
            metrics = session.run_step()
            metrics["seconds"] = spent + time.perf_counter() - started
            if session.audited:  # before the metrics, whose line says that the step is done
                with open(audit_path, "a", encoding="utf-8") as audit:
                    audit.write(json.dumps(_columns(session.audited)) + "\n")
            row = {k: (round(v, 6) if isinstance(v, float) else v) for k, v in metrics.items() if v == v}
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            if report:
                report(row)
            if session.step % config.checkpoint_every == 0 and session.step < session.total_steps:
                session.save(checkpoint)
    trained = session.trained_parameters()
    if config.lora_rank:  # from here on the tower is an ordinary one, which loads without peft
        save_adapters(session.encoder.tower, folder / "adapters")
        merge_adapters(session.encoder.tower)
    evaluation = session.evaluate()
    card = {"trained on": session.benchmark.name, "method": config.method, "seed": config.seed, "steps": session.step}
    card[f"Recall@1, {config.evaluate_on} classes"] = f"{100 * evaluation['recall']['1']:.1f} %"
    session.encoder.save_pretrained(folder / "encoder", card)
    evaluation |= {"steps": session.step, "seconds": round(spent + time.perf_counter() - started, 1)}
    evaluation["trained_parameters"] = trained
    if config.language_signal == "grpo" and config.lambda_kl:
        evaluation["attention_layer_from_0"] = config.attention_layer
    write_json(folder / "evaluation.json", evaluation)
    for path in sorted(checkpoint.glob("*")):
        path.unlink()
    if checkpoint.is_dir():
        checkpoint.rmdir()
    return Run(folder, config)


def _keep_metrics(path: Path, steps: int) -> float:
    """Cut a metrics file to its first `steps` lines (later ones will be redone) and return the seconds spent."""
    if not path.is_file():
        return 0.0
    kept = path.read_text(encoding="utf-8").splitlines()[:steps]
    write_atomically(path, lambda temporary: temporary.write_text("".join(line + "\n" for line in kept)))
    return float(json.loads(kept[-1])["seconds"]) if kept else 0.0


def _keep_audit(path: Path, steps: int) -> None:
    """Cut an audit file, a line per audited step, back to the first `steps` steps; a line that a kill cut lacks its brace."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= steps]
        write_atomically(path, lambda temporary: temporary.write_text("".join(line + "\n" for line in kept)))


def _columns(rows: list[dict]) -> dict:
    """Return the rows of one step column by column, four significant digits: records are committed and must stay small."""

    def short(value: object) -> object:
        return float(f"{value:.4g}") if isinstance(value, float) else value

    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    return {"step": rows[0]["step"]} | {name: [short(row.get(name)) for row in rows] for name in names}


class _Clock:
    """Laps of wall time; waits for the GPU so that a lap holds its own work."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.laps, self._last = device, {}, time.perf_counter()

    def lap(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def _scaled(tokens: VisualTokens, scale: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    return tokens.merged * scale, tuple(t * scale for t in tokens.deepstack)


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))


def _peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
