"""What is watched while a run trains: times, memory, and losses that no longer train anything."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from saga_lib.common.errors import SagaError
from saga_lib.config import RunConfig

START = 5  # steps whose median ratio is that of the start
SIGNALS = {"lm": "language model's", "reading": "readings'", "anchor": "anchor's"}
WEIGHTS = {"lm": "lambda_lm", "reading": "lambda_reading", "anchor": "lambda_anchor"}
MAX_STEPS_WITHOUT_PAIRS = 25  # in a row, after which a run stops


def check_losses(config: RunConfig, metrics: Mapping[str, float]) -> None:
    """Raise `SagaError` if a loss of this step is not finite or its gradient has vanished; before the weights are changed."""
    where, weights = _where(config, metrics), {"dml": config.lambda_dml, "lm": config.lambda_lm, "kl": config.lambda_kl}
    names = {"dml": f"DML loss ({config.dml_loss})", "lm": "GRPO loss", "kl": "KL loss", "reading": "readings' loss"}
    for loss, weight in (weights | {"reading": config.lambda_reading}).items():
        value, gradient = metrics.get(f"loss_{loss}"), metrics.get(f"grad_{loss}")
        if gradient is None or not weight or (loss == "kl" and config.pooler == "mean"):
            continue
        if not (math.isfinite(value) and math.isfinite(gradient)):
            raise SagaError(f"{where}: the {names[loss]} or its gradient is not finite; lower its learning rate or weight")
        # a DML loss may come to rest once every pair is easy; one that starts without a gradient never trains anything
        if gradient == 0 and value != 0 and (loss != "dml" or metrics["step"] == 1):
            raise SagaError(f"{where}: the gradient of the {names[loss]} has vanished; it no longer trains anything")


def check_pairs(config: RunConfig, metrics: Mapping[str, float], steps_without_pairs: int) -> None:
    """Raise `SagaError` once too many steps in a row had no contributing pair."""
    if steps_without_pairs >= MAX_STEPS_WITHOUT_PAIRS:
        raise SagaError(
            f"{_where(config, metrics)}: in {MAX_STEPS_WITHOUT_PAIRS} steps no pair had rollouts of both rewards, so GRPO learns "
            "nothing; raise temperature or max_waves, use harder pairs, a structured prompt or another supervisor"
        )


def _where(config: RunConfig, metrics: Mapping[str, float]) -> str:
    return f"step {metrics['step']} of {config.dataset}/{config.method}, seed {config.seed}"


def ratio(language: float, metric: float) -> float:
    """Return the norm of a language gradient relative to the metric losses', NaN where those have none."""
    return language / metric if metric > 0 else math.nan


def gradient_summary(folder: Path, config: RunConfig) -> dict[str, object]:
    """Return how the gradients of a whole run compared, from its `metrics.jsonl`; a warning says when they were far apart.

    For each language signal: `ratio_start` and `ratio_median`, of its gradient at the tower to the metric losses' (the paper wants them
    within an order of magnitude); for an anchor, at the embeddings. `clipped`: the share of clipped steps. `grad_over_eps`: the median root
    mean square of the tower's gradient in units of AdamW's eps; near 1 or below, steps are smaller than the learning rate. `k_reached`: the
    share of steps with all K. Raises `SagaError` if no step had a gradient.
    """
    log = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    if not rows:
        return {}

    def column(name: str) -> np.ndarray:
        return np.asarray([row[name] for row in rows if row.get(name) is not None], dtype=float)

    if not np.any(column("grad_total")):
        raise SagaError(f"{config.name}: no step had a gradient, so that nothing was trained; see the weights of its losses")
    summary: dict[str, object] = {
        "clipped": float(np.mean(column("grad_total") > config.max_grad_norm)), "grad_over_eps": _median(column("grad_over_eps")),
    }  # fmt: skip
    for name in (one for one in SIGNALS if getattr(config, WEIGHTS[one])):  # L_KL alone has none at the tower
        if len(ratios := column(f"ratio_{name}")):
            summary |= {f"ratio_{name}_start": _median(ratios[:START]), f"ratio_{name}_median": _median(ratios)}
            if not 0.1 <= (median := summary[f"ratio_{name}_median"]) <= 10:
                said = f"{config.name}: the {SIGNALS[name]} gradient is {median:.2g} times the metric loss's, outside 0.1 to 10"
                mend = "" if name == "anchor" else ", or set balance_gradients true"
                warnings.warn(f"{said}; change {WEIGHTS[name]}{mend}", stacklevel=2)
    if config.language_signal == "grpo":
        summary["k_reached"] = float(np.mean(column("contributing_pairs") >= config.contributing_pairs))
        summary["contributing_pairs"] = float(np.mean(column("contributing_pairs")))
    return {"gradients": summary}


def _median(values: np.ndarray) -> float:
    kept = values[np.isfinite(values)]
    return float(np.median(kept)) if len(kept) else math.nan


class Clock:
    """Laps of wall time in seconds; waits for the GPU, so that each lap covers its own work."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.laps, self._last = device, {}, time.perf_counter()

    def lap(self, name: str) -> None:
        """End the lap `name`; the next one starts."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def peak_gib(device: torch.device) -> float:
    """Return the peak memory in GiB: of torch on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
