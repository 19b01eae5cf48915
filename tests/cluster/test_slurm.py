"""Studies on a real SLURM of this machine: requeued, killed, interrupted, resumed; and the same tables as without a cluster.

tests/study/test_cluster.py asks a made-up SLURM about the rest.
"""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import start_slurm
from waiting import wait_for

from saga_lib.common.files import is_alive

REASON = start_slurm.why_not()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(REASON), reason=REASON)]
REPOSITORY = Path(__file__).resolve().parents[2]
TAKES = 'STUDY: str = "by-hand"\nPROFILE: str = "miniature"\n'


@pytest.fixture(scope="module")
def cluster():
    """The environment variables of a cluster; its folder has a short name, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="saga-slurm-") as folder:
        try:
            environment = start_slurm.start(Path(folder))
        except (RuntimeError, subprocess.CalledProcessError) as error:
            pytest.skip(f"SLURM does not start here: {error}")
        yield environment
        start_slurm.stop(Path(folder))


@pytest.fixture
def slurm(cluster, monkeypatch):
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def tiny(faked, write_notebook):
    """Training that takes no time, and a notebook that needs the runs of pre-trained and pf."""
    takes = f"{TAKES}DATASETS: tuple = ()\nMETHODS: tuple = ()\nSEEDS: dict = {{}}\nFULL: bool = False"
    write_notebook("05_loss_components", takes, "print(1)")
    return faked


TWO = ("--only", "05", "--methods", "pre-trained,pf")


@contextmanager
def started(*arguments, results):
    """A study in the background; what it says on stderr can be read as `said()`."""
    results.mkdir(parents=True, exist_ok=True)
    log = results / "said.txt"
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "saga_study", *arguments], stdout=output, stderr=output, cwd=REPOSITORY,
            env=os.environ | {"SAGA_RESULTS": str(results)},
        )  # fmt: skip
    process.said = lambda: log.read_text()
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def resumed(results, *arguments):
    """What a command about the latest study prints."""
    done = subprocess.run(
        [sys.executable, "-m", "saga_study", "--resume", "LATEST", *arguments], capture_output=True, text=True, cwd=REPOSITORY,
        env=os.environ | {"SAGA_RESULTS": str(results)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_of(results, method):
    """The folder of a method's run, None before it is there."""
    for path in results.glob("*/runs/*/worker.json"):
        if json.loads(path.read_text())["config"]["method"] == method:
            return path.parent
    return None


def steps(folder):
    try:
        return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError, TypeError):  # not there yet, or being cut by a resumed run
        return []


def wait_for_step(step, study, results):
    """Wait until pf is at a step; return its folder."""
    wait_for(lambda: len(steps(run_of(results, "pf"))) >= step or study.poll() is not None, 300)
    assert study.poll() is None, study.said()
    return run_of(results, "pf")


def squeue(form="%i %T"):
    done = subprocess.run(["squeue", "--noheader", "--array", f"--format={form}"], capture_output=True, text=True, check=True)
    return sorted(done.stdout.split("\n")[:-1])


def task_of(folder):
    from saga_study.runs.cluster import submitted

    return submitted(folder.parents[1] / "cluster")[folder.name]


def tables(results):
    """The files of a study's tables; the times that its runs took are left out, which differ wherever they are trained."""
    files = {path.name: path.read_bytes() for path in results.glob("*/tables/*")}
    for name in [name for name in files if name.endswith(".csv")]:
        rows = list(csv.reader(files[name].decode().splitlines()))
        kept = [i for i, title in enumerate(rows[0]) if title not in ("seconds", "seconds per run")]
        if len(kept) < len(rows[0]):
            files[name] = [[row[i] for i in kept] for row in rows]
    return files


def test_a_study_whose_task_is_requeued_has_the_tables_of_a_local_one(slurm, tmp_path):
    """Both are trained at the same time. A task gets the signal that SLURM sends before it takes a node away, in the middle of its run."""
    options = ("smoke", *TWO, "--set", "steps=40", "--set", "checkpoint_every=4")
    here, there = tmp_path / "here", tmp_path / "there"
    with started(*options, "--cluster", "slurm", "--time", "30", results=there) as distant, started(*options, results=here) as local:
        folder = wait_for_step(9, distant, there)
        subprocess.run(["scancel", "--signal=USR2", task_of(folder)], check=True)
        wait_for(lambda: f"{task_of(folder)} PENDING" in squeue())
        left = len(steps(folder))
        assert 8 < left < 40 and (folder / "checkpoint").is_dir(), distant.said()
        wait_for(lambda: f"{task_of(folder)} RUNNING" in squeue())
        seen = []
        wait_for(lambda: seen.append(steps(folder)) or len(seen[-1]) > left or distant.poll() is not None)
        assert min(map(len, seen)) >= 4, "it went on from its checkpoint"
        assert distant.wait(240) == 0, distant.said()
        assert local.wait(240) == 0, local.said()
    assert "waits again, requeued as job" in distant.said()
    assert "as SLURM job" in distant.said() and "at a time" in local.said()
    assert tables(there) == tables(here) and sum(isinstance(content, bytes) for content in tables(here).values()) >= 10
    assert not list(there.glob("*/cluster")) and not list(there.glob("*/runs/*/worker.*"))


def test_a_study_that_is_interrupted_requeued_cancelled_and_killed_ends_well(slurm, tiny, tmp_path):
    tiny(pf="slow")
    results = tmp_path / "there"
    with started("smoke", *TWO, "--cluster", "slurm", results=results) as study:
        folder = wait_for_step(2, study, results)
        number, jobs = task_of(folder), squeue("%A")
        study.send_signal(signal.SIGINT)
        assert study.wait(60) == 130
    assert "--cancel ends them" in study.said() and study.said().splitlines()[-1].startswith("interrupted; continue with ")
    assert f"{number} RUNNING" in squeue() and f"running  2/3   {os.uname().nodename}, job {number}" in resumed(results, "--status", *TWO)
    with started("--resume", "LATEST", *TWO, results=results) as study:
        wait_for(lambda: "submitted before" in study.said() or study.poll() is not None)
        assert task_of(folder) == number and set(squeue("%A")) <= set(jobs), "no run is submitted twice"
        process = (folder / ".lock").read_text()
        subprocess.run(["scontrol", "requeue", number], check=True)  # what SLURM does to pre-empted jobs of sites that send no signal
        wait_for(lambda: f"{number} PENDING" in squeue())
        wait_for(lambda: f"{number} RUNNING" in squeue() and (folder / ".lock").read_text() not in ("", process))
        study.send_signal(signal.SIGINT)
        assert study.wait(60) == 130
    assert "jobs cancelled; continue with" in resumed(results, "--cancel")
    wait_for(lambda: not squeue())
    with started("--resume", "LATEST", *TWO, results=results) as study:
        wait_for(lambda: task_of(folder) != number and wait_for_step(2, study, results) and f"{task_of(folder)} RUNNING" in squeue())
        wait_for(lambda: is_alive(int((folder / ".lock").read_text().split()[0])))
        os.kill(int((folder / ".lock").read_text().split()[0]), signal.SIGKILL)
        assert study.wait(120) == 1
    last = study.said().splitlines()[-1]
    assert f"miniature_birds pf seed 0) failed as job {task_of(folder)}" in last and "Killed" in last, last
    table = resumed(results, "--status", *TWO)
    assert f"failed  2/3   job {task_of(folder)}" in table and "2 runs: 1 done, 1 failed" in table
    tiny()
    with started("--resume", "LATEST", *TWO, results=results) as study:
        assert study.wait(120) == 0, study.said()
    assert not squeue() and not list(results.glob("*/cluster")) and not list(results.glob("*/runs/*/worker.*"))


@pytest.mark.parametrize(("arguments", "line"), [
    (["--partition", "nowhere"], "unknown partition 'nowhere'"), (["--gpus-per-node", "1"], "SLURM would refuse a job with .*gres"),
    (["--time", "1-0"], "gives a job 60 minutes at most"),
])  # fmt: skip
def test_what_the_real_slurm_would_refuse_is_one_line(slurm, tiny, tmp_path, arguments, line):
    with started("smoke", *TWO, "--cluster", "slurm", *arguments, results=tmp_path / "there") as study:
        assert study.wait(60) == 2
    assert study.said().count("\n") == 1 and re.search(line, study.said()) and not squeue()
