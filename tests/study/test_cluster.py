"""Runs on a cluster, with commands of a made-up SLURM: what is refused, submitted, shown. tests/cluster has a real one."""

import os
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from saga_lib.common.errors import SagaError
from saga_study.methods import make_config
from saga_study.paths import cluster_folder, is_complete, study_folder
from saga_study.processes import lock_holder, only_one_process
from saga_study.runs import cluster as cluster_module
from saga_study.runs import slurm
from saga_study.runs.children import RunFailed
from saga_study.runs.cluster import ClusterJob, SlurmTasks, Training, clear, submitted
from saga_study.runs.slurm import Cluster, Task, to_minutes
from saga_study.runs.status import describe_status, study_status, tasks_alive
from saga_study.runs.store import run_folder, train_or_load
from saga_study.study import execution
from saga_study.study.command import main

TAKES = 'STUDY: str = "by-hand"\nPROFILE: str = "miniature"\n'
CLUSTER = Cluster("short", 0, 2, 60, "lab")
COMMANDS = {
    "sinfo": 'case "$*" in *--Node*) cat "$FAKE/nodes";; *) cat "$FAKE/partitions";; esac',
    "sbatch": 'case "$*" in *--account=nobody*) echo "sbatch: error: Invalid account" >&2; exit 1;; *--test-only*) ;;\n'
    '*) echo "$@" >>"$FAKE/submitted"; echo "Submitted batch job $((16 + $(wc -l <"$FAKE/submitted")))";; esac',
    "squeue": 'cat "$FAKE/queue"',
    "scancel": 'echo "$@" >>"$FAKE/cancelled"',
    "scontrol": "", "srun": "",
}  # fmt: skip


def make(method="pf", seed=0):
    return make_config("smoke", "miniature_birds", method, seed)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder of files that the made-up SLURM reads (partitions, nodes, queue) and writes (submitted, cancelled)."""
    folder = tmp_path / "fake"
    folder.mkdir()
    for name, script in COMMANDS.items():
        command = folder / name
        command.write_text(f"#!/bin/bash\n{script}\n")
        command.chmod(0o755)
    (folder / "partitions").write_text("short*|1:00:00|up\nlong|infinite|up\nold|2-00:00:00|down\n")
    (folder / "nodes").write_text("n1\nn2\n")
    (folder / "queue").write_text("")
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def shared(monkeypatch):
    """Temporary folders count as shared: the test's own are such."""
    monkeypatch.setattr(slurm, "_check_shared", lambda *_: None)


@pytest.fixture
def tiny(faked, write_notebook):
    write_notebook("03_grpo_training", TAKES, "print('ran')")
    return faked


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(("arguments", "line"), [
    (["--partition", "short"], "--partition is for runs on a cluster: add --cluster slurm"),
    (["--gpus-per-node", "1"], "--gpus-per-node is for runs on a cluster"),
    (["--cluster", "local", "--time", "60"], "--time is for runs on a cluster"),
    (["--cluster", "slurn"], "did you mean 'slurm'"),
    (["--cluster", "slurm", "--partition", "shrot"], "unknown partition 'shrot': did you mean 'short'"),
    (["--cluster", "slurm", "--partition", "old"], "partition old is down"),
    (["--cluster", "slurm", "--partition", "--x"], "expected one argument"),
    (["--cluster", "slurm", "--partition="], "--partition takes a name, got ''"),
    (["--cluster", "slurm", "--account", "nobody"], "SLURM would refuse a job with .*--account=nobody: sbatch failed: .*Invalid account"),
    (["--cluster", "slurm", "--time", "soon"], "--time takes minutes such as 480, .* got 'soon'"),
    (["--cluster", "slurm", "--time", "0"], "--time takes minutes"),
    (["--cluster", "slurm", "--time", "1:00:01"], "partition short gives a job 60 minutes at most, not 61"),
    (["--cluster", "slurm", "--max-parallel", "0"], "--max-parallel takes a number of at least 1, got '0'"),
    (["--cluster", "slurm", "--gpus-per-node", "-1"], "--gpus-per-node"),
    (["--status"], "--status needs the study: add --resume STUDY"),
    (["--cancel"], "--cancel needs the study: add --resume STUDY"),
    (["--status", "--list"], "--status and --list each do one thing and stop: choose one"),
    (["--list", "--dry-run"], "--list and --dry-run each do one thing and stop: choose one"),
    (["--status", "--resume", "s", "--workers", "2"], "--workers has no effect with --status: leave it out"),
    (["--cancel", "--resume", "s", "--track", "wandb"], "--track has no effect with --cancel: leave it out"),
    (["--list", "--track", "tensorboard"], "--track has no effect with --list: leave it out"),
])  # fmt: skip
def test_a_mistake_is_one_line_before_anything_is_submitted(tiny, fake, shared, results, capsys, arguments, line):
    assert main(["smoke", "--only", "03", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert re.search(line, said), said
    assert not (fake / "submitted").exists() and not results.exists()


def test_without_slurm_it_is_one_line(tiny, fake, results, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(fake.parent / "nothing"))
    assert main(["smoke", "--only", "03", "--cluster", "slurm"]) == 2
    assert "--cluster slurm needs sbatch, which is not on this machine" in capsys.readouterr().err and not results.exists()


def test_a_cluster_that_does_not_answer_or_has_no_default_partition(fake, monkeypatch):
    (fake / "partitions").write_text("long|infinite|up\n")
    with pytest.raises(SagaError, match="no default partition: add --partition, one of long"):
        slurm.check_cluster(Cluster(), [])
    (fake / "sinfo").write_text("#!/bin/bash\necho 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1\n")
    with pytest.raises(SagaError, match="sinfo failed: slurm_load_partitions: Unable to contact"):
        slurm.check_cluster(Cluster(), [])
    (fake / "squeue").write_text("#!/bin/bash\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n")
    assert slurm.read_tasks(["17_0"]) == {}
    (fake / "squeue").write_text("#!/bin/bash\nsleep 9\n")
    monkeypatch.setattr(slurm, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(SagaError, match="squeue does not answer"):
        slurm.read_tasks(["17_0"])


@pytest.mark.parametrize(("folder", "disk", "line"), [
    ("/tmp/results", "ext4", "is a temporary folder"), ("/dev/shm/results", "tmpfs", "is in the memory of this machine"),
    ("/mnt/fast/results", "tmpfs", "is in the memory"), ("/home/x/results", "nfs4", ""), ("/home/x/results", "ext4", ""),
])  # fmt: skip
def test_a_folder_that_nodes_do_not_share_is_refused(fake, monkeypatch, folder, disk, line):
    monkeypatch.setattr(slurm, "disk_of", lambda _: disk)
    if line:
        with pytest.raises(SagaError, match=f"{folder} {line}.*: the nodes of partition short cannot see it"):
            slurm.check_cluster(Cluster(), [Path(folder)])
        (fake / "nodes").write_text(socket.gethostname())  # a cluster of this machine alone
    assert slurm.check_cluster(Cluster(), [Path(folder)]) == Cluster("short", minutes=60)
    assert slurm.check_cluster(Cluster("long"), []).minutes == slurm.DAY


def test_the_disk_of_a_folder_that_is_yet_to_be_made(tmp_path):
    assert slurm.disk_of(tmp_path / "a" / "b") == slurm.disk_of(tmp_path) != ""


def test_times_are_as_slurm_writes_them():
    times = {"90": 90, "5:30": 6, "1:30:00": 90, "1-12": 36 * 60, "2-0:30": 48 * 60 + 30, "1-00:00:01": 24 * 60 + 1}
    times |= {"infinite": None, "": None, "-5": None, "1:2:3:4": None, "x-1": None}
    assert {text: to_minutes(text) for text in times} == times


def test_at_the_papers_scale_only_the_nodes_need_gpus(fake, capsys):
    arguments = ["paper", "--only", "05", "--datasets", "cub200", "--methods", "pre-trained,pf", "--dry-run"]
    for more, needs_gpu in (([], True), (["--cluster", "slurm"], False)):
        assert main([*arguments, *more]) == 2, "its dataset is not here"
        said = capsys.readouterr().out
        assert ("needs a CUDA GPU" in said) == needs_gpu and "cub200" in said
    assert main(["paper", *arguments[1:-1], "--list", "--cluster", "slurm", "--max-parallel", "2"]) == 0
    assert " 2 at a time" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------- submitted


def begin(*configs):
    """Submit runs of study s, as far as they have not been; return the engine, its jobs and what it says."""
    engine = SlurmTasks("s", CLUSTER)
    jobs = [engine.job(config, run_folder("s", config), 60.0) for config in configs]
    return engine, jobs, engine.begin(jobs)


def test_runs_are_tasks_of_one_array_and_none_is_submitted_twice(faked, fake, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    configs = [make("pf"), make("pa")]
    _, jobs, said = begin(*configs)
    assert said == "as SLURM job 17 of partition short, 2 at a time" and [job.number for job in jobs] == ["17_0", "17_1"]
    (script,) = [path.read_text() for path in cluster_folder("s").glob("[!.]*.sh")]
    for line in ("#SBATCH --array=0-1%2", "#SBATCH --partition=short", "#SBATCH --time=60", "#SBATCH --account=lab",
                 "export OMP_NUM_THREADS=1", "export HF_HUB_OFFLINE=1", f"export SAGA_RESULTS={os.environ['SAGA_RESULTS']}"):  # fmt: skip
        assert line in script.splitlines()
    assert "secret" not in script and "gpus" not in script
    (fake / "queue").write_text("17_0|RUNNING|n1|None\n17_1|PENDING||Priority\n")
    _, again, said = begin(make("pf", 1), *configs)
    assert said == "as SLURM job 17, 18 of partition short, 2 at a time, 2 of them submitted before"
    assert [job.number for job in again] == ["18", "17_0", "17_1"] and len((fake / "submitted").read_text().splitlines()) == 2
    (fake / "queue").write_text("17_0|FAILED|n1|None\n17_1|CANCELLED|n1|None\n")
    assert [job.number for job in begin(*configs)[1]] == ["19_0", "19_1"], "what has ended is submitted again"
    assert submitted(cluster_folder("s")) == {run_folder("s", config).name: f"19_{i}" for i, config in enumerate(configs)} | {
        run_folder("s", make("pf", 1)).name: "18"
    }


def test_a_refused_submission_is_one_line(faked, fake):
    (fake / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1\n")
    with pytest.raises(SagaError, match="SLURM did not take the jobs: .*QOSMaxSubmitJobPerUserLimit") as caught:
        begin(make("pf"), make("pa"))
    assert "\n" not in str(caught.value)


def test_a_task_trains_its_run_or_says_what_was_wrong(faked, fake):
    (job,) = begin(make())[1]
    task = Training(str(job.folder / "worker.json"))
    assert pickle.loads(pickle.dumps(task)).request == task.request and task.checkpoint().function is task
    job.look(None)
    faked(pf="crash")
    with pytest.raises(ZeroDivisionError):
        task()
    with pytest.raises(RunFailed, match="pf seed 0.* failed as job 17: ZeroDivisionError: the loss divided by nothing"):
        job.check()
    faked(pf="mend")
    with pytest.raises(SagaError):
        task()
    with pytest.raises(SagaError, match="pf seed 0.: image x.png cannot be read; replace or remove it"):
        job.check()
    faked()
    task()
    job.finish()
    assert is_complete(job.folder) and not list(job.folder.glob("worker.*"))


def test_the_queue_follows_what_slurm_says(faked, fake, monkeypatch):
    monkeypatch.setattr(cluster_module, "GRACE_SECONDS", 0)
    engine, jobs, _ = begin(make("pf"), make("pa"))
    waiting, active, notes = list(jobs), [], []

    def look(text):
        (fake / "queue").write_text(text)
        engine.looked = -1e9
        engine.advance(waiting, active, notes.append)
        return [job.config.method for job in waiting], [job.config.method for job in active]

    assert look("17_0|RUNNING|n1|None\n17_1|PENDING||Priority\n") == (["pa"], ["pf"])
    assert not jobs[0].has_ended() and jobs[0].stage() == "starting on n1" and not notes
    assert look("17_0|PENDING||BeginTime\n17_1|RUNNING|n2|None\n") == (["pf"], ["pa"])
    assert notes == ["miniature_birds pf seed 0 waits again, requeued as job 17_0 (BeginTime)"]
    (fake / "squeue").rename(fake / "gone")
    (fake / "squeue").write_text("#!/bin/bash\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    (fake / "squeue").chmod(0o755)
    assert look("") == (["pf"], ["pa"]) == look("") and len(notes) == 2 and "waiting for it" in notes[1]
    (fake / "gone").rename(fake / "squeue")
    assert look("17_0|RUNNING|n1|None\n17_1|OUT_OF_MEMORY|n2|None\n") == ([], ["pa", "pf"])
    assert jobs[1].has_ended() and not jobs[0].has_ended()
    jobs[1].log.write_text("slurmstepd: error: Detected 1 oom_kill event\n")
    with pytest.raises(RunFailed, match=r"failed as job 17_1 \(OUT_OF_MEMORY\): slurmstepd: error: Detected 1 oom_kill event"):
        jobs[1].finish()
    engine.close(waiting, active, notes.append)
    assert notes[-1].startswith("2 jobs stay in SLURM's queue; ./run_all.sh --resume s --status") and cluster_folder("s").is_dir()
    look("")
    with pytest.raises(RunFailed, match="it left no log; can its node see the study's folder"):
        jobs[0].check()


def test_submitits_files_are_removed_once_all_runs_are_there(faked, fake):
    begin(make("pf"), make("pa"))
    train_or_load(make("pf"), "s")
    clear("s")
    assert cluster_folder("s").is_dir(), "pa is not there"
    train_or_load(make("pa"), "s")
    (fake / "queue").write_text("17_1|COMPLETING|n1|None\n")
    clear("s")
    assert cluster_folder("s").is_dir(), "a task still writes"
    (fake / "queue").write_text("17_1|COMPLETED|n1|None\n")
    clear("s")
    assert not cluster_folder("s").exists()


# ------------------------------------------------------------------------------------------------------ status


def test_status_says_what_became_of_every_run(faked, fake):
    configs = [make(method) for method in ("pf", "pa", "ms", "saga_pf", "pf_kl", "oracle")]
    train_or_load(configs[0], "s")
    _, jobs, _ = begin(*configs[1:5])
    (jobs[0].folder / "metrics.jsonl").write_text('{"step": 3, "steps": 9}\n{"st')
    (jobs[2].folder / "worker.log").write_text("Traceback\nValueError: no proxies\n")
    jobs[3].log.write_text("srun: error: n1: task 0: Killed\n\n")
    (fake / "queue").write_text("17_0|RUNNING|n1|None\n17_1|PENDING||Resources\n17_2|FAILED|n1|None\n")
    lines = [line.split("  ") for line in describe_status("s", configs).splitlines()]
    table = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}
    assert table == {
        "run": ["state", "step", "where"],
        "miniature_birds pf seed 0": ["done"],
        "miniature_birds pa seed 0": ["running", "3/9", "n1, job 17_0"],
        "miniature_birds ms seed 0": ["waiting", "job 17_1", "Resources"],
        "miniature_birds saga_pf seed 0": ["failed", "job 17_2", "ValueError: no proxies"],
        "miniature_birds pf_kl seed 0": ["failed", "job 17_3", "srun: error: n1: task 0: Killed"],
        "miniature_birds oracle seed 0": ["waiting"],
        "6 runs: 1 done, 1 running, 2 waiting, 2 failed": [],
    }
    assert tasks_alive("s") == ["17_0", "17_1"]


def test_status_of_local_workers(faked):
    folder = run_folder("s", make())
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 3, "steps": 9}\n')
    with only_one_process(folder / ".lock", "x"):
        (row,) = study_status("s", [make()])
    assert (row.state, row.step, row.place) == ("running", "3/9", f"process {os.getpid()}")
    for said, state, detail in (("interrupted\n", "waiting", "stopped"), ("", "waiting", "stopped"), ("error: full\n", "failed", "full")):
        (folder / "worker.log").write_text(said)
        (row,) = study_status("s", [make()])
        assert (row.state, row.detail) == (state, detail)


def test_status_and_cancel_of_a_study(tiny, fake, shared, results, capsys):
    assert main(["smoke", "--only", "03"]) == 0
    (folder,) = [path.parent for path in results.glob("*/manifest.json")]
    capsys.readouterr()
    assert main(["--resume", "LATEST", "--only", "03", "--status"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "1 runs: 1 done" and said[1].endswith("done")
    assert main(["--resume", "LATEST", "--cancel"]) == 2
    assert "has no job in SLURM's queue" in capsys.readouterr().err
    engine = SlurmTasks(folder.name, CLUSTER)
    jobs = [engine.job(config, run_folder(folder.name, config), 1.0) for config in (make("pf"), make("pa"))]
    engine.begin(jobs)
    (fake / "queue").write_text("17_0|RUNNING|n1|None\n17_1|PENDING||Resources\n")
    assert main(["--resume", "LATEST", "--cluster", "local"]) == 2
    assert "has 2 jobs on the cluster: leave --cluster local out" in capsys.readouterr().err
    assert main(["--resume", "LATEST", "--cancel"]) == 0
    assert (fake / "cancelled").read_text() == "17_0 17_1\n" and capsys.readouterr().out.startswith("2 jobs cancelled; continue with ")


def test_a_resumed_study_goes_on_where_it_was_submitted(tiny, fake, shared, results, monkeypatch):
    asked = []
    monkeypatch.setattr(execution, "run_queue", lambda *_, cluster, **_more: asked.append(cluster))
    monkeypatch.setattr(execution, "_execute_notebooks", lambda *_: None)
    assert main(["smoke", "--only", "03", "--cluster", "slurm", "--time", "45", "--max-parallel", "3"]) == 0
    (folder,) = [path.parent for path in results.glob("*/manifest.json")]
    begun = SlurmTasks(folder.name, asked[0])
    begun.begin([begun.job(make(), run_folder(folder.name, make()), 1.0)])
    assert main(["--resume", "LATEST", "--only", "03"]) == 0
    assert main(["--resume", "LATEST", "--only", "03", "--partition", "long"]) == 0
    assert main(["--resume", "LATEST", "--only", "03", "--cluster", "local"]) == 0
    assert asked == [Cluster("short", 0, 3, 45), Cluster("short", 0, 3, 45), Cluster("long", 0, 3, 45), None]


def test_files_that_nodes_write_are_not_taken_for_leftovers(tiny, fake, shared, results, monkeypatch):
    for name in ("run_queue", "pack_logs", "_execute_notebooks"):
        monkeypatch.setattr(execution, name, lambda *_, **__: None)
    assert main(["smoke", "--only", "03", "--cluster", "slurm"]) == 0
    (folder,) = [path.parent for path in results.glob("*/manifest.json")]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = f".x.json.{dead.pid}-abc.json"
    places = [folder / "runs" / "unfinished", folder / "runs" / "finished", folder / "tables"]
    for place in places:
        place.mkdir(parents=True)
        (place / name).write_text("half")
    (places[1] / "evaluation.json").write_text("{}")
    assert main(["--resume", "LATEST", "--only", "03", "--cluster", "slurm"]) == 0
    assert [(place / name).exists() for place in places] == [True, False, False]
    assert main(["--resume", "LATEST", "--only", "03", "--cluster", "local"]) == 0
    assert not (places[0] / name).exists()


# ------------------------------------------------------------------------------------------------------- locks


def test_a_lock_names_its_machine_and_old_ones_are_read(tmp_path):
    path = tmp_path / "lock"
    assert lock_holder(path) == ""
    with only_one_process(path, "x"):
        assert path.read_text() == f"{os.getpid()} on {socket.gethostname()}" and lock_holder(path) == str(os.getpid())
    path.write_text(str(os.getpid()))  # as it was written before
    assert lock_holder(path) == str(os.getpid())
    path.write_text(f"{os.getpid()} on elsewhere")  # its process was killed: nobody holds the lock, though here is one of that number
    assert lock_holder(path) == "" and path.read_text()
    with only_one_process(path, "x"):
        path.write_text("12 on elsewhere")
        assert lock_holder(path) == "12 on elsewhere"
        job = ClusterJob(make(), study_folder("s"), 1.0, task=Task("RUNNING", "elsewhere", ""))
        assert job.stage() == "starting on elsewhere"
