"""From a run's settings to what it reads: the supervisor and the benchmark that their names stand for, and its address."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from saga_lib import records
from saga_lib.common.errors import SagaError
from saga_lib.common.model_files import is_local
from saga_lib.config import CHECKPOINTS, OWN_IMAGES, RunConfig
from saga_lib.records import ResolvedRun, Run
from saga_study.datasets.loading import benchmark_checksum, run_benchmark
from saga_study.miniature.world import DOMAINS, benchmark_spec, is_miniature

if TYPE_CHECKING:
    import torch

    from saga_lib.training import Session


def supervisor_source(config: RunConfig) -> str:
    """Return the folder or hub id of a run's supervisor; "miniature" is the shipped checkpoint of the domain.

    Your own images take the checkpoint that was trained on their vocabulary. Raises `SagaError` if there is none.
    """
    if config.supervisor != "miniature":
        if config.revision and is_local(config.supervisor):
            raise SagaError(f"revision {config.revision!r} is for supervisors from the hub; {config.supervisor} is a local folder")
        return config.supervisor
    if is_miniature(config.dataset):
        return str(CHECKPOINTS / benchmark_spec(config.dataset).domain)
    domain = next((name for name in DOMAINS if config.vocabulary == f"miniature_{name}"), "")
    if not (CHECKPOINTS / domain / "config.json").is_file():
        known = ", ".join(f"miniature_{name}" for name in DOMAINS if (CHECKPOINTS / name / "config.json").is_file())
        what = f"vocabulary {config.vocabulary}" if config.dataset == OWN_IMAGES else config.dataset
        twin = f"miniature_{config.vocabulary}"
        if config.dataset == OWN_IMAGES and twin in known.split(", "):
            raise SagaError(
                f"vocabulary {config.vocabulary} is the paper's, for photographs and a full-size supervisor: name its folder or hub id "
                f"(notebooks: SUPERVISOR). The miniature supervisor, for drawings of the miniature world alone, knows {twin}"
            )
        raise SagaError(
            f"the miniature supervisor was not trained on anything like {what} (it knows {known}); name another supervisor, "
            "a folder or a hub id"
        )
    return str(CHECKPOINTS / domain)


def resolve(config: RunConfig) -> ResolvedRun:
    """Find what a run reads.

    A miniature benchmark that is missing is rendered, because its checksum is part of the address. Of other datasets, only
    your own images are read here. Raises `SagaError` for missing inputs.
    """
    source = supervisor_source(config)
    if config.dataset == OWN_IMAGES:  # the checksum is computed from the images
        benchmark = run_benchmark(config)
        return ResolvedRun(config, source, records.run_inputs(config, source, benchmark.checksum), lambda: benchmark, _audit, _measures)
    return ResolvedRun(config, source, run_inputs(config, source), partial(run_benchmark, config), _audit, _measures)


def _audit(*step: object) -> list[dict]:
    from saga_study.audit import audit_step

    return audit_step(*step)


def _measures(*trained: object) -> dict[str, object]:
    from saga_study.measures import reading_measures

    return reading_measures(*trained)


def run_inputs(config: RunConfig, supervisor: str) -> dict[str, str]:
    """Return the checksums of what a run on a benchmark that has a name reads; see `saga_lib.records.run_inputs`."""
    return records.run_inputs(config, supervisor, benchmark_checksum(config))


def open_session(config: RunConfig, device: torch.device | None = None) -> Session:
    """Load everything that a run needs; see `saga_lib.training.Session`."""
    from saga_lib.training import Session

    return Session(resolve(config), device)


def train_run(config: RunConfig, folder: Path, report: Callable[[dict], None] | None = None) -> Run:
    """Train a run in a folder of its own, outside of any study; see `saga_lib.training.train`."""
    from saga_lib.training import train

    return train(resolve(config), folder, report)
