"""A missing run in a queue, whoever trains it: how far it has come, and how long it still takes."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from saga_lib.config import RunConfig
from saga_study.runs.children import last_line
from saga_study.runs.store import tidy

KNOWN = 0.1  # of a run's steps, after which its pace counts


@dataclass
class Job:
    """A missing run in the queue. An engine adds who trains it: `has_ended`, `check` (raises the error of one that failed), `place`."""

    config: RunConfig
    folder: Path
    expected_seconds: float
    started: float = 0.0  # by time.monotonic
    first_step: int | None = None  # the first we saw; > 1 when a checkpoint was resumed
    first_seen: float = 0.0  # and when
    step: int = 0
    steps: int = 0
    spent: float = 0.0  # seconds, once finished

    def read_progress(self, now: float) -> None:
        """Read the last whole line of the run's metrics; `now` is of time.monotonic."""
        if progress := last_step(self.folder):
            self.step, self.steps = progress[0], progress[1] or self.config.steps
            if self.first_step is None:
                self.first_step, self.first_seen = self.step, now

    def stage(self) -> str:
        return stage(self.step, self.steps)

    def seconds_left(self, now: float) -> float | None:
        """Return the time to go by the pace of this run's own steps, None while it is not a tenth done."""
        done = self.step - (self.first_step or 0)
        return (now - self.first_seen) / done * (self.steps - self.step) if done > 0 and done >= KNOWN * self.steps else None

    def pace(self, now: float) -> float | None:
        """Return how long the whole run takes by its own steps, over what is expected of it; None while it is not a tenth done."""
        left = self.seconds_left(now)
        if left is None or not self.expected_seconds:
            return None
        return left / max(1e-9, 1 - self.step / self.steps) / self.expected_seconds if self.step < self.steps else None

    def finish(self) -> None:
        """Raise the error of an ended run, if any; else note how long it took."""
        self.check()
        tidy(self.folder)
        self.spent = time.monotonic() - self.started


def last_words(folder: Path, log: Path | None = None) -> tuple[str, str]:
    """Return the line that says why the worker of an unfinished run failed, and all its output; "" where there is none.

    That is the last line of its `worker.log`. Of a task that was killed, and could not write it, the last complaint in SLURM's `log`.
    """
    for path in filter(None, (folder / "worker.log", log)):
        with suppress(OSError):  # there is none, or it was removed as we looked
            text = path.read_text(encoding="utf-8", errors="replace")
            complaints = [line for line in text.splitlines() if "error: " in line] if path == log else []
            if line := last_line(complaints[-1] if complaints else text):
                return line, text
    return "", ""


def stage(step: int, steps: int) -> str:
    """Say how far a run at work is."""
    if not step:
        return "starting"
    return f"step {step}/{steps}" if step < steps else "evaluating"


def last_step(folder: Path) -> tuple[int, int] | None:
    """Return the last whole step in a run folder's metrics and how many there are (0: unknown); None if there is none yet."""
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().split(b"\n")[:-1]  # what follows the last line break is still being written
        last = json.loads(lines[-1])
    except (OSError, IndexError, ValueError):  # not there yet, or being cut by a resumed run
        return None
    return last["step"], last.get("steps") or 0
