"""Studies that are killed, interrupted, started twice or worked on beside a notebook: nothing is lost, nothing is left."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from waiting import wait_for

from saga_lib.common.errors import SagaError
from saga_lib.common.files import write_json
from saga_study.methods import make_config
from saga_study.paths import is_complete, study_folder
from saga_study.processes import lock_holder, only_one_process
from saga_study.runs import children, local, store
from saga_study.runs.children import Child, RunFailed
from saga_study.runs.packing import pack_logs
from saga_study.runs.queue import run_queue
from saga_study.runs.store import run_folder, train_or_load
from saga_study.study import execution, papermill
from saga_study.study import manifest as study_manifest
from saga_study.study.command import main

REPOSITORY = Path(__file__).resolve().parents[2]
TAKES = 'STUDY: str = "by-hand"\nPROFILE: str = "miniature"\n'
ARGUMENTS = ("smoke", "--only", "03")


def make(method="pf"):
    return make_config("smoke", "miniature_birds", method, 0)


def is_alive(process):
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "saga_study", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        **options,
    )  # fmt: skip


def only_study(results):
    (manifest,) = results.glob("*/manifest.json")
    return manifest.parent, json.loads(manifest.read_text())


def hidden(results):
    names = (".*", "worker.*", "checkpoint", "error.log")
    return sorted(str(path.relative_to(results)) for name in names for path in results.rglob(name))


@pytest.fixture
def tiny(faked, write_notebook):
    """The study with one tiny notebook, 03, which needs one run of SAGA."""
    write_notebook("03_grpo_training", TAKES, "print('ran')")
    return faked


# --------------------------------------------------------------------------------------------------------- kill


@pytest.mark.parametrize("stage", ["training", "notebook"])
def test_a_killed_study_leaves_nothing_and_goes_on_at_once(tiny, results, write_notebook, tmp_path, stage):
    cell = f"import pathlib, time\npathlib.Path({str(tmp_path / 'running')!r}).touch()\ntime.sleep(60)"
    if stage == "training":
        tiny(saga_pf="slow")
    else:
        write_notebook("03_grpo_training", TAKES, cell)
    process = start(*ARGUMENTS)
    wait_for((tmp_path / "running").exists if stage == "notebook" else lambda: list(results.glob("*/runs/*/metrics.jsonl")))
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    tiny()
    write_notebook("03_grpo_training", TAKES, "print('ran')")
    again = start("--resume", "LATEST", *ARGUMENTS[1:])  # while the children of the killed process may still be ending
    assert again.wait(120) == 0, again.stderr.read()
    assert family and not psutil.wait_procs(family, timeout=60)[1]
    folder, manifest = only_study(results)
    assert manifest["status"] == "ok" and manifest["notebooks"] == ["03_grpo_training"] and not hidden(results)


def test_a_notebook_that_ended_just_when_its_study_was_killed_is_in_the_manifest(tiny, results, capsys):
    assert main([*ARGUMENTS]) == 0
    folder, manifest = only_study(results)
    write_json(folder / "manifest.json", manifest | {"notebooks": [], "status": "running"})
    assert main(["--resume", "LATEST", *ARGUMENTS[1:]]) == 0
    assert "nothing changed, kept" in capsys.readouterr().out and only_study(results)[1]["notebooks"] == ["03_grpo_training"]


def test_each_notebook_is_in_the_manifest_as_soon_as_it_has_ended(tiny, results, write_notebook):
    read = f"import json, pathlib\n(m,) = pathlib.Path({str(results)!r}).glob('*/manifest.json')\n"
    write_notebook("99_report", TAKES, read + "print(json.loads(m.read_text())['notebooks'])")
    assert main(["smoke", "--only", "03,99"]) == 0
    assert "['03_grpo_training']" in (only_study(results)[0] / "notebooks" / "99_report.ipynb").read_text()


def test_what_was_left_behind_a_finished_run_is_removed_when_its_study_goes_on(tiny, results):
    assert main([*ARGUMENTS]) == 0
    (run,) = results.glob("*/runs/*")
    for name in ("checkpoint/state-2.safetensors", "checkpoint/counters.json", "worker.log", "worker.json", ".lock"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("{}")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for path in (run / f".evaluation.json.{dead.pid}-abc.json", run.parent.parent / "tables" / f".t.csv.{dead.pid}-x_1.csv"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    before = (run / "evaluation.json").stat().st_mtime_ns
    assert main(["--resume", "LATEST", *ARGUMENTS[1:]]) == 0
    assert not hidden(results) and (run / "evaluation.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("is_held", [False, True])
def test_the_folder_of_a_run_at_work_is_not_tidied(faked, is_held):
    folder = train_or_load(make(), "s").folder
    (folder / "worker.log").write_text("at work")
    if is_held:
        with only_one_process(folder / ".lock", "x"):
            store.tidy(folder)
    else:
        store.tidy(folder)
    assert (folder / "worker.log").exists() == is_held and not (folder / ".lock").exists()


def test_a_half_written_file_is_removed_before_a_run_is_trained(faked):
    folder = run_folder("s", make())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / f".state-2.safetensors.{dead.pid}-ab.safetensors").write_text("half")
    assert not list(train_or_load(make(), "s").folder.rglob(".*"))


# ------------------------------------------------------------------------------------------------ side by side


def test_a_study_waits_for_a_run_that_a_notebook_trains_and_takes_it(faked, capsys):
    faked(pf="slow")
    folder = run_folder("s", make())
    code = "from saga_lib.config import RunConfig; from saga_study.runs.store import train_or_load; "
    code += f"train_or_load(RunConfig.from_dict({make().to_dict()!r}), 's')"
    by_hand = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
    wait_for((folder / "metrics.jsonl").is_file)
    code = "from saga_lib.config import RunConfig; from saga_study.runs import progress, queue; progress.PLAIN_LINE_SECONDS = 0.5; "
    study = subprocess.Popen(
        [sys.executable, "-c", f"{code}queue.run_queue([RunConfig.from_dict({make().to_dict()!r})], 's', workers=1)"], cwd=REPOSITORY,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = f"waiting for process {by_hand.pid}, which trains it"
    wait_for(lambda: line in study.stderr.readline())
    (folder / "go-on").touch()
    assert by_hand.wait(120) == 0
    trained = (folder / "encoder" / "model.safetensors").stat().st_mtime_ns
    assert "1/1 miniature_birds pf seed 0 took" in study.communicate(timeout=120)[1] and study.returncode == 0
    assert (folder / "encoder" / "model.safetensors").stat().st_mtime_ns == trained and is_complete(folder)


def test_a_study_trains_a_run_itself_if_the_one_it_waited_for_is_stopped(faked):
    folder = run_folder("s", make())
    with only_one_process(folder / ".lock", "x"):
        code = "from saga_lib.config import RunConfig; from saga_study.runs.queue import run_queue; "
        study = subprocess.Popen(
            [sys.executable, "-c", f"{code}run_queue([RunConfig.from_dict({make().to_dict()!r})], 's', workers=1)"], cwd=REPOSITORY,
        )  # fmt: skip
        wait_for((folder / "worker.json").is_file)
        time.sleep(1)
        assert not is_complete(folder)
    assert study.wait(120) == 0 and is_complete(folder) and not hidden(folder)


def test_a_number_that_a_killed_process_left_is_waited_for_by_nobody(faked):
    job = local.LocalJob(make(), run_folder("s", make()), 1.0)
    job.child = type("Child", (), {"process": type("Process", (), {"pid": 7})})
    job.folder.mkdir(parents=True)
    for text, stage in ((str(os.getpid()), f"waiting for process {os.getpid()}, which trains it"), ("7", "starting"), ("", "starting")):
        (job.folder / ".lock").write_text(text)
        assert job.stage() == stage
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (job.folder / ".lock").write_text(str(dead.pid))
    assert job.stage() == "starting"


def test_a_log_that_is_being_packed_is_read_all_the_same(faked, monkeypatch):
    run = train_or_load(make(), "s")
    log, read = run.folder / "metrics.jsonl", Path.read_text

    def pack_first(path, *args, **kwargs):
        if path == log and log.is_file():
            monkeypatch.setattr(Path, "read_text", read)
            pack_logs("s")
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", pack_first)
    assert run.metrics["step"].tolist() == [1, 2, 3] and not log.exists()
    (run.folder / "metrics.json.xz").unlink()
    assert run.audit.empty and type(run)(run.folder, make()).metrics.empty


def test_studies_that_start_in_the_same_second_have_folders_of_their_own(results):
    ids = [study_manifest.reserve_folder({"study": "20261124-001557-smoke-02fee24"})["study"] for _ in range(3)]
    assert ids == ["20261124-001557-smoke-02fee24", "20261124-001557-smoke-02fee24-2", "20261124-001557-smoke-02fee24-3"]
    assert all((results / name).is_dir() for name in ids)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOTDIR])
def test_a_study_that_gets_no_folder_is_one_line(results, monkeypatch, number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(SagaError, match=f"cannot write {results}/s: {os.strerror(number)}; "):
        study_manifest.reserve_folder({"study": "s"})


def test_a_study_that_another_command_has_gone_on_with_is_not_set_back(tiny, results, capsys, monkeypatch):
    assert main([*ARGUMENTS]) == 0
    folder, manifest = only_study(results)
    found = study_manifest.find_study

    def go_on(*given):  # between reading the manifest and holding the lock
        old = found(*given)
        write_json(folder / "manifest.json", manifest | {"seeds": {"miniature_birds": [0, 5]}})
        return old

    monkeypatch.setattr("saga_study.study.command.find_study", go_on)
    assert main(["--resume", "LATEST", *ARGUMENTS[1:]]) == 2
    assert "another command has just gone on with study" in capsys.readouterr().err
    assert only_study(results)[1]["seeds"] == {"miniature_birds": [0, 5]}


# ------------------------------------------------------------------------------------------------- full disks


@pytest.mark.parametrize(("place", "number"), [
    ("remove_leftovers", errno.ENOSPC), ("remove_leftovers", errno.EDQUOT), ("remove_leftovers", errno.EACCES), ("write_text", errno.EROFS),
    ("run_queue", errno.ENOSPC), ("pack_logs", errno.ENOSPC), ("_execute_notebooks", errno.EROFS),
])  # fmt: skip
def test_wherever_the_disk_is_full_a_study_says_so_in_one_line(tiny, results, capsys, monkeypatch, number, place):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number), "/a/file")

    monkeypatch.setattr(execution, place, fail)
    assert main([*ARGUMENTS]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(said) == 1 and f"cannot write /a/file: {os.strerror(number)}; " in said[0]
    assert said[0].endswith(f"continue with ./run_all.sh smoke --resume {only_study(results)[0].name}")
    assert only_study(results)[1]["status"] == "failed"


def test_a_child_whose_log_cannot_be_written_is_explained_by_its_parent(tmp_path, monkeypatch):
    child = Child("notebook x", ["saga_study.runs", str(tmp_path / "request.json")], {}, tmp_path / "output.log", dict(os.environ))
    child.process.wait(120)
    assert child.log.read_text()
    with pytest.raises(RunFailed):
        child.check()
    child.log.write_text("")  # as on a disk that was full
    with pytest.raises(RunFailed, match="exit code 1"):
        child.check()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    child.log.write_text("")
    monkeypatch.setattr(children, "open", fail, raising=False)
    with pytest.raises(SagaError, match="notebook x: cannot write .*output.log: No space left on device; free some space"):
        child.check()


@pytest.mark.parametrize(("ename", "evalue", "is_mendable"), [
    ("SagaError", "seed 1 is missing", True), ("OSError", "[Errno 28] No space left on device", True),
    ("OSError", "[Errno 122] Disk quota exceeded", True), ("OSError", "[Errno 2] No such file", False),
    ("ValueError", "[Errno 28] x", False),
])  # fmt: skip
def test_a_cell_that_finds_the_disk_full_is_the_users_to_mend(write_notebook, tmp_path, monkeypatch, ename, evalue, is_mendable):
    from papermill.exceptions import PapermillExecutionError

    def fail(*_, **__):
        raise PapermillExecutionError(3, 1, "x", ename, evalue, [f"{ename}: {evalue}"])

    monkeypatch.setattr("papermill.execute_notebook", fail)
    with pytest.raises(SagaError if is_mendable else PapermillExecutionError, match=evalue.split("] ")[-1] if is_mendable else ename):
        papermill.execute(write_notebook("n", TAKES), tmp_path / "n.ipynb", {"STUDY": "s"}, "x", tmp_path / "scratch")


# ---------------------------------------------------------------------------------------------------- signals


def test_under_nohup_a_study_outlives_its_terminal(tiny, results):
    tiny(saga_pf="slow")
    process = start(*ARGUMENTS, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(lambda: list(results.glob("*/runs/*/metrics.jsonl")))
    process.send_signal(signal.SIGHUP)
    next(results.glob("*/runs/*/metrics.jsonl")).with_name("go-on").touch()
    assert process.wait(120) == 0 and only_study(results)[1]["status"] == "ok"


def test_an_interruption_right_at_the_start_says_how_to_go_on(tiny, results, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt("SIGTERM")

    monkeypatch.setattr(execution, "describe_left_out", interrupt)
    assert main([*ARGUMENTS]) == 143
    folder, manifest = only_study(results)
    assert capsys.readouterr().err == f"interrupted; continue with ./run_all.sh smoke --resume {folder.name}\n"
    assert manifest["status"] == "interrupted" and not hidden(results)


def test_a_worker_that_is_killed_stops_its_study_and_the_study_goes_on(tiny, results):
    tiny(saga_pf="slow")
    process = start(*ARGUMENTS)
    wait_for(lambda: list(results.glob("*/runs/*/metrics.jsonl")))
    (lock,) = results.glob("*/runs/*/.lock")
    os.kill(int(lock_holder(lock)), signal.SIGKILL)
    said = process.communicate(timeout=120)[1].splitlines()
    assert process.returncode == 1 and "was killed by SIGKILL; if memory ran out" in said[-1]
    tiny()
    again = start("--resume", "LATEST", *ARGUMENTS[1:])
    assert again.wait(120) == 0 and not hidden(results)


@pytest.mark.parametrize("whom", ["saga_study.study.papermill", "ipykernel_launcher"])
def test_a_notebook_whose_process_is_killed_leaves_nothing(tiny, results, write_notebook, tmp_path, monkeypatch, whom):
    scratch, sign = tmp_path / "tmp", tmp_path / "running"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    write_notebook("03_grpo_training", TAKES, f"import pathlib, time\npathlib.Path({str(sign)!r}).touch()\ntime.sleep(60)")
    process = start(*ARGUMENTS)
    wait_for(sign.exists)
    family = psutil.Process(process.pid).children(recursive=True)
    next(each for each in family if any(whom in part for part in each.cmdline())).kill()
    said = process.communicate(timeout=120)[1].splitlines()
    assert process.returncode == 1 and said[-1].startswith("error: notebook 03_grpo_training ")
    assert not psutil.wait_procs(family, timeout=60)[1]
    assert not hidden(results) or hidden(results) == [f"{only_study(results)[0].name}/error.log"]
    assert not [path for path in scratch.rglob("*") if path.is_file()]


def test_a_queue_leaves_no_request_behind(faked):
    run_queue([make(), make("pa")], "s", workers=2, display=io.StringIO())
    assert not hidden(study_folder("s")) and is_complete(run_folder("s", make()))


TAKE_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[2], sys.argv[2:])
"""


def start_on_terminal(hangup):
    """Start the study on a terminal of its own; return the process and the terminal. `hangup` says what SIGHUP does: SIG_DFL or SIG_IGN."""
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE_TERMINAL, hangup, sys.executable, "-m", "saga_study", *ARGUMENTS], stdin=slave, stdout=slave,
        stderr=slave, cwd=REPOSITORY, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    return process, master


def test_a_study_that_ignores_its_closed_terminal_goes_on(tiny, results):
    tiny(saga_pf="slow")
    process, terminal = start_on_terminal("SIG_IGN")  # as after `disown`
    wait_for(lambda: list(results.glob("*/runs/*/metrics.jsonl")))
    os.close(terminal)
    time.sleep(3)  # it prints its progress every second
    next(results.glob("*/runs/*/metrics.jsonl")).with_name("go-on").touch()
    assert process.wait(120) == 0 and only_study(results)[1]["status"] == "ok"


@pytest.mark.parametrize("stage", ["training", "notebook"])
def test_a_closed_terminal_interrupts_a_study_in_order(tiny, results, write_notebook, tmp_path, stage):
    sign = tmp_path / "running"
    tiny(saga_pf="slow" if stage == "training" else "")
    write_notebook("03_grpo_training", TAKES, f"import pathlib, time\npathlib.Path({str(sign)!r}).touch()\ntime.sleep(60)")
    process, terminal = start_on_terminal("SIG_DFL")
    wait_for(sign.exists if stage == "notebook" else lambda: list(results.glob("*/runs/*/metrics.jsonl")))
    time.sleep(2)  # its progress is on the terminal now
    os.close(terminal)
    code = process.wait(60)
    folder, manifest = only_study(results)
    log = folder / "error.log"
    assert (code, manifest["status"]) == (129, "interrupted"), log.read_text() if log.is_file() else ""
    assert not [path for path in hidden(results) if not Path(path).name.startswith("worker")]
