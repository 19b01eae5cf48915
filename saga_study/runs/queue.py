"""Train the missing runs of a study, longest first: in worker processes here, or as tasks of a cluster."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from saga_lib.common.errors import SagaError
from saga_lib.config import RunConfig
from saga_lib.records import Run, is_complete
from saga_study.methods import describe
from saga_study.paths import BY_HAND
from saga_study.runs.children import RunFailed
from saga_study.runs.jobs import Job
from saga_study.runs.local import LocalWorkers
from saga_study.runs.processes import worker_slots
from saga_study.runs.progress import ProgressLine, show_duration
from saga_study.runs.slurm import Cluster
from saga_study.runs.store import run_folder, tidy

NAMED = 8  # runs at work that the line of progress names


def run_queue(
    configs: Sequence[RunConfig],
    study: str = BY_HAND,
    workers: int | None = None,
    expected_minutes: Callable[[RunConfig], float] = lambda _config: 1.0,
    display: TextIO | None = None,
    cluster: Cluster | None = None,
) -> list[Run]:
    """Train the missing runs of a study in parallel, longest expected first; return all of them.

    They are trained in processes on this machine: `workers` defaults to one per core as far as memory goes; profile paper, one per GPU
    unless these are hidden. With a `cluster` they are tasks of an array of its jobs. Progress is written to `display` (stderr). The first
    worker that fails stops the queue, while tasks of a cluster go on: `SagaError` if the user can mend it, else `RunFailed`. Finished
    runs and checkpoints stay in any case, and the next call continues from them.
    """
    folders = {config: run_folder(study, config) for config in configs}
    for folder in folders.values():
        if is_complete(folder):
            tidy(folder)
    missing = {folder: config for config, folder in folders.items() if not is_complete(folder)}
    if missing:
        if cluster:
            from saga_study.runs.cluster import SlurmTasks

            engine = SlurmTasks(study, cluster)
        else:
            engine = LocalWorkers(worker_slots(configs[0].profile, workers))
        queue = [engine.job(config, folder, expected_minutes(config) * 60) for folder, config in missing.items()]
        queue.sort(key=lambda job: -job.expected_seconds)
        _work_off(queue, engine, num_known=len(set(folders.values())) - len(queue), display=display)
    elif cluster:
        from saga_study.runs.cluster import clear

        clear(study)
    return [Run(folder, config) for config, folder in folders.items()]


def _work_off(queue: list[Job], engine: LocalWorkers, num_known: int, display: TextIO | None) -> None:
    """Let an engine (one with the methods of `LocalWorkers`) work until the queue is empty or, unless it goes on, a run fails."""
    waiting, active, done, failed = list(queue), [], [], []
    total = num_known + len(queue)
    line = ProgressLine(display)
    line.note(f"{len(queue)} of {total} runs to train, {engine.begin(queue)}")
    try:
        while waiting or active:
            engine.advance(waiting, active, line.note)
            time.sleep(engine.poll_seconds)
            for job in [job for job in active if job.has_ended()]:
                active.remove(job)
                try:
                    job.finish()
                except (SagaError, RunFailed) as error:
                    if not engine.goes_on:
                        raise
                    failed.append(error)
                    line.note(f"failed: {error}" + ("; the others go on" if waiting or active else ""))
                    continue
                done.append(job)
                line.note(f"{num_known + len(done)}/{total} {describe(job.config)} took {show_duration(job.spent)}")
            line.update(_progress_text(waiting, active, done, num_known, total, engine.num_slots(active)))
    finally:
        line.close()
        engine.close(waiting, active, line.note)
    if failed:
        raise failed[0]


def _progress_text(waiting: list[Job], active: list[Job], done: list[Job], num_known: int, total: int, num_slots: int) -> str:
    now = time.monotonic()
    for job in active:
        job.read_progress()
    left = time_left(waiting, active, done, num_slots, now)
    running = ", ".join(f"{describe(job.config)} {job.stage()}" for job in active[:NAMED])
    running += f", and {len(active) - NAMED} more" if len(active) > NAMED else ""
    text = f"runs {num_known + len(done)}/{total}"
    text += f", about {show_duration(left)} left" if left is not None else ""
    return text + (f" | {running}" if running else "")


def time_left(waiting: Sequence[Job], active: Sequence[Job], done: Sequence[Job], num_slots: int, now: float) -> float | None:
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
