"""One run: everything it holds in memory (`Session`), its steps, its evaluation, and the loop that makes a run folder (`train`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from saga_lib import ranks, step, towers
from saga_lib.adapters import adapter_parameters, add_adapters, merge_adapters, save_adapters
from saga_lib.anchor import TokenDrift, make_anchor
from saga_lib.checkpoints import RunLog, delete_checkpoint, load_checkpoint, save_checkpoint
from saga_lib.common.errors import SagaError
from saga_lib.common.files import write_json
from saga_lib.config import TIMM
from saga_lib.controls import derangement, oracle_phase, shuffled, shuffled_in_group
from saga_lib.datasets.pixels import PixelStore
from saga_lib.datasets.splits import Benchmark
from saga_lib.encoder import Encoder
from saga_lib.families.loading import load_supervisor
from saga_lib.families.timm_towers import TimmTower
from saga_lib.losses import make_dml_loss
from saga_lib.monitoring import Clock, check_losses, check_pairs, gradient_summary, peak_gib, ratio
from saga_lib.pairs import balanced_batches
from saga_lib.prompts import comparison_prompt, generic_prompt
from saga_lib.reading import AttributeHead, Reader, Readings, make_reader, reading_loss, reading_phase, view
from saga_lib.records import ResolvedRun, Run, code_digest, exact_code_digest
from saga_lib.retrieval import average_precision_at_r, hits_at_1, nearest_neighbours, nmi, recall_at_k
from saga_lib.supervisor.base import Supervisor
from saga_lib.supervisor.rollouts import comparison_draft
from saga_lib.towers import VisualTokens
from saga_lib.vocabulary import load_vocabulary

RECALL_KS = (1, 2, 4, 8)


class Session:
    """Everything a run holds in memory: models, data, optimizer and the step counter."""

    def __init__(self, resolved: ResolvedRun, device: torch.device | None = None) -> None:
        """Load what the run needs; `device` is a GPU if there is one. Raises `SagaError` for settings that do not go together."""
        config = self.config = resolved.config
        self._audit_step, self._reading_measures = resolved.audit, resolved.measures
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.benchmark = resolved.benchmark.for_tuning() if config.evaluate_on == "validation" else resolved.benchmark
        _check_benchmark(self.benchmark, resolved)
        ranks.check(config.batch_size, config.pairs_per_wave, config.top_p)
        self.vocabulary = load_vocabulary(self.benchmark.vocabulary)
        tower, supervisor = _load_models(resolved, self.device)
        tower.image_fit = config.image_fit
        num_classes = len(self.benchmark.train.class_names)
        torch.manual_seed(config.seed)  # of the pooler and the proxies
        self.encoder = Encoder(tower, config.pooler, config.embedding_dim).to(self.device)
        self.encoder.requires_grad_(True)
        if config.lora_rank:
            add_adapters(tower, config.lora_rank, config.lora_alpha, config.seed)
        for parameter in tower.merger_parameters():
            parameter.requires_grad_(config.train_mergers)
        dim = config.embedding_dim or tower.width
        self.dml_loss = make_dml_loss(config.dml_loss, num_classes, dim, **dict(config.dml_options)).to(self.device)
        self.supervisor: Supervisor | None = None  # frees the language model unless it is needed
        if config.needs_supervisor() or config.measure_reading:
            self._use_supervisor(supervisor, resolved.supervisor)
        self._swapped = None  # of the control with wrong attributes: for each class another one, the same in every step
        if config.signal_control == "wrong":
            self._swapped = derangement(num_classes, np.random.default_rng([config.seed, 2**31]))

        self.train_pixels = PixelStore(self.benchmark.train, tower)
        size = min(config.batch_size, config.batch_images_per_class * num_classes)
        self.total_steps = config.steps or config.epochs * max(1, len(self.benchmark.train) // size)  # of one micro-batch each
        self.drift = TokenDrift(self.train_pixels, self.device) if self.total_steps else None
        self.reader = make_reader(config, self.supervisor, self.vocabulary, tower.width, self.device)
        self.anchor = make_anchor(config, self.supervisor, self.vocabulary, self.train_pixels, self.device)
        self.optimizer = self._make_optimizer()
        self.step, self.batches_used, self.steps_without_pairs = 0, 0, 0
        self.audited: list[dict] = []  # rows of the last step's audit, if it had one
        self._stream = self._batches()

    def _use_supervisor(self, supervisor: Supervisor, source: str) -> None:
        """Keep the language model, with the prompt and the draft of its answers."""
        c = self.config
        if c.attention_layer >= supervisor.num_layers:
            raise SagaError(f"attention_layer {c.attention_layer} counts from 0, and {source} has {supervisor.num_layers} layers")
        self.supervisor = supervisor
        supervisor.recomputes = c.recompute_layers
        is_generic = c.prompt == "generic"
        self.prompt_ids = supervisor.prompt_ids((generic_prompt if is_generic else comparison_prompt)(self.vocabulary))
        self.draft = [] if is_generic else comparison_draft(supervisor, self.vocabulary)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        c = self.config
        groups = [
            {"params": [p for p in self.encoder.tower.parameters() if p.requires_grad], "peak_lr": c.lr_tower},
            {"params": list(self.encoder.pooler.parameters()), "peak_lr": c.lr_pooler},
            {"params": list(self.dml_loss.parameters()), "peak_lr": c.lr_proxies},
        ]
        if isinstance(self.reader, AttributeHead):
            groups[1]["params"] += self.reader.parameters()
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

    @property
    def position(self) -> int:
        """How far the run is, of `total_steps`: steps taken or, where epochs count images, micro-batches used."""
        return self.step if self.config.steps else self.batches_used

    def _batches(self) -> Iterator[np.ndarray]:
        c = self.config
        return balanced_batches(self.benchmark.train.labels, c.batch_size, c.batch_images_per_class, c.seed, start=self.batches_used)

    def next_micro_batch(self) -> step.MicroBatch:
        """Draw the next class-balanced batch and run phase A on it."""
        indices = next(self._stream)
        self.batches_used += 1
        pixels = self.train_pixels[indices[ranks.share(len(indices))]].to(self.device)
        labels = self.benchmark.train.labels[indices]
        losses = step.MetricLosses(self.dml_loss, self.config.lambda_dml, self.anchor, self.config.lambda_anchor)
        return step.dml_phase(self.encoder, losses, pixels, indices, labels, self.config.tower_images)

    def run_step(self) -> dict[str, float]:
        """Run one optimizer step (Alg. 1) and return its metrics."""
        position, clock, rng = self.position, Clock(self.device), np.random.default_rng([self.config.seed, self.step])
        self.optimizer.zero_grad(set_to_none=True)
        buffer, batches = self._phases_a_and_b(rng, clock)
        has_pairs = buffer is not None and len(buffer.pairs) > 0
        self.audited = []
        if has_pairs and self.config.audit_every and (self.step == 0 or (self.step + 1) % self.config.audit_every == 0):
            self.audited = self._audit(buffer, batches)
            clock.lap("seconds_audit")
        signals: dict[str, tuple[step.Replayed, float]] = {}
        tokens = VisualTokens.cat([batch.tokens for batch in batches]) if has_pairs or self.reader else None
        if has_pairs:
            settings = step.ReplaySettings.from_config(self.config, self.vocabulary.keys)
            found = step.replay_phase(self.encoder, self.supervisor, self.prompt_ids, tokens, buffer, settings)
            signals["lm"] = found, self.config.lambda_lm
        if self.reader:
            of_views = self._read_views(batches, rng) if self.config.reading_signal == "views" else None
            loss = reading_loss(self.config, np.concatenate([batch.labels for batch in batches]), rng, of_views)
            found = reading_phase(self.reader, tokens, loss, self.config.lambda_reading, self.config.reading_images)
            signals["reading"] = found, self.config.lambda_reading
        metrics: dict[str, float] = {"step": self.step + 1, "steps": self.total_steps}
        metrics |= self._backward(batches, signals)
        metrics |= buffer.statistics if buffer is not None else {}
        if self.config.language_signal == "grpo":
            metrics["verdict_accuracy"] = metrics["reward_mean"]
        check_losses(self.config, metrics)
        self.steps_without_pairs = 0 if buffer is None or has_pairs else self.steps_without_pairs + 1
        check_pairs(self.config, metrics, self.steps_without_pairs)
        metrics |= self._update(position)
        clock.lap("seconds_c")
        metrics |= clock.laps
        if "rollout_tokens" in metrics:
            metrics["tokens_per_second"] = metrics["rollout_tokens"] / max(clock.laps["seconds_b"], 1e-9)
        metrics["peak_gib"] = peak_gib(self.device)
        self.step += 1
        return metrics

    def _phases_a_and_b(self, rng: np.random.Generator, clock: Clock) -> tuple[step.Buffer | None, list[step.MicroBatch]]:
        """Return the micro-batches of the step and the buffer of its language signal, None for metric learning alone."""
        c, first = self.config, [self.next_micro_batch()]
        clock.lap("seconds_a")
        if c.language_signal == "none":
            return None, first
        if c.language_signal == "oracle":
            train = self.benchmark.train
            return oracle_phase(self.supervisor, self.vocabulary, train, first[0], c.contributing_pairs, rng, self._swapped), first

        def next_batch() -> step.MicroBatch:
            return first.pop() if first else self.next_micro_batch()

        settings = step.RolloutSettings.from_config(c, self.draft)
        buffer, batches = step.rollout_phase(self.supervisor, self.prompt_ids, self.vocabulary.verdict_key, next_batch, settings, rng)
        if c.signal_control != "none":
            buffer.advantages = (shuffled if c.signal_control == "shuffled" else shuffled_in_group)(buffer.advantages, rng)
        clock.lap("seconds_b")
        return buffer, batches

    @torch.no_grad()
    def _read_views(self, batches: list[step.MicroBatch], rng: np.random.Generator) -> Readings:
        """Return what is read from another view of each image of the step."""
        images = [view(image, rng) for batch in batches for image in self.benchmark.train.images(batch.indices)]
        pixels = self.encoder.tower.preprocess(images)
        with towers.autocast(self.device):
            parts = pixels[ranks.share(len(pixels))].split(self.config.reading_images or len(pixels))
            read = [self.reader(self.encoder.tower(part.to(self.device))) for part in parts]
        return [ranks.gathered(torch.cat(columns)) for columns in zip(*read, strict=True)]

    def _backward(self, batches: list[step.MicroBatch], signals: dict[str, tuple[step.Replayed, float]]) -> dict[str, float]:
        """Carry the gradients of the metric losses and of the signals {name: (found, weight)} through the tower.

        Returns the losses, their gradients' norms (before balancing, which makes them 0 where grad_dml is) and, of each signal, the ratio
        of what is applied to the metric gradient.
        """
        metrics = {"loss_dml": sum(batch.loss for batch in batches), "grad_dml": step.total_norm([batch.dml_gradient for batch in batches])}
        if self.config.anchor != "none":
            metrics["loss_anchor"] = sum(batch.loss_anchor for batch in batches)
            metrics["ratio_anchor"] = ratio(*np.sum([batch.norms[::-1] for batch in batches], axis=0))
        gradient = None
        for name, (found, weight) in signals.items():
            norm = step.total_norm(list(found.gradient.tensors()))
            scale = weight * metrics["grad_dml"] / max(norm, 1e-12) if self.config.balance_gradients else 1.0
            gradient = found.gradient.scaled(scale, gradient)
            metrics |= {f"grad_{name}": norm, f"loss_{name}": found.loss_lm, f"ratio_{name}": ratio(scale * norm, metrics["grad_dml"])}
            metrics |= {"loss_kl": found.loss_kl, "grad_kl": found.grad_kl} if name == "lm" else {}
        step.tower_backward(batches, gradient)
        head = [*self.reader.parameters()] if isinstance(self.reader, AttributeHead) else []
        ranks.sync_gradients([*self.encoder.tower.parameters(), *head], [*self.encoder.pooler.parameters(), *self.dml_loss.parameters()])
        return metrics

    def _audit(self, buffer: step.Buffer, batches: list[step.MicroBatch]) -> list[dict]:
        labels = np.concatenate([batch.labels for batch in batches])
        attributes = self.benchmark.train.class_attributes
        truth = [(attributes[a], attributes[b]) for a, b in labels[buffer.pairs]]
        tokens = VisualTokens.cat([batch.tokens.detach() for batch in batches])
        rows = self._audit_step(self.supervisor, self.vocabulary, self.prompt_ids, tokens, buffer, truth)
        return [{"step": self.step + 1} | row for row in rows]  # step as in the metrics, from 1

    def _update(self, position: int) -> dict[str, float]:
        """Clip the encoder's gradient, take the optimizer's step and return the gradient's norm and the tower's learning rate."""
        c = self.config
        scale = learning_rate_scale(position, self.total_steps, c.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
        # Proxies are left out of the clip: they are many, and their gradients would set the scale of everyone's step.
        norm = nn.utils.clip_grad_norm_([p for p in self.encoder.parameters() if p.grad is not None], c.max_grad_norm)
        of_tower = [p.grad for p in self.encoder.tower.parameters() if p.grad is not None]
        rms = float(nn.utils.get_total_norm(of_tower)) / math.sqrt(max(1, sum(g.numel() for g in of_tower)))
        self.optimizer.step()
        return {"grad_total": float(norm), "grad_over_eps": rms / self.optimizer.defaults["eps"], "lr_tower": c.lr_tower * scale}

    @torch.no_grad()
    def evaluate(self) -> dict:
        """Embed the test split and return Recall@K, MAP@R (also by class), NMI and every query's hit at rank 1 (Sec. 4)."""
        tower = self.encoder.tower
        store = PixelStore(self.benchmark.test, tower)
        embeddings, labels = np.concatenate([self.encoder.embed_pixels(chunk) for chunk in store.chunks(64)]), self.benchmark.test.labels
        counts = np.bincount(labels)
        neighbours, _ = nearest_neighbours(embeddings, min(max(*RECALL_KS, int(counts.max()) - 1), len(labels) - 1))
        measures = {"token_drift": self.drift.measure(tower)} if self.total_steps else {}
        if self.config.measure_reading:
            measures["reading"] = self._reading_measures(Reader(self.supervisor, self.vocabulary), tower, store, embeddings, self.device)
        precisions = average_precision_at_r(embeddings, labels, neighbours)
        return measures | {
            "recall": {str(k): v for k, v in recall_at_k(embeddings, labels, RECALL_KS, neighbours).items()},
            "map_at_r": float(precisions.mean()),
            "map_at_r_by_class": (np.bincount(labels, precisions) / counts).round(5).tolist(),
            "nmi": nmi(embeddings, labels),
            "num_queries": len(labels),
            "num_classes": len(self.benchmark.test.class_names),
            "hits_at_1": "".join("1" if hit else "0" for hit in hits_at_1(embeddings, labels, neighbours)),
        }

    def save(self, folder: Path) -> None:
        """Write a checkpoint: encoder, proxies, optimizer and counters.

        All randomness of a step is drawn from (seed, step), and the batches from their number: counters are the whole state of generators.
        """
        counters = {"step": self.step, "batches_used": self.batches_used, "steps_without_pairs": self.steps_without_pairs}
        save_checkpoint(folder, self._modules(), self.optimizer, counters)

    def restore(self, folder: Path) -> None:
        """Go on from the checkpoint that `save` wrote, if there is one."""
        if counters := load_checkpoint(folder, self._modules(), self.optimizer):
            self.step, self.batches_used = counters["step"], counters["batches_used"]
            self.steps_without_pairs = counters["steps_without_pairs"]
            self._stream = self._batches()

    def _modules(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "dml": self.dml_loss} | ({"head": self.reader} if isinstance(self.reader, AttributeHead) else {})


def _check_benchmark(benchmark: Benchmark, resolved: ResolvedRun) -> None:
    """Raise `SagaError` if a benchmark is too small to evaluate or lacks the truth for the audit, or a run what measures it."""
    config = resolved.config
    if (count := len(benchmark.test)) <= max(RECALL_KS):
        raise SagaError(
            f"the {benchmark.test.name} split of {benchmark.name} has {count} images; Recall@{max(RECALL_KS)} needs at "
            f"least {max(RECALL_KS) + 1}: add images or test classes, or set images_per_class higher"
        )
    for name, there in (("audit_every", resolved.audit), ("measure_reading", resolved.measures)):
        if getattr(config, name) and not there:
            raise SagaError(f"{name} needs a run that knows how: resolve it with saga_study.resolving, or leave it out")
    if config.audit_every and benchmark.train.class_attributes is None:
        raise SagaError(f"audit_every: {config.dataset} has no attribute truth to audit against; only miniature benchmarks do")


def _load_models(run: ResolvedRun, device: torch.device) -> tuple[nn.Module, Supervisor | None]:
    """Load a run's tower (float32) and its language model (bf16 on a GPU, else float32); a timm tower has none."""
    c, source = run.config, run.supervisor
    if source.startswith(TIMM):
        return TimmTower.create(source.removeprefix(TIMM), c.image_size), None
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return load_supervisor(source, c.image_size, device, dtype, c.revision or None)


def learning_rate_scale(step: int, total: int, warmup_fraction: float) -> float:
    """Return the factor on the peak learning rate: linear warm-up, then cosine to zero."""
    warmup = max(1, round(warmup_fraction * total))
    return (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def train(run: ResolvedRun, folder: Path, report: Callable[[dict], None] | None = None) -> Run:
    """Train a run to its last step, evaluate it on the test split and return it, its record in `folder`.

    `report` is called with every step's metrics. To train on a benchmark of your own: `train(records.resolve(config, benchmark), folder)`.
    Here `config.profile` and `config.method` are labels of the record; every setting is read from its own field.

    Writes `config.json`, `metrics.jsonl` (a line per step), `audit.jsonl` (a line per audited step), `encoder/` (with
    `lora_rank`, adapters are merged into it, and saved by themselves in `adapters/`) and, last, `evaluation.json`, whose
    presence makes the run complete. A killed run goes on from `checkpoint/` with the same numbers.
    """
    folder, config = Path(folder), run.config
    ranks.join()
    if leads := ranks.rank() == 0:  # the first of several ranks alone writes
        code = {"code": code_digest(), "exact_code": exact_code_digest()}
        write_json(folder / "config.json", {"config": config.to_dict(), "inputs": run.inputs, **code, "key": run.key})
    session, checkpoint = Session(run), folder / "checkpoint"
    session.restore(checkpoint)
    log = RunLog(folder, session.step) if leads else None
    started = time.perf_counter() - (log.seconds if leads else 0.0)
    while session.position < session.total_steps:
        metrics = session.run_step() | {"seconds": time.perf_counter() - started}
        if not leads:
            continue
        row = log.write(metrics, session.audited)
        if report:
            report(row)
        if session.step % config.checkpoint_every == 0 and session.position < session.total_steps:
            session.save(checkpoint)
    if leads:
        evaluation = _save_encoder(session, folder) | gradient_summary(folder, config)
        evaluation["seconds"] = round(time.perf_counter() - started, 1)
        write_json(folder / "evaluation.json", evaluation)
        delete_checkpoint(checkpoint)
    return Run(folder, config)


def _save_encoder(session: Session, folder: Path) -> dict:
    """Evaluate a trained encoder, save it with its model card and return the evaluation."""
    c = session.config
    trained = session.trained_parameters()
    if c.lora_rank:  # after merging, the tower is an ordinary one, which loads without peft
        save_adapters(session.encoder.tower, folder / "adapters")
        merge_adapters(session.encoder.tower)
    evaluation = session.evaluate()
    recall = {f"Recall@1, {c.evaluate_on} classes": f"{100 * evaluation['recall']['1']:.1f} %"}
    card = {"trained on": session.benchmark.name, "method": c.method, "seed": c.seed, "steps": session.step, **recall}
    session.encoder.save_pretrained(folder / "encoder", card)
    evaluation |= {"steps": session.step, "trained_parameters": trained}
    if c.language_signal == "grpo" and c.lambda_kl:
        evaluation["attention_layer_from_0"] = c.attention_layer
    return evaluation
