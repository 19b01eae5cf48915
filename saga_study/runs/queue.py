"""Train the missing runs of a study, longest first: in worker processes here, or as tasks of a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from saga_lib.common.errors import SagaError
from saga_lib.config import RunConfig
from saga_lib.records import Run
from saga_study.methods import describe
from saga_study.paths import BY_HAND, is_complete, study_folder
from saga_study.runs.children import RunFailed
from saga_study.runs.jobs import Job
from saga_study.runs.local import LocalWorkers
from saga_study.runs.page import NAME as PAGE
from saga_study.runs.page import REFRESH_SECONDS, scores, write_page
from saga_study.runs.processes import worker_slots
from saga_study.runs.progress import ProgressLine, show_duration
from saga_study.runs.remaining import queue_duration, remaining
from saga_study.runs.slurm import Cluster
from saga_study.runs.store import run_folder, tidy
from saga_study.runs.tracking import Tracker, curves_in

NAMED = 8  # runs at work that the line of progress names


def run_queue(
    configs: Sequence[RunConfig],
    study: str = BY_HAND,
    workers: int | None = None,
    expected_minutes: Callable[[RunConfig], float] = lambda _config: 1.0,
    display: TextIO | None = None,
    cluster: Cluster | None = None,
    ranks: int = 1,
    track: str = "",
    first: Collection[RunConfig] = (),
) -> list[Run]:
    """Train the missing runs of a study in parallel, those in `first` before all others, then longest expected first; return all of them.

    They are trained in processes on this machine: `workers` defaults to one per core as far as memory goes; profile paper, one per GPU
    unless these are hidden. Each run is shared out over `ranks` processes. With a `cluster` they are tasks of an array of its jobs.
    Progress is written to `display` (stderr). The first worker that fails stops the queue, while tasks of a cluster go on: `SagaError` if
    the user can mend it, else `RunFailed`. Finished runs and checkpoints stay in any case, and the next call continues from them.
    `track` names a tracker (`tracking.TRACKERS`) that shows the runs' curves.
    """
    folders = {config: run_folder(study, config) for config in configs}
    for folder in folders.values():
        if is_complete(folder):
            tidy(folder)
    missing = {folder: config for config, folder in folders.items() if not is_complete(folder)}
    if missing:
        if cluster:
            from saga_study.runs.cluster import SlurmTasks

            engine = SlurmTasks(study, cluster, ranks)
        else:
            engine = LocalWorkers(worker_slots(configs[0].profile, workers, ranks), ranks)
        queue = [engine.job(config, folder, expected_minutes(config) * 60) for folder, config in missing.items()]
        queue.sort(key=lambda job: (job.config not in first, -job.expected_seconds))
        tracker = Tracker(curves_in(track, study_folder(study))) if track else None
        watch = _Watch(study_folder(study), len(set(folders.values())) - len(queue), len(set(folders.values())), tracker)
        _work_off(queue, engine, watch, display)
    elif cluster:
        from saga_study.runs.cluster import clear

        clear(study)
    return [Run(folder, config) for config, folder in folders.items()]


@dataclass
class _Watch:
    """Where people look while a queue is worked off, beside its line of progress: a page, and a tracker if they have one."""

    folder: Path  # of the study
    num_known: int  # runs that were finished before
    total: int
    tracker: Tracker | None = None
    planned: float = 0.0  # seconds that all take by the plan
    began: float = field(default_factory=time.monotonic)
    _written: float = float("-inf")

    def show(self, waiting: list[Job], active: list[Job], done: list[Job], num_slots: int) -> None:
        """Pass on what runs have logged, and write the page now and then."""
        for job in active if self.tracker else ():
            self.tracker.follow(job.config, job.folder)
        if time.monotonic() - self._written >= REFRESH_SECONDS:
            self._written = time.monotonic()
            left = remaining(waiting, active, done, num_slots, self._written)
            with suppress(SagaError):  # a full disk is told by the runs
                write_page(self.folder, waiting, active, done, self.num_known, self.total, left)

    def ended(self, job: Job) -> None:
        if self.tracker:
            self.tracker.follow(job.config, job.folder)
            self.tracker.finish(job.folder)

    def close(self) -> None:
        if self.tracker:
            self.tracker.finish()
        (self.folder / PAGE).unlink(missing_ok=True)


def _work_off(queue: list[Job], engine: LocalWorkers, watch: _Watch, display: TextIO | None) -> None:
    """Let an engine (one with the methods of `LocalWorkers`) work until the queue is empty or, unless it goes on, a run fails."""
    waiting, active, done, failed = list(queue), [], [], []
    num_known, total, line = watch.num_known, watch.total, ProgressLine(display)
    begins = engine.begin(queue)
    watch.planned = queue_duration([job.expected_seconds for job in queue], [0.0] * engine.num_slots(queue))
    line.note(f"{len(queue)} of {total} runs to train, {begins}; by the plan {show_duration(watch.planned)}")
    line.note(f"what is found so far: {watch.folder / PAGE}")
    try:
        while waiting or active:
            engine.advance(waiting, active, line.note)
            time.sleep(engine.poll_seconds)
            for job in [job for job in active if job.has_ended()]:
                active.remove(job)
                watch.ended(job)
                try:
                    job.finish()
                except (SagaError, RunFailed) as error:
                    if not engine.goes_on:
                        raise
                    failed.append(error)
                    line.note(f"failed: {error}" + ("; the others go on" if waiting or active else ""))
                    continue
                done.append(job)
                recall, _ = scores(job)
                found = f": R@1 {recall:.1f} %" if recall == recall else ""
                line.note(f"{num_known + len(done)}/{total} {describe(job.config)} took {show_duration(job.spent)}{found}")
            line.update(_progress_text(waiting, active, done, watch, engine.num_slots(active)))
            watch.show(waiting, active, done, engine.num_slots(active))
    finally:
        line.close()
        watch.close()
        engine.close(waiting, active, line.note)
    if failed:
        raise failed[0]


def _progress_text(waiting: list[Job], active: list[Job], done: list[Job], watch: _Watch, num_slots: int) -> str:
    now = time.monotonic()
    for job in active:
        job.read_progress(now)
    left = remaining(waiting, active, done, num_slots, now)
    running = ", ".join(f"{describe(job.config)} {job.stage()}" for job in active[:NAMED])
    running += f", and {len(active) - NAMED} more" if len(active) > NAMED else ""
    in_all = now - watch.began + (left.least + left.most) / 2
    plan = f" (plan {show_duration(watch.planned)} in all, now {show_duration(in_all)})" if done else ""
    text = f"runs {watch.num_known + len(done)}/{watch.total}, {left.text()}{plan}"
    return text + (f" | {running}" if running else "")
