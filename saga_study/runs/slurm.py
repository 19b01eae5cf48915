"""What we ask SLURM, by its own commands: whether it would take our jobs, and what has become of them."""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.paths import REPOSITORY
from saga_study.runs.children import last_line

COMMANDS = ("sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel")
PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
AT_WORK = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
DAY = 24 * 60  # minutes
PATIENCE_SECONDS = 60  # with a controller that is busy
MEMORY_DISKS = ("tmpfs", "ramfs", "devtmpfs")
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")


@dataclass(frozen=True)
class Cluster:
    """Where and how the runs of a study become jobs; what is empty or 0 is left to the cluster."""

    partition: str = ""
    gpus_per_node: int = 0
    max_parallel: int = 0  # tasks at a time
    minutes: int = 0  # that SLURM gives a task before it goes on in another one; 0: as the partition allows, a day at most
    account: str = ""


@dataclass(frozen=True)
class Task:
    """One task as squeue shows it."""

    state: str  # SLURM's word
    node: str
    reason: str  # why it is pending

    @property
    def is_pending(self) -> bool:
        return self.state in PENDING

    @property
    def is_alive(self) -> bool:
        """Whether it is still to do or at work; any other state is final."""
        return self.state in PENDING + AT_WORK


def ask(*command: str) -> str:
    """Return what a command of SLURM prints. Raises `SagaError` with its last complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SagaError(f"{command[0]} does not answer: {error}") from None
    if done.returncode:
        raise SagaError(f"{command[0]} failed: {last_line(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout


def check_cluster(cluster: Cluster, folders: Iterable[Path]) -> Cluster:
    """Return a cluster with the partition's name and minutes filled in.

    Raises `SagaError` if SLURM is not here, would refuse its jobs, or if its nodes cannot see one of the `folders`. Submits nothing.
    """
    for name in COMMANDS:
        if shutil.which(name) is None:
            raise SagaError(f"--cluster slurm needs {name}, which is not on this machine; start from a login node of the cluster")
    partition, limit = _partition(cluster.partition)
    for folder in folders:
        _check_shared(folder, partition)
    if limit and cluster.minutes > limit:
        raise SagaError(f"--time: partition {partition} gives a job {limit} minutes at most, not {cluster.minutes}; runs go on in another")
    minutes = cluster.minutes or min(limit or DAY, DAY)
    chosen = Cluster(partition, cluster.gpus_per_node, cluster.max_parallel, minutes, cluster.account)
    options = [f"--partition={partition}", f"--time={minutes}"]
    options += [f"--account={cluster.account}"] if cluster.account else []
    options += [f"--gpus-per-node={cluster.gpus_per_node}"] if cluster.gpus_per_node else []
    try:
        ask("sbatch", "--test-only", *options, "--wrap=true")
    except SagaError as error:
        raise SagaError(f"SLURM would refuse a job with {' '.join(options)}: {error}") from None
    return chosen


def _partition(name: str) -> tuple[str, int]:
    """Return the name of a partition, the default one for "", and the minutes it gives a job, 0 without limit."""
    lines = [line.split("|") for line in ask("sinfo", "--noheader", "--format=%P|%l|%a").splitlines() if line.count("|") == 2]
    known = {each.removesuffix("*"): (limit, state) for each, limit, state in lines}
    default = next((each[:-1] for each, _, _ in lines if each.endswith("*")), "")
    if not name and not default:
        raise SagaError(f"this cluster has no default partition: add --partition, one of {', '.join(known) or 'none'}")
    if (name or default) not in known:
        raise unknown_name("partition", name, known)
    limit, state = known[name or default]
    if state != "up":
        raise SagaError(f"partition {name or default} is {state}: no job starts there; choose another --partition, of {', '.join(known)}")
    return name or default, to_minutes(limit) or 0


def to_minutes(text: str) -> int | None:
    """Return a time as SLURM writes it (90, 1:30:00, 2-12:00:00; minutes, or hours and days with a colon or dash) in minutes, or None.

    >>> to_minutes("90"), to_minutes("1:30:00"), to_minutes("2-12:00:00"), to_minutes("2-12"), to_minutes("infinite")
    (90, 90, 3600, 3600, None)
    """
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in [*parts, days or "0"]) or len(parts) > 3 or text.startswith("-"):
        return None
    if dash:
        parts = [*parts, "0", "0"][:3]
    elif len(parts) < 3:
        parts = ["0", *parts, "0"][:3]
    hours, minutes, seconds = map(int, parts)
    return int(days or 0) * DAY + hours * 60 + minutes + (seconds > 0)


def _check_shared(folder: Path, partition: str) -> None:
    """Raise `SagaError` for a folder that only this machine has, unless this machine is all there is of the partition."""
    folder = folder.resolve()
    kind = disk_of(folder)
    private = "is in the memory of this machine" if kind in MEMORY_DISKS else ""
    if any(folder.is_relative_to(place) for place in (*TEMPORARY, tempfile.gettempdir())):
        private = private or "is a temporary folder, of which every machine has its own"
    here = socket.gethostname()
    if private and {*ask("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%n").split()} - {here, here.split(".")[0]}:
        raise SagaError(f"{folder} {private}: the nodes of partition {partition} cannot see it; take one on a disk that all share")


def disk_of(folder: Path) -> str:
    """Return the kind of file system that a folder is on, or will be, such as nfs4 or tmpfs; "" if unknown."""
    import psutil

    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[str(place)] for place in (folder, *folder.parents) if str(place) in mounts), "")


def read_tasks(numbers: Iterable[str]) -> dict[str, Task]:
    """Return the tasks that SLURM still knows, of those with some numbers such as 17_3; the finished are forgotten after a while.

    Raises `SagaError` if squeue does not answer.
    """
    numbers = set(numbers)
    if not numbers:
        return {}
    jobs = ",".join(sorted({number.split("_")[0] for number in numbers}))
    try:
        lines = ask("squeue", "--noheader", "--array", "--states=all", f"--jobs={jobs}", "--format=%i|%T|%N|%r").splitlines()
    except SagaError as error:
        if "Invalid job id" not in str(error):
            raise
        lines = []  # all forgotten
    shown = [line.split("|", 3) for line in lines if line.count("|") >= 3]
    return {number: Task(state, node, reason) for number, state, node, reason in shown if number in numbers}


def cancel(numbers: Sequence[str]) -> None:
    """Cancel some tasks. Raises `SagaError` if scancel fails."""
    if numbers:
        ask("scancel", *numbers)


def exported(environment: dict[str, str]) -> list[str]:
    """Return the lines of a job's script that give it what matters of an environment, but no secrets; the rest is up to the cluster."""
    names = ("PYTHONPATH", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    wanted = {name: value for name, value in sorted(environment.items()) if name in names or name.startswith("SAGA_")}
    if environment.get("CUDA_VISIBLE_DEVICES") == "":  # --cpu
        wanted["CUDA_VISIBLE_DEVICES"] = ""
    return [f"export {name}={shlex.quote(value)}" for name, value in wanted.items()] + [f"cd {shlex.quote(str(REPOSITORY))} || exit 1"]
