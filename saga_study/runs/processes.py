"""How worker processes share the machine: their environment, how many run at once, which GPU each gets."""

from __future__ import annotations

import os
import sys

from saga_lib.common.errors import SagaError
from saga_study.processes import count_cores

WORKER_GIB = 1.5  # memory to reserve for a miniature worker, which needs about 1


def on_cpu(profile: str) -> bool:
    """Return whether a profile's runs compute on the CPU: all but the paper's do, and those too with `--cpu`, which hides GPUs."""
    return profile != "paper" or os.environ.get("CUDA_VISIBLE_DEVICES") == ""


def child_environment(profile: str, threads: int = 1, gpu: str | None = None) -> dict[str, str]:
    """Return the environment of a child process: its share of the machine, and no network where none is needed."""
    environment = dict(os.environ)
    if profile != "paper":
        environment |= {"HF_HUB_OFFLINE": "1"}
    if on_cpu(profile):
        # Two processes with two OpenMP threads each slow each other down several times on two cores, and a
        # fixed number of threads keeps the order of summation, hence the numbers, the same on every machine.
        environment |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    return environment


def default_workers() -> int:
    """Return how many miniature workers run at once: one per core, fewer if memory is short."""
    import psutil

    return max(1, min(count_cores(), int(psutil.virtual_memory().available / 2**30 / WORKER_GIB)))


def worker_slots(profile: str, workers: int | None, ranks: int = 1) -> list[str | None]:
    """Return one entry per worker process: the GPU it gets, or None; of runs on several `ranks` so many GPUs, such as "0,1"."""
    if on_cpu(profile):
        return [None] * (workers or max(1, default_workers() // ranks))
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if not gpus:
        raise SagaError("profile paper needs a CUDA GPU, none was found")
    if ranks > len(gpus):
        raise SagaError(f"--gpus-per-run {ranks}: this machine has {len(gpus)}")
    groups = [",".join(gpus[i : i + ranks]) for i in range(0, len(gpus) - ranks + 1, ranks)]
    return [groups[i % len(groups)] for i in range(workers or len(groups))]


def use_one_thread() -> None:
    """Compute in this process as workers do: with one thread, for the same numbers on every machine, and without network."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
