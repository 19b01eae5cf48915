"""The queue's engine on one machine: worker processes, as many at a time as it can take."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from saga_lib.config import RunConfig
from saga_study.methods import describe
from saga_study.paths import is_complete
from saga_study.processes import lock_holder
from saga_study.runs.children import Child, RunFailed, stop
from saga_study.runs.fork_server import ForkServer
from saga_study.runs.jobs import Job
from saga_study.runs.processes import child_environment, on_cpu
from saga_study.runs.worker import worker_request


@dataclass
class LocalJob(Job):
    """A missing run and, once started, the process that trains it."""

    slot: str | None = None  # the GPU it has, or several: "0,1"
    ranks: int = 1  # processes that share the run
    child: Child | None = None

    def start(self, slot: str | None, fork: Callable | None) -> None:
        self.slot = slot
        request = self.folder / "worker.json"
        self.child = Child(
            f"run {self.folder.name} ({describe(self.config)})", ["saga_study.runs", str(request)],
            worker_request(self.config, self.folder, os.getpid(), self.ranks), self.folder / "worker.log",
            child_environment(self.config.profile, gpu=slot), fork,
        )  # fmt: skip
        self.started = self.child.started

    def has_ended(self) -> bool:
        return self.child.has_ended()

    def stage(self) -> str:
        if holder := self._waits_for():
            return f"waiting for process {holder}, which trains it"
        return super().stage()

    def _waits_for(self) -> str:
        """Return the process that trains this run in place of the child, such as a notebook opened by hand; else ""."""
        holder = lock_holder(self.folder / ".lock")
        return "" if holder == str(self.child.process.pid) else holder

    def check(self) -> None:
        """Raise the error of the ended process, if any."""
        try:
            self.child.check()
            if not is_complete(self.folder):
                raise RunFailed(f"{self.child.what} ended without evaluation.json")
        except RunFailed as error:
            raise RunFailed(f"{error} (its output: {self.child.log})", error.log) from None


class LocalWorkers:
    """Worker processes on this machine, one for each of `slots` (GPUs or None); the first that fails ends the queue.

    Each shares its run out over `ranks` processes.
    """

    poll_seconds = 0.25  # how often the queue looks at them
    goes_on = False  # after a failure

    def __init__(self, slots: Sequence[str | None], ranks: int = 1) -> None:
        self.slots, self.ranks = slots, ranks
        self.server: ForkServer | None = None  # forks the workers where libraries bear it: on CPUs, under Linux

    def job(self, config: RunConfig, folder: Path, expected_seconds: float) -> LocalJob:
        return LocalJob(config, folder, expected_seconds, ranks=self.ranks)

    def begin(self, jobs: Sequence[LocalJob]) -> str:
        """Return how the jobs will be worked off."""
        self.slots = self.slots[: len(jobs)]
        if sys.platform == "linux" and self.ranks == 1 and len(jobs) > 1 and all(on_cpu(job.config.profile) for job in jobs):
            self.server = ForkServer(child_environment(jobs[0].config.profile))
        return f"{len(self.slots)} at a time" + (f", each on {self.ranks} processes" if self.ranks > 1 else "")

    def advance(self, waiting: list[LocalJob], active: list[LocalJob], note: Callable[[str], None]) -> None:
        """Start the next jobs in free slots."""
        free = list(self.slots)
        for job in active:
            free.remove(job.slot)
        while free and waiting:
            waiting[0].start(free.pop(0), self.server and self.server.fork)
            active.append(waiting.pop(0))

    def num_slots(self, active: Sequence[LocalJob]) -> int:
        return len(self.slots)

    def close(self, waiting: Sequence[LocalJob], active: Sequence[LocalJob], note: Callable[[str], None]) -> None:
        """Stop what is still at work."""
        stop([job.child for job in active])
        if self.server:
            self.server.close()
