"""Train the missing runs of a study in parallel worker processes, longest first."""

from __future__ import annotations

import heapq
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from saga_lib.common.files import is_alive
from saga_lib.config import RunConfig
from saga_lib.records import Run, is_complete
from saga_study.methods import describe
from saga_study.paths import BY_HAND
from saga_study.runs.children import Child, RunFailed, stop
from saga_study.runs.processes import child_environment, worker_slots
from saga_study.runs.progress import ProgressLine, show_duration
from saga_study.runs.store import run_folder, tidy
from saga_study.runs.worker import worker_request

POLL_SECONDS = 0.25  # how often the queue looks at its workers


def run_queue(
    configs: Sequence[RunConfig],
    study: str = BY_HAND,
    workers: int | None = None,
    expected_minutes: Callable[[RunConfig], float] = lambda _config: 1.0,
    display: TextIO | None = None,
) -> list[Run]:
    """Train the missing runs of a study in parallel processes, longest expected first; return all of them.

    `workers` defaults to one per core as far as memory goes; profile paper, one per GPU unless these are hidden. Progress is written
    to `display` (stderr). The first worker that fails stops the queue: `SagaError` if the user can mend it, else `RunFailed`.
    Finished runs and checkpoints stay in any case, and the next call continues from them.
    """
    folders = {config: run_folder(study, config) for config in configs}
    for folder in folders.values():
        if is_complete(folder):
            tidy(folder)
    missing = {folder: config for config, folder in folders.items() if not is_complete(folder)}
    if missing:
        queue = [_Job(config, folder, expected_minutes(config) * 60) for folder, config in missing.items()]
        queue.sort(key=lambda job: -job.expected_seconds)
        slots = worker_slots(queue[0].config.profile, workers)[: len(queue)]
        _work_off(queue, slots, num_known=len(set(folders.values())) - len(queue), display=display)
    return [Run(folder, config) for config, folder in folders.items()]


@dataclass
class _Job:
    """A missing run in the queue and, once started, the process that trains it."""

    config: RunConfig
    folder: Path
    expected_seconds: float
    slot: str | None = None  # the GPU it has
    child: Child | None = None
    first_step: int | None = None  # the first we saw; > 1 when a checkpoint was resumed
    step: int = 0
    steps: int = 0
    spent: float = 0.0  # seconds, once finished

    def start(self, slot: str | None) -> None:
        self.slot = slot
        request = self.folder / "worker.json"
        self.child = Child(
            f"run {self.folder.name} ({describe(self.config)})", ["saga_study.runs", str(request)],
            worker_request(self.config, self.folder, os.getpid()), self.folder / "worker.log",
            child_environment(self.config.profile, gpu=slot),
        )  # fmt: skip

    @property
    def started(self) -> float:
        return self.child.started

    def read_progress(self) -> None:
        """Read the last whole line of the run's metrics."""
        try:
            with open(self.folder / "metrics.jsonl", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                lines = file.read().split(b"\n")[:-1]  # what follows the last line break is still being written
            last = json.loads(lines[-1])
        except (OSError, IndexError, ValueError):  # not there yet, or being cut by a resumed run
            return
        self.step, self.steps = last["step"], last.get("steps") or self.config.steps
        if self.first_step is None:
            self.first_step = self.step

    def stage(self) -> str:
        if holder := self._waits_for():
            return f"waiting for process {holder}, which trains it"
        if not self.step:
            return "starting"
        return f"step {self.step}/{self.steps}" if self.step < self.steps else "evaluating"

    def _waits_for(self) -> str:
        """Return the number of the process that trains this run in place of the child, such as a notebook opened by hand; else ""."""
        try:
            holder = (self.folder / ".lock").read_text(encoding="utf-8")
        except OSError:
            return ""
        is_other = holder.isdecimal() and int(holder) != self.child.process.pid
        return holder if is_other and is_alive(int(holder)) else ""  # a process that was killed leaves its number behind

    def seconds_left(self, now: float) -> float | None:
        """Return the time to go by the pace of this run, None while it is unknown."""
        done = self.step - (self.first_step or 0)
        return (now - self.started) / done * (self.steps - self.step) if done > 0 else None

    def finish(self) -> None:
        """Raise the error of an ended process, if any; else note how long it took."""
        try:
            self.child.check()
            if not is_complete(self.folder):
                raise RunFailed(f"{self.child.what} ended without evaluation.json")
        except RunFailed as error:
            raise RunFailed(f"{error} (its output: {self.child.log})", error.log) from None
        tidy(self.folder)
        self.spent = time.monotonic() - self.started


def _work_off(queue: list[_Job], slots: list[str | None], num_known: int, display: TextIO | None) -> None:
    """Keep every slot busy until the queue is empty or a worker fails."""
    waiting, active, done = list(queue), [], []
    total = num_known + len(queue)
    line = ProgressLine(display)
    line.note(f"{len(queue)} of {total} runs to train, {len(slots)} at a time")
    try:
        while waiting or active:
            free = list(slots)
            for job in active:
                free.remove(job.slot)
            while free and waiting:
                waiting[0].start(free.pop(0))
                active.append(waiting.pop(0))
            time.sleep(POLL_SECONDS)
            for job in [job for job in active if job.child.has_ended()]:
                active.remove(job)
                job.finish()
                done.append(job)
                line.note(f"{num_known + len(done)}/{total} {describe(job.config)} took {show_duration(job.spent)}")
            line.update(_progress_text(waiting, active, done, num_known, total, len(slots)))
    finally:
        line.close()
        stop([job.child for job in active])


def _progress_text(waiting: list[_Job], active: list[_Job], done: list[_Job], num_known: int, total: int, num_slots: int) -> str:
    now = time.monotonic()
    for job in active:
        job.read_progress()
    left = time_left(waiting, active, done, num_slots, now)
    running = ", ".join(f"{describe(job.config)} {job.stage()}" for job in active)
    text = f"runs {num_known + len(done)}/{total}"
    text += f", about {show_duration(left)} left" if left is not None else ""
    return text + (f" | {running}" if running else "")


def time_left(waiting: Sequence[_Job], active: Sequence[_Job], done: Sequence[_Job], num_slots: int, now: float) -> float | None:
    """Return the expected seconds until the queue is empty; None before anything has been observed.

    Expected durations are corrected by the pace of this machine so far.
    """
    measured = [(job, job.seconds_left(now)) for job in active]
    seen = [(now - job.started + left, job.expected_seconds) for job, left in measured if left is not None]
    seen += [(job.spent, job.expected_seconds) for job in done]
    if not seen:
        return None
    pace = sum(real for real, _ in seen) / max(1e-9, sum(expected for _, expected in seen))
    busy = [left if left is not None else max(0.0, job.expected_seconds * pace - (now - job.started)) for job, left in measured]
    return queue_duration([job.expected_seconds * pace for job in waiting], busy + [0.0] * (num_slots - len(busy)))


def queue_duration(durations: Sequence[float], loads: Sequence[float]) -> float:
    """Return when the last worker ends if each takes the next of some durations as soon as it is free; `loads` is what each has to do."""
    loads = list(loads)
    heapq.heapify(loads)
    for duration in durations:
        heapq.heappush(loads, heapq.heappop(loads) + duration)
    return max(loads)
