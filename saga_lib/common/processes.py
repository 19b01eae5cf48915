"""Processes: a lock that only one holds, ending on signals, ending with the parent process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from saga_lib.common.errors import SagaError


@contextmanager
def only_one_process(path: Path, what: str, waiting: Callable[[str], object] | None = None) -> Iterator[None]:
    """Hold a lock file that names this process. While another process holds it, wait, or raise `SagaError` if `waiting` is None.

    `what` is named in that error. `waiting` is called five times a second with the process number of the holder. The operating
    system releases the lock when its holder dies, so the file that a killed process leaves behind blocks nobody.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked:
            try:
                lock.acquire(blocking=False)
            except Timeout:
                try:
                    holder = path.read_text(encoding="utf-8").strip() or "unknown"
                except FileNotFoundError:  # its holder has just finished
                    continue
                if waiting is None:
                    raise SagaError(f"{what} is being worked on by process {holder}; wait for it or stop it") from None
                waiting(holder)
                time.sleep(0.2)
        path.write_text(str(os.getpid()), encoding="utf-8")
    except OSError as error:
        lock.release()
        raise SagaError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked: a process that opened the old file notices and makes a new one
        lock.release()


def stop_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise `KeyboardInterrupt`, as Ctrl-C does, so that cleaning up runs."""

    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupt)


def stop_with(parent: int) -> None:
    """Send this process SIGTERM within a second after its parent process ended, even if the parent was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def count_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
