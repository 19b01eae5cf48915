"""What is watched while a run trains: times, memory, and losses that no longer train anything."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch

from saga_lib.common.errors import SagaError
from saga_lib.config import RunConfig

MAX_STEPS_WITHOUT_PAIRS = 25  # in a row, after which a run stops


def check_losses(config: RunConfig, metrics: Mapping[str, float]) -> None:
    """Raise `SagaError` if a loss of this step is not finite or its gradient has vanished; before the weights are changed."""
    where, names = _where(config, metrics), {"dml": f"DML loss ({config.dml_loss})", "lm": "GRPO loss", "kl": "KL loss"}
    for loss, weight in (("dml", config.lambda_dml), ("lm", config.lambda_lm), ("kl", config.lambda_kl)):
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


class Clock:
    """Laps of wall time in seconds; waits for the GPU, so that each lap covers its own work."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.laps, self._last = device, {}, time.perf_counter()

    def lap(self, name: str) -> None:
        """End the lap `name`; the next one starts."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def peak_gib(device: torch.device) -> float:
    """Return the peak memory in GiB: of torch on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
