"""What to say when a disk or the memory of a GPU is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saga_lib.common.errors import CLOSED, FULL, SagaError, cannot_write
from saga_lib.config import RunConfig


@contextmanager
def full_devices_explained(folder: Path, config: RunConfig | None = None) -> Iterator[None]:
    """Raise `SagaError` in place of the errors of a full GPU, with advice on `config`, and of a full or read-only disk.

    `folder` is named where the system does not say what could not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL + CLOSED:
            raise
        raise cannot_write(error.filename or folder, error) from error
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not even have been imported
            raise
        advice = f"; {_what_to_lower(config)}; start a new study with --set, e.g. --set replay_rows=1" if config else ""
        raise SagaError(f"the GPU's memory is full ({str(error).strip().splitlines()[0]}){advice}") from error


def _what_to_lower(config: RunConfig) -> str:
    """Return what to lower, mildest first, for a run that a GPU could not hold."""
    from saga_study import planner

    try:
        import torch

        gpu_memory = torch.cuda.get_device_properties(0).total_memory / planner.GIB
        expected = planner.peak(planner.estimate(config).expected)
        if expected > gpu_memory:
            return planner.advice(config, gpu_memory)
        below = expected - 1  # GiB; the estimate was too low
        lower = planner.describe_levers(planner.levers(config, below), below)
        return f"the plan expected {expected:.0f} of its {gpu_memory:.0f} GiB, which is too low, or others use this GPU; {lower}"
    except (SagaError, RuntimeError, AssertionError):  # shapes that are not known
        return "lower tower_images, replay_rows, pairs_per_wave or max_micro_batches, or take a smaller supervisor"
