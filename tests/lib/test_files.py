"""Files and folders are whole or absent, locks outlive nobody, and processes end when they are told to or left alone."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from safetensors import SafetensorError
from waiting import wait_for

from saga_lib.common import files
from saga_lib.common.errors import SagaError
from saga_lib.common.files import append_line, remove_leftovers, write_atomically, write_text
from saga_study import processes
from saga_study.commands import exit_code
from saga_study.folders import write_folder
from saga_study.miniature import world
from saga_study.processes import only_one_process

REPOSITORY = Path(__file__).resolve().parents[2]
ROOM, WRITABLE = "free some space or choose another folder", "make it writable or choose another folder"
PLACES = [
    (errno.ENOSPC, ROOM), (errno.EDQUOT, ROOM), (errno.EFBIG, ROOM), (errno.EIO, ROOM), (errno.EACCES, WRITABLE), (errno.EPERM, WRITABLE),
    (errno.EROFS, WRITABLE),
]  # fmt: skip


def run_python(code, *arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment, text=True, **options)


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


WAYS = {  # of writing into a folder what may already be there
    "file": lambda folder, work: write_atomically(folder / "x.txt", lambda path: (path.write_text("half"), work())),
    "folder": lambda folder, work: write_folder(folder / "x", lambda made: ((made / "a").write_text("half"), work()), lambda _: False),
}


# ------------------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("number", "fix"), PLACES)
def test_what_cannot_be_written_is_one_line_and_leaves_what_was_there(tmp_path, way, number, fix):
    for before in ({}, {"x/a": "old"} if way == "folder" else {"x.txt": "old"}):
        for name, text in before.items():
            write_text(tmp_path / name, text)
        with pytest.raises(SagaError) as caught:
            WAYS[way](tmp_path, failing(number))
        said = str(caught.value)
        assert said.startswith(f"cannot write {tmp_path / 'x'}") and said.endswith(f"{os.strerror(number)}; {fix}") and "\n" not in said
        assert content(tmp_path) == before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError(), SafetensorError("I/O error: No space left on device")])
def test_whatever_interrupts_a_write_leaves_what_was_there(tmp_path, way, error):
    def fail():
        raise error

    with pytest.raises((type(error), SagaError)):
        WAYS[way](tmp_path, fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["mkdir", "os.replace", "os.fsync", "tempfile.mkstemp", "os.chmod"])
def test_every_step_of_a_write_may_fail(tmp_path, monkeypatch, call):
    write_text(tmp_path / "x.txt", "old")
    if call == "mkdir":
        monkeypatch.setattr(Path, "mkdir", failing(errno.EROFS))
    else:
        module, name = call.split(".")
        monkeypatch.setattr({"os": os, "tempfile": files.tempfile}[module], name, failing(errno.ENOSPC))
    with pytest.raises(SagaError, match="cannot write .*x.txt: "):
        write_text(tmp_path / "x.txt", "new")
    monkeypatch.undo()
    assert content(tmp_path) == {"x.txt": "old"}


def test_a_line_that_cannot_be_appended_is_one_line(tmp_path):
    append_line(tmp_path / "log", "one")
    append_line(tmp_path / "log", "två")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "one\ntvå\n"
    with pytest.raises(SagaError, match="cannot write .*nowhere.*log: No such file"):
        append_line(tmp_path / "nowhere" / "log", "x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_line_for_a_full_disk_is_one_line():
    with pytest.raises(SagaError, match="cannot write /dev/full: No space left on device; free some space"):
        append_line(Path("/dev/full"), "x")


@pytest.mark.parametrize("name", ["a.json", "a", ".hidden", "a.b.c.safetensors", "two words.csv", "Größe.txt", "12-3.txt"])
def test_what_a_killed_writer_leaves_is_removed_and_nothing_else(tmp_path, name):
    kept = {"x/.gitignore": "", ".a.json": "", "x/.5-b": "", ".x.txt.notes.txt": "", "notes.7-x.txt": ""}
    for each in kept:
        write_text(tmp_path / each, "")
    code = """
import os, sys
from pathlib import Path
from saga_lib.common.files import write_atomically
write_atomically(Path(sys.argv[1]), lambda path: (path.write_text("half"), os.kill(os.getpid(), 9)))
"""
    assert run_python(code, tmp_path / "x" / name).wait() == -signal.SIGKILL
    assert len(content(tmp_path)) == len(kept) + 1

    def look(path):
        remove_leftovers(tmp_path)
        assert path.is_file(), "the file of a living process"
        path.write_text("whole")

    write_atomically(tmp_path / "x" / "mine.txt", look)
    assert content(tmp_path) == kept | {"x/mine.txt": "whole"}


# ------------------------------------------------------------------------------------------------------ folders


def test_a_folder_is_made_once_by_those_who_want_it_at_the_same_time(tmp_path):
    made, ready = [], threading.Barrier(4)

    def make(folder):
        made.append(folder)
        time.sleep(0.5)
        (folder / "a").write_text("a")

    def want():
        ready.wait()
        assert (write_folder(tmp_path / "x", make) / "a").read_text() == "a"

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and content(tmp_path) == {"x/a": "a"}


@pytest.mark.parametrize("moment", ["making", "before the move", "after the move"])
def test_a_folder_whose_maker_was_killed_is_made_again(tmp_path, moment):
    code = """
import os, sys
from pathlib import Path
from saga_study import folders
die = lambda *_: os.kill(os.getpid(), 9)
moment = sys.argv[2]
def make(folder):
    (folder / "a").write_text("a")
    if moment == "making":
        die()
rename = Path.rename
if moment == "before the move":
    Path.rename = die
if moment == "after the move":
    Path.rename = lambda *names: (rename(*names), die())
folders.write_folder(Path(sys.argv[1]) / "x", make)
"""
    assert run_python(code, tmp_path, moment).wait() == -signal.SIGKILL
    assert list(tmp_path.glob(".x.*"))
    write_folder(tmp_path / "x", lambda folder: (folder / "a").write_text("a"))
    assert content(tmp_path) == {"x/a": "a"} and not list(tmp_path.glob(".*"))


def test_a_folder_that_is_not_whole_is_replaced(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "other").write_text("")
    for text in ("new", "newer"):
        write_folder(tmp_path / "x", lambda folder, text=text: (folder / "a").write_text(text), lambda folder: (folder / "a").is_file())
    assert content(tmp_path) == {"x/a": "new"}


@pytest.mark.parametrize(("number", "fix"), PLACES)
def test_a_benchmark_that_cannot_be_rendered_is_one_line(tmp_path, monkeypatch, number, fix):
    class Pool:
        def __init__(self, **_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        map = failing(number)

    monkeypatch.setattr(world, "ProcessPoolExecutor", Pool)
    advice = fix.replace("choose another folder", "set SAGA_DATA to another folder")
    with pytest.raises(SagaError, match=f"cannot write .*miniature_birds.*: {os.strerror(number)}; {advice}"):
        world.build_benchmark("miniature_birds", tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_nobody_renders_on_when_a_rendering_process_is_killed(tmp_path):
    code = "import sys; from pathlib import Path; from saga_study.miniature.world import build_benchmark as build; "
    process = run_python(code + "build('miniature_birds', Path(sys.argv[1]), 60)", tmp_path)
    wait_for(lambda: list(tmp_path.glob(".*.partial/images/*/*.png")))
    pool = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert pool and not psutil.wait_procs(pool, timeout=30)[1]
    with only_one_process(next(tmp_path.glob(".*.lock")), "x"):
        pass


def test_a_killed_rendering_process_is_one_line(tmp_path):
    work = "import sys; from pathlib import Path; from saga_study.commands import exit_code; "
    work += "from saga_study.miniature.world import build_benchmark as build; "
    work += "sys.exit(exit_code(lambda: build('miniature_birds', Path(sys.argv[1]), 60)))"
    process = run_python(work, tmp_path, stderr=subprocess.PIPE)
    wait_for(lambda: list(tmp_path.glob(".*.partial/images/*/*.png")))
    psutil.Process(process.pid).children(recursive=True)[0].kill()
    assert process.communicate(timeout=120)[1].startswith("error: a process that rendered images was killed") and process.returncode == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGTERM, 143)])
def test_rendering_is_interrupted_in_order_by_what_a_terminal_sends_to_all_its_processes(tmp_path, number, code):
    work = "import sys; from pathlib import Path; from saga_study.commands import exit_code; "
    work += "from saga_study.miniature.world import build_benchmark as build; "
    work += "sys.exit(exit_code(lambda: build('miniature_birds', Path(sys.argv[1]), 60)))"
    process = run_python(work, tmp_path, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: list(tmp_path.glob(".*.partial/images/*/*.png")))
    os.killpg(process.pid, number)
    assert process.communicate(timeout=60)[1] == "interrupted\n" and process.returncode == code
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------- locks


@pytest.mark.parametrize("error", [KeyboardInterrupt, SagaError, OSError(errno.ENOSPC, "full")])
def test_no_lock_stays_whatever_ends_the_work(tmp_path, error):
    with pytest.raises(type(error) if isinstance(error, Exception) else error), only_one_process(tmp_path / "lock", "x"):
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_lock_that_cannot_be_written_is_one_line_and_not_kept(tmp_path, monkeypatch, number):
    monkeypatch.setattr(Path, "write_text", failing(number))
    with pytest.raises(SagaError, match=f"cannot write .*lock: {os.strerror(number)}; "), only_one_process(tmp_path / "lock", "x"):
        pass
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    with only_one_process(tmp_path / "lock", "x"):
        pass


def test_a_lock_held_by_the_dying_children_of_a_killed_process_is_waited_for(tmp_path):
    code = """
import os, sys, time
from pathlib import Path
from saga_study.processes import only_one_process
with only_one_process(Path(sys.argv[1]), "x"):
    if os.fork() == 0:
        time.sleep(1.5)
        os._exit(0)
    os.kill(os.getpid(), 9)
"""
    holder = run_python(code, tmp_path / "lock")
    assert holder.wait() == -signal.SIGKILL
    with only_one_process(tmp_path / "lock", "x"):
        assert processes.lock_holder(tmp_path / "lock") == str(os.getpid())


def test_a_lock_held_by_nobody_we_know_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "ENDING_SECONDS", 0.3)
    with only_one_process(tmp_path / "lock", "x"):
        (tmp_path / "lock").write_text("")
        with pytest.raises(SagaError, match="y is being worked on by process unknown"), only_one_process(tmp_path / "lock", "y"):
            pass


# ------------------------------------------------------------------------------------------------------ signals

SLEEPER = """
import sys, time
from pathlib import Path
from saga_study.commands import exit_code
def work():
    Path(sys.argv[1]).touch()
    time.sleep(float(sys.argv[2]))
sys.exit(exit_code(work, "interrupted; go on with x"))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_command_that_a_signal_ends_has_its_exit_code_and_one_line(tmp_path, number, code):
    process = run_python(SLEEPER, tmp_path / "there", 60, stderr=subprocess.PIPE)
    wait_for((tmp_path / "there").exists)
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == "interrupted; go on with x\n" and process.returncode == code


def test_under_nohup_a_closed_terminal_stops_nothing(tmp_path):
    process = run_python(SLEEPER, tmp_path / "there", 1.5, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for((tmp_path / "there").exists)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0


def test_a_closed_terminal_ends_a_command_in_order(tmp_path):
    code = f"""
import fcntl, sys, termios, time
from pathlib import Path
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from saga_study.commands import exit_code
def work():
    try:
        Path({str(tmp_path / "there")!r}).touch()
        while True:
            print("x")
            print("x", file=sys.stderr)
            time.sleep(0.3)
    finally:
        print("cleaning up", flush=True)
        Path({str(tmp_path / "cleaned")!r}).touch()
sys.exit(exit_code(work))
"""
    master, slave = os.openpty()
    process = run_python(code, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    wait_for((tmp_path / "there").exists)
    os.close(master)
    assert process.wait(60) == 129 and (tmp_path / "cleaned").exists()


def test_a_process_ends_with_its_parent_even_if_it_misses_the_signal(tmp_path):
    child = "from saga_study import processes as p; import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    child += "p.ENDING_SECONDS = 0.2; p.stop_with(os.getppid()); print(os.getpid(), flush=True); time.sleep(60)"
    parent = run_python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])", stdout=subprocess.PIPE)
    number = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_for(lambda: not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(("number", "fix"), [each for each in PLACES if each[0] != errno.EIO])
def test_a_command_turns_what_it_cannot_write_into_one_line(capsys, number, fix):
    def work():
        raise OSError(number, os.strerror(number), "/a/file")

    assert exit_code(work) == 2
    assert capsys.readouterr().err == f"error: cannot write /a/file: {os.strerror(number)}; {fix}\n"


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "x"), OSError("x"), ValueError("x")])
def test_a_command_hides_no_other_error(error):
    def work():
        raise error

    with pytest.raises(type(error)):
        exit_code(work)
