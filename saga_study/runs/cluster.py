"""The queue's engine on a cluster: submitit makes runs tasks of a SLURM array, and requeues those that are pre-empted or time out."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from submitit import SlurmExecutor
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError
from submitit.helpers import Checkpointable

from saga_lib.common.errors import SagaError
from saga_lib.common.files import write_json, write_text
from saga_lib.config import RunConfig
from saga_study.methods import describe
from saga_study.paths import cluster_folder, is_complete
from saga_study.runs.children import RunFailed, last_line
from saga_study.runs.jobs import Job, last_words
from saga_study.runs.processes import child_environment
from saga_study.runs.slurm import Cluster, Task, exported, read_tasks
from saga_study.runs.worker import train_requested, worker_request

MAX_TIMEOUTS = 100  # of a run, until submitit takes it for one that gets nowhere
GRACE_SECONDS = 15  # from the end of a task until its files must be here: SLURM may yet requeue it, and shared disks are slow
OPTIONS = "options.json"  # beside submitit's files: what the study was submitted with, for when it is resumed


class Training(Checkpointable):
    """What a task does, and once more in its next attempt: train the run of a request file, from its checkpoint if it has one."""

    def __init__(self, request: str) -> None:
        self.request = request

    def __call__(self) -> None:
        """Train; what goes wrong stands in the run's `worker.log`, as that of a local worker."""
        log = Path(self.request).with_name("worker.log")
        try:
            train_requested(Path(self.request))
        except Exception as error:
            write_text(log, f"error: {error}\n" if isinstance(error, SagaError) else traceback.format_exc())
            raise


@dataclass
class ClusterJob(Job):
    """A missing run and the task that trains it."""

    number: str = ""  # of the task, such as 17_3
    task: Task | None = None  # as SLURM showed it last; None: it knows it no more
    seen: float = 0.0  # when it was alive, by time.monotonic
    log: Path = Path()

    def look(self, task: Task | None) -> None:
        self.task = task
        if task and task.is_alive:
            self.seen = time.monotonic()

    def is_waiting(self) -> bool:
        return self.task is not None and self.task.is_pending

    def has_ended(self) -> bool:
        if self.task and self.task.is_alive:
            return False
        has_said = is_complete(self.folder) or last_words(self.folder)[0]
        return bool(has_said) or time.monotonic() - self.seen > GRACE_SECONDS

    def stage(self) -> str:
        return super().stage() + (f" on {self.task.node}" if self.task and self.task.node else "")

    def check(self) -> None:
        """Raise the error of the ended task, if any: `SagaError` if the user can mend it, else `RunFailed`."""
        if is_complete(self.folder):
            return
        what, (last, output) = f"run {self.folder.name} ({describe(self.config)})", last_words(self.folder, self.log)
        if last.startswith("error: "):
            raise SagaError(f"{what}: {last.removeprefix('error: ')}")
        state = f" ({self.task.state})" if self.task else ""
        reason = last or "it left no log; can its node see the study's folder?"
        raise RunFailed(f"{what} failed as job {self.number}{state}: {reason} (its output: {self.log})", output)


class SlurmTasks:
    """Tasks of a SLURM array, which work on without this process; one that fails stops no other. Methods as those of `LocalWorkers`."""

    poll_seconds = 1.0
    goes_on = True

    def __init__(self, study: str, cluster: Cluster, ranks: int = 1) -> None:
        self.study, self.cluster, self.ranks, self.folder = study, cluster, ranks, cluster_folder(study)
        self.began = self.looked = time.monotonic()
        self.is_silent = False  # squeue does not answer

    def job(self, config: RunConfig, folder: Path, expected_seconds: float) -> ClusterJob:
        return ClusterJob(config, folder, expected_seconds)

    def begin(self, jobs: Sequence[ClusterJob]) -> str:
        """Find the jobs that an earlier command has submitted and submit the others; return where they are.

        Raises `SagaError` if SLURM does not answer or takes none.
        """
        known = submitted(self.folder)
        tasks = read_tasks(known[job.folder.name] for job in jobs if job.folder.name in known)
        absent = []
        for job in jobs:
            job.number = known.get(job.folder.name, "")
            job.look(tasks.get(job.number))
            if not (job.task and job.task.is_alive):
                absent.append(job)
        if absent:
            self._submit(absent)
        for job in jobs:
            job.log = self.folder / f"{job.number}_0_log.out"
        arrays = sorted({job.number.split("_")[0] for job in jobs}, key=int)
        most = f", {self.cluster.max_parallel} at a time" if self.cluster.max_parallel else ""
        found = f", {len(jobs) - len(absent)} of them submitted before" if len(absent) < len(jobs) else ""
        return f"as SLURM job {', '.join(arrays)} of partition {self.cluster.partition}{most}{found}"

    def _submit(self, jobs: Sequence[ClusterJob]) -> None:
        """Submit jobs as one array, in their order.

        Submitit's own files are the record of what was submitted: a task that does not find itself there does nothing.
        """
        write_json(self.folder / OPTIONS, asdict(self.cluster))
        requests = [job.folder / "worker.json" for job in jobs]
        for job, request in zip(jobs, requests, strict=True):
            write_json(request, worker_request(job.config, job.folder, ranks=self.ranks))
            request.with_name("worker.log").unlink(missing_ok=True)  # of an earlier attempt
        executor = SlurmExecutor(self.folder, max_num_timeout=MAX_TIMEOUTS)
        chosen = {"partition": self.cluster.partition, "gpus_per_node": self.cluster.gpus_per_node, "account": self.cluster.account}
        executor.update_parameters(
            job_name=f"saga-{self.study}", time=self.cluster.minutes, stderr_to_stdout=True,
            setup=exported(child_environment(jobs[0].config.profile)), array_parallelism=self.cluster.max_parallel or len(jobs),
            **{name: value for name, value in chosen.items() if value},
        )  # fmt: skip
        try:
            tasks = executor.submit_array([Training(str(request)) for request in requests])
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise SagaError(f"SLURM did not take the jobs: {last_line(str(error))}") from error
        for job, task in zip(jobs, tasks, strict=True):
            job.number = task.job_id
            job.look(Task("PENDING", "", ""))

    def advance(self, waiting: list[ClusterJob], active: list[ClusterJob], note: Callable[[str], None]) -> None:
        """Ask SLURM, now and then, which tasks are at work; a task that it requeued waits again."""
        now = time.monotonic()
        if now - self.looked < min(30.0, 2.0 + (now - self.began) / 20):
            return
        self.looked = now
        try:
            tasks = read_tasks(job.number for job in (*waiting, *active))
        except SagaError as error:  # a controller that is restarted comes back
            if not self.is_silent:
                note(f"{error}; waiting for it")
            self.is_silent = True
            return
        self.is_silent = False
        for job in (*waiting, *active):
            job.look(tasks.get(job.number))
        for job in [job for job in active if job.is_waiting()]:
            active.remove(job)
            waiting.append(job)
            note(f"{describe(job.config)} waits again, requeued as job {job.number} ({job.task.reason or 'no reason given'})")
        for job in [job for job in waiting if not job.is_waiting()]:
            waiting.remove(job)
            active.append(job)
            job.started, job.first_step = now, None

    def num_slots(self, active: Sequence[ClusterJob]) -> int:
        return self.cluster.max_parallel or max(1, len(active))

    def close(self, waiting: Sequence[ClusterJob], active: Sequence[ClusterJob], note: Callable[[str], None]) -> None:
        """Say how to stop what is still at work; or remove submitit's many small files, once every run that was submitted is there."""
        if waiting or active:
            resume = f"./run_all.sh --resume {self.study}"
            note(f"{len(waiting) + len(active)} jobs stay in SLURM's queue; {resume} --status shows them, {resume} --cancel ends them")
        else:
            clear(self.study)


def submitted(folder: Path) -> dict[str, str]:
    """Return the number of the last task of every run that was submitted, by the run's key, from submitit's folder."""
    numbers = {}
    ends = "_submitted.pkl"
    found = [path.name.removesuffix(ends) for path in folder.glob(f"*{ends}")]
    for number in sorted(found, key=lambda number: [int(part) for part in number.split("_")]):
        training = DelayedSubmission.load(folder / f"{number}{ends}").function
        numbers[Path(training.request).parent.name] = number
    return numbers


def clear(study: str) -> None:
    """Remove submitit's files of a study if all its runs that were submitted are finished and SLURM has no task of them left."""
    folder = cluster_folder(study)
    known, runs = submitted(folder), folder.parent / "runs"
    with suppress(SagaError):  # SLURM does not answer: they are removed another time
        if all(is_complete(runs / key) for key in known) and not any(task.is_alive for task in read_tasks(known.values()).values()):
            shutil.rmtree(folder, ignore_errors=True)
