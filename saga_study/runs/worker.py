"""What a worker process does: train the run that a request file describes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_lib.config import RunConfig
from saga_study.processes import stop_with
from saga_study.resolving import resolve
from saga_study.runs.full_devices import full_devices_explained
from saga_study.runs.store import train_alone
from saga_study.runs.together import train_together


def worker_request(config: RunConfig, folder: Path, parent: int | None = None, ranks: int = 1) -> dict:
    """Return what a worker process needs to know, ready for JSON; it stops when its `parent`, if any, has ended.

    ranks: how many processes it shares the run out over, each with a GPU if there are any.
    """
    return {"config": config.to_dict(), "folder": str(folder), "parent": parent, "ranks": ranks}


def train_requested(request_file: Path, server: int | None = None) -> None:
    """Train the run of a `worker_request`; if another process does already, wait for it and take what it made.

    A worker that a `server` forked ends with it, instead of with the parent that the request names. Raises `SagaError` if code or data
    have changed since, a disk or GPU is full, or a folder cannot be written.
    """
    request = read_json(request_file)
    if parent := server or request["parent"]:
        stop_with(parent)
    config, folder = RunConfig.from_dict(request["config"]), Path(request["folder"])
    run = resolve(config)
    if run.key != folder.name:
        raise SagaError("code or data changed after this run was queued; start the command again")
    with full_devices_explained(folder, config):
        ranks = request.get("ranks", 1)
        train_alone(run, folder, waiting=lambda _: None, train=partial(train_together, ranks=ranks) if ranks > 1 else None)
