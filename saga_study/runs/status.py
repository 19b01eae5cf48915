"""What has become of every run of a study, as one table: of local workers and of a cluster's tasks alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.config import RunConfig
from saga_study.methods import describe
from saga_study.paths import cluster_folder, is_complete
from saga_study.processes import lock_holder
from saga_study.runs.jobs import last_step, last_words, stage
from saga_study.runs.slurm import Task, cancel, read_tasks
from saga_study.runs.store import run_folder

STATES = ("done", "running", "waiting", "failed")
STOPPED = "interrupted"  # the last line of a worker that was asked to stop: no failure


@dataclass(frozen=True)
class Status:
    """A run's line of the table."""

    run: str
    state: str  # one of STATES
    step: str = ""
    place: str = ""  # node, process or task
    detail: str = ""  # why it waits, or the last line of the log of one that failed


def describe_status(study: str, configs: Sequence[RunConfig]) -> str:
    """Return a table of the runs of a study, a line each, and how many there are of each state."""
    rows = study_status(study, configs)
    titles = Status("run", "state", "step", "where", "")
    texts = [(row.run, row.state, row.step, row.place) for row in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = [
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=True)), each.detail]).rstrip()
        for row, each in zip(texts, (titles, *rows), strict=True)
    ]
    counts = Counter(row.state for row in rows)
    return "\n".join([*lines, f"{len(rows)} runs: {', '.join(f'{counts[state]} {state}' for state in STATES if counts[state]) or 'none'}"])


def study_status(study: str, configs: Sequence[RunConfig]) -> list[Status]:
    """Return the state of runs of a study, in their order. Raises `SagaError` if it has tasks on a cluster that does not answer."""
    numbers, tasks = {}, {}
    if cluster_folder(study).is_dir():
        from saga_study.runs.cluster import submitted

        numbers = submitted(cluster_folder(study))
        tasks = read_tasks(numbers.values())
    rows = []
    for config in configs:
        folder = run_folder(study, config)
        number = numbers.get(folder.name, "")
        rows.append(_status(describe(config), folder, number, tasks.get(number), cluster_folder(study) / f"{number}_0_log.out"))
    return rows


def _status(run: str, folder: Path, number: str, task: Task | None, log: Path) -> Status:
    if is_complete(folder):
        return Status(run, "done")
    step, steps = last_step(folder) or (0, 0)
    at = f"{step}/{steps}" if step else ""
    if task and task.is_pending:
        return Status(run, "waiting", at, f"job {number}", task.reason)
    if task and task.is_alive:
        return Status(run, "running", at, f"{task.node}, job {number}", stage(step, steps) if step in (0, steps) else "")
    if holder := lock_holder(folder / ".lock"):
        return Status(run, "running", at, f"process {holder}", stage(step, steps) if step in (0, steps) else "")
    said = last_words(folder, log if number else None)[0].removeprefix("error: ")
    if said and said != STOPPED:
        return Status(run, "failed", at, f"job {number}" if number else "", said)
    return Status(run, "waiting", at, "", "stopped" if step else "")


def cancel_tasks(study: str) -> int:
    """Cancel all tasks that a study has in SLURM's queue; return how many. Raises `SagaError` if it has none, or SLURM does not answer."""
    alive = tasks_alive(study)
    if not alive:
        raise SagaError(f"study {study} has no job in SLURM's queue")
    cancel(alive)
    return len(alive)


def tasks_alive(study: str) -> list[str]:
    """Return the numbers of the tasks that a study has in SLURM's queue."""
    if not cluster_folder(study).is_dir():
        return []
    from saga_study.runs.cluster import submitted

    return sorted(number for number, task in read_tasks(submitted(cluster_folder(study)).values()).items() if task.is_alive)
