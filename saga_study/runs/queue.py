"""Train the missing runs of a study in parallel worker processes, longest first."""

from __future__ import annotations

import heapq
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from saga_lib.common.errors import SagaError
from saga_lib.common.files import write_json
from saga_lib.common.paths import REPOSITORY
from saga_lib.config import RunConfig
from saga_lib.records import Run, is_complete
from saga_study.methods import describe
from saga_study.paths import BY_HAND
from saga_study.runs.processes import PATIENCE_SECONDS, RunFailed, child_environment, worker_slots
from saga_study.runs.progress import ProgressLine, show_duration
from saga_study.runs.store import run_folder
from saga_study.runs.worker import worker_request

POLL_SECONDS = 0.25  # how often the queue looks at its workers


# --------------------------------------------------------------------------------------------------- queue


def run_queue(
    configs: Sequence[RunConfig],
    study: str = BY_HAND,
    workers: int | None = None,
    expected_minutes: Callable[[RunConfig], float] | None = None,
    display: TextIO | None = None,
) -> list[Run]:
    """Train the missing runs of a study in parallel processes, longest expected first; return all of them.

    `workers` defaults to one per core as far as memory goes; profile paper, one per GPU unless these are hidden. Progress
    goes to `display` (stderr). The first worker that fails stops the queue: `SagaError` if the user can mend it, else
    `RunFailed`. Whatever stops it, finished runs and checkpoints stay, and the next call goes on from them.
    """
    folders = {config: run_folder(study, config) for config in configs}
    missing = {folder: config for config, folder in folders.items() if not is_complete(folder)}
    if missing:
        queue = [_Job(config, folder, (expected_minutes or _alike)(config) * 60) for folder, config in missing.items()]
        queue.sort(key=lambda job: -job.expected_seconds)
        slots = worker_slots(queue[0].config.profile, workers)[: len(queue)]
        _work_off(queue, slots, num_known=len(set(folders.values())) - len(queue), display=display)
    return [Run(folder, config) for config, folder in folders.items()]


def _alike(_config: RunConfig) -> float:
    return 1.0


@dataclass
class _Job:
    """One missing run in the queue and, once started, the process that trains it."""

    config: RunConfig
    folder: Path
    expected_seconds: float
    slot: str | None = None
    process: subprocess.Popen | None = None
    started: float = 0.0
    first_step: int | None = None  # the first we saw; > 1 when a checkpoint was resumed
    step: int = 0
    steps: int = 0
    spent: float = 0.0  # seconds, once finished

    @property
    def log(self) -> Path:
        return self.folder / "worker.log"

    def start(self, slot: str | None, requests: Path) -> None:
        self.slot, self.started = slot, time.monotonic()
        request = requests / f"{self.folder.name}.json"
        write_json(request, worker_request(self.config, self.folder, os.getpid()))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.log, "wb") as log:
                # In a session of its own, Ctrl-C reaches the queue only, which then stops its workers in order.
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "saga_study.runs", str(request)], cwd=REPOSITORY, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, start_new_session=True,
                    env=child_environment(self.config.profile, gpu=slot),
                )  # fmt: skip
        except OSError as error:
            raise SagaError(f"cannot start {describe(self.config)}: {error.strerror or error}") from error

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
        if not self.step:
            return "starting"
        return f"step {self.step}/{self.steps}" if self.step < self.steps else "evaluating"

    def seconds_left(self, now: float) -> float | None:
        """Return the time to go by the pace of this run, None while it is unknown."""
        done = self.step - (self.first_step or 0)
        return (now - self.started) / done * (self.steps - self.step) if done > 0 else None

    def check(self) -> None:
        """Raise what a finished process died of."""
        code, text = self.process.returncode, self.log.read_text(encoding="utf-8", errors="replace")
        said = [line for line in text.splitlines() if line.strip()]
        if code == 0 and is_complete(self.folder):
            self.log.unlink(missing_ok=True)
            return
        where = f"run {self.folder.name} ({describe(self.config)})"
        if code == 2 and said and said[-1].startswith("error: "):
            raise SagaError(f"{where}: {said[-1].removeprefix('error: ')}")
        if code == 0:
            reason = "ended without evaluation.json"
        elif code < 0:
            hint = "; if memory ran out, use fewer --workers" if code == -signal.SIGKILL else ""
            reason = f"was killed by {signal.Signals(-code).name}{hint}"
        else:
            reason = f"failed: {said[-1] if said else f'exit code {code}'}"
        raise RunFailed(f"{where} {reason} (all it said: {self.log})", text)


def _work_off(queue: list[_Job], slots: list[str | None], num_known: int, display: TextIO | None) -> None:
    """Keep every slot busy until the queue is empty or a worker fails."""
    waiting, active, done = list(queue), [], []
    total = num_known + len(queue)
    line = ProgressLine(display)
    line.note(f"{len(queue)} of {total} runs to train, {len(slots)} at a time")
    requests = Path(tempfile.mkdtemp(prefix="saga-requests-"))
    try:
        while waiting or active:
            free = list(slots)
            for job in active:
                free.remove(job.slot)
            while free and waiting:
                active.append(waiting.pop(0))
                active[-1].start(free.pop(0), requests)
            time.sleep(POLL_SECONDS)
            for job in [job for job in active if job.process.poll() is not None]:
                active.remove(job)
                job.check()
                job.spent = time.monotonic() - job.started
                done.append(job)
                line.note(f"{num_known + len(done)}/{total} {describe(job.config)} took {show_duration(job.spent)}")
            line.update(_progress_text(waiting, active, done, num_known, total, len(slots)))
    finally:
        line.close()
        _stop([job.process for job in active if job.process])
        shutil.rmtree(requests, ignore_errors=True)


def _progress_text(
    waiting: list[_Job], active: list[_Job], done: list[_Job], num_known: int, total: int, num_slots: int
) -> str:
    now = time.monotonic()
    for job in active:
        job.read_progress()
    left = time_left(waiting, active, done, num_slots, now)
    running = ", ".join(f"{describe(job.config)} {job.stage()}" for job in active)
    text = f"runs {num_known + len(done)}/{total}"
    text += f", about {show_duration(left)} left" if left is not None else ""
    return text + (f" | {running}" if running else "")


def time_left(
    waiting: Sequence[_Job], active: Sequence[_Job], done: Sequence[_Job], num_slots: int, now: float
) -> float | None:
    """Estimate the seconds until the queue is empty; None before anything has been observed.

    Expectations are corrected by how fast this machine has been so far, then the waiting runs are dealt to
    whichever worker is free first, as the queue itself will do.
    """
    measured = [(job, job.seconds_left(now)) for job in active]
    seen = [(now - job.started + left, job.expected_seconds) for job, left in measured if left is not None]
    seen += [(job.spent, job.expected_seconds) for job in done]
    if not seen:
        return None
    pace = sum(real for real, _ in seen) / max(1e-9, sum(expected for _, expected in seen))
    busy = [
        left if left is not None else max(0.0, job.expected_seconds * pace - (now - job.started))
        for job, left in measured
    ]
    loads = busy + [0.0] * (num_slots - len(busy))
    heapq.heapify(loads)
    for job in waiting:
        heapq.heappush(loads, heapq.heappop(loads) + job.expected_seconds * pace)
    return max(loads)


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    """Ask processes to stop, wait for a moment, then kill what is left."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
