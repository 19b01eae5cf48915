"""One run: everything it holds in memory, its loop, its checkpoints and its evaluation."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from saga_lib.adapters import adapter_parameters, add_adapters, merge_adapters, save_adapters
from saga_lib.audit import audit_step
from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json, write_atomically, write_json
from saga_lib.config import TIMM, RunConfig
from saga_lib.controls import derangement, oracle_phase
from saga_lib.datasets.pixels import PixelStore
from saga_lib.datasets.splits import Benchmark
from saga_lib.encoder import Encoder
from saga_lib.families.loading import load_supervisor
from saga_lib.families.timm_towers import TimmTower
from saga_lib.losses import make_dml_loss
from saga_lib.pairs import balanced_batches
from saga_lib.prompts import comparison_prompt, generic_prompt
from saga_lib.records import ResolvedRun, Run, code_digest, exact_code_digest, resolve
from saga_lib.retrieval import hits_at_1, map_at_r, nearest_neighbours, nmi, recall_at_k
from saga_lib.step import Buffer, MicroBatch, dml_phase, replay_phase, rollout_phase, total_norm, tower_backward
from saga_lib.supervisor.base import Supervisor
from saga_lib.supervisor.rollouts import comparison_draft
from saga_lib.towers import VisualTokens, autocast
from saga_lib.vocabulary import load_vocabulary

RECALL_KS = (1, 2, 4, 8)
MAX_STEPS_WITHOUT_PAIRS = 25


# ---------------------------------------------------------------------------------------------- one run


class Session:
    """Everything a run holds in memory: models, data, optimizer and the step counter."""

    def __init__(self, config: RunConfig | ResolvedRun, device: torch.device | None = None) -> None:
        resolved = config if isinstance(config, ResolvedRun) else resolve(config)
        self.config = config = resolved.config
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.benchmark: Benchmark = resolved.benchmark
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
        source, supervisor = resolved.supervisor, None
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
        metrics["grad_dml"] = total_norm([batch.dml_gradient for batch in batches])
        if replayed:
            metrics["grad_lm"] = total_norm(list(replayed.gradient.tensors()))  # before balancing, which may rest with the DML loss
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


def learning_rate_scale(step: int, total: int, warmup_fraction: float) -> float:
    """Return the factor on the peak learning rate: linear warm-up, then cosine to zero."""
    warmup = max(1, round(warmup_fraction * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def train(config: RunConfig | ResolvedRun, folder: Path, report: Callable[[dict], None] | None = None) -> Run:
    """Train a run to its last step, evaluate it on the test split and return it, its record in `folder`.

    `report` is called with every step's metrics. To train on a benchmark of your own: `train(resolve(config, benchmark), folder)`.
    Writes `config.json`, `metrics.jsonl` (a line per step), `audit.jsonl` (a line per audited step), `encoder/` (with
    `lora_rank`, adapters merged into it and once more by themselves in `adapters/`) and, last, `evaluation.json`, whose
    presence makes the run complete. A killed run goes on from `checkpoint/` with the same numbers.
    """
    folder, run = Path(folder), config if isinstance(config, ResolvedRun) else resolve(config)
    config = run.config
    code = {"code": code_digest(), "exact_code": exact_code_digest()}
    record = {"config": config.to_dict(), "inputs": run.inputs, **code, "key": run.key}
    write_json(folder / "config.json", record)
    session = Session(run)
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


def _peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
