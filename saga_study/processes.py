"""Processes: a lock that only one holds, ending on signals, ending with the parent process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from saga_lib.common.errors import SagaError, cannot_write
from saga_lib.common.files import is_alive

ENDING_SECONDS = 5  # after a process was killed, until its children have noticed
HERE = f" on {socket.gethostname()}"  # follows the process number in a lock file: several machines may share a disk


@contextmanager
def only_one_process(path: Path, what: str, waiting: Callable[[str], object] | None = None) -> Iterator[None]:
    """Hold a lock file that names this process. While another process holds it, wait, or raise `SagaError` if `waiting` is None.

    `what` is named in that error. `waiting` is called five times a second with the holder as `_named` gives it. The operating
    system releases the lock when its holder dies, so the file that a killed process leaves behind blocks nobody; children that it
    forked hold the lock for a moment longer, for which this waits in any case.
    """
    lock = FileLock(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _acquire(lock, path, what, waiting)
            path.write_text(f"{os.getpid()}{HERE}", encoding="utf-8")
        except OSError as error:
            raise cannot_write(path, error) from error
        yield
    finally:
        if lock.is_locked:
            path.unlink(missing_ok=True)  # while it is locked: a process that opened the old file notices and makes a new one
        lock.release()


def _acquire(lock: FileLock, path: Path, what: str, waiting: Callable[[str], object] | None) -> None:
    patience = time.monotonic() + ENDING_SECONDS
    while not lock.is_locked:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            try:
                holder = _named(path) or "unknown"
            except FileNotFoundError:  # its holder has just finished
                continue
            if waiting is not None:
                waiting(holder)
            elif time.monotonic() > patience or (holder.isdecimal() and is_alive(int(holder))):
                raise SagaError(f"{what} is being worked on by process {holder}; wait for it or stop it") from None
            time.sleep(0.2)


def _named(path: Path) -> str:
    """Return the process that a lock file names: its number, followed by its machine if that is another, such as "12 on node7"."""
    return path.read_text(encoding="utf-8").strip().removesuffix(HERE)


def lock_holder(path: Path) -> str:
    """Return the process that holds a lock as its file names it (`12`, or `12 on node7`), "" if none does.

    A process that was killed leaves its name behind; on another machine its number means nothing here, so the lock itself is asked.
    """
    import fcntl

    try:
        holder = _named(path)
        if holder.isdecimal():
            return holder if is_alive(int(holder)) else ""
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the file is closed
        return ""
    except BlockingIOError:
        return holder
    except OSError:  # there is no lock
        return ""


def stop_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise `KeyboardInterrupt`, as Ctrl-C does, so that cleaning up runs; the signal's name is its argument.

    A signal that is ignored stays ignored: under `nohup`, a closed terminal stops nothing.
    """

    terminals = [number for number in (1, 2) if os.isatty(number)]  # once they are closed, they are none

    def interrupt(number: int, _frame: object) -> None:
        if number == getattr(signal, "SIGHUP", None):
            print_nowhere(*terminals)
        threading.excepthook = lambda _: None  # a pool's thread may find its processes gone: all are told to end
        raise KeyboardInterrupt(signal.Signals(number).name)

    if threading.current_thread() is threading.main_thread():  # others cannot receive signals
        for name in ("SIGTERM", "SIGHUP"):
            if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
                signal.signal(getattr(signal, name), interrupt)


def print_nowhere(*terminals: int) -> None:
    """Lead nowhere what is still printed on closed terminals (file descriptors): an error there would keep us from cleaning up."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in terminals:
        os.dup2(nowhere, number)
    os.close(nowhere)


def stop_with(parent: int) -> None:
    """Send this process SIGTERM within a second after its parent process ended, even if the parent was killed.

    SIGKILL follows if it is still there after a while: Python loses an exception that is raised while it deletes an object.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3 * ENDING_SECONDS)
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    threading.Thread(target=watch, daemon=True).start()


def serve(parent: int) -> None:
    """Make this process one of a pool's: it ends within a second after its parent, in silence, and leaves signals to it.

    Without it, a pool's processes outlive a parent that was killed, for ever, and keep the locks that it held.
    """
    for name in ("SIGINT", "SIGHUP"):  # which a terminal sends to all of a command's processes
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stop_with(parent if multiprocessing.get_start_method() == "fork" else os.getppid())  # else a server between the two


def count_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
