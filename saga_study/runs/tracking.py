"""Live curves in a tracker that people use: what runs log step by step is passed on as the queue sees it.

Training itself knows nothing of this. Each run's `metrics.jsonl` is followed, so that workers, tasks of a cluster and runs on several GPUs
are tracked alike, and a run that goes on from a checkpoint repeats no step.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from saga_lib.common.errors import SagaError, first_line
from saga_lib.config import RunConfig
from saga_study.methods import describe

TRACKERS = ("tensorboard", "trackio", "wandb")
NOT_LOGGED = ("step", "steps")


class Curves(Protocol):
    """What a tracker has for one run."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class _TensorBoard:
    """A folder of event files for each run: `tensorboard --logdir results/STUDY/tensorboard`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder, flush_secs=10)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


def check_tracker(name: str) -> None:
    """Raise `SagaError` for a tracker that is not known or not installed."""
    if name not in TRACKERS:
        raise SagaError(f"--track takes one of {', '.join(TRACKERS)}, got {name!r}")
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise SagaError(f"--track {name} needs the package {name} ({first_line(error)}): pip install {name}, or leave it out") from None


def curves_in(name: str, study: Path) -> Callable[[RunConfig, str], Curves]:
    """Return what opens a run's curves (by its settings and key) in a tracker; a study is a project."""
    if name == "tensorboard":
        return lambda config, key: _TensorBoard(study / "tensorboard" / f"{describe(config).replace('/', '_')} {key}")
    tracker = importlib.import_module(name)
    apart = {"reinit": "create_new"} if name == "wandb" else {}  # several runs at a time
    return lambda config, key: tracker.init(project=study.name, name=f"{describe(config)} {key}", config=config.to_dict(), **apart)


class Tracker:
    """Follows runs and passes on each step once."""

    def __init__(self, start: Callable[[RunConfig, str], Curves]) -> None:
        self._start = start
        self._curves: dict[Path, Curves] = {}
        self._seen: dict[Path, int] = {}  # the last step that was passed on

    def follow(self, config: RunConfig, folder: Path) -> None:
        """Pass on the whole lines that a run has logged since."""
        try:
            lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]  # what follows the last line break is still being written
        except OSError:  # not there yet
            return
        for line in lines[self._seen.get(folder, 0) :]:
            metrics = json.loads(line)
            if folder not in self._curves:
                self._curves[folder] = self._start(config, folder.name)
            self._curves[folder].log({n: v for n, v in metrics.items() if n not in NOT_LOGGED}, metrics["step"])
            self._seen[folder] = metrics["step"]

    def finish(self, folder: Path | None = None) -> None:
        """End the curves of a run, of all without one."""
        for known in [folder] if folder else list(self._curves):
            if curves := self._curves.pop(known, None):
                curves.finish()
