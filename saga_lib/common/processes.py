"""Processes: one at a time by a lock file, stopped by signals, gone with their parent."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from saga_lib.common.errors import SagaError


@contextmanager
def only_one_process(path: Path, what: str, waiting: Callable[[str], object] | None = None) -> Iterator[None]:
    """Hold a lock file that names this process; while another living process holds it, wait, or without `waiting` raise `SagaError`.

    `waiting` is called with the other's number five times a second.

    The operating system drops the lock when its holder dies, however that happens, so that the file which a
    killed process leaves behind never blocks anybody.
    """
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            lock = open(path, "a+", encoding="utf-8")  # noqa: SIM115  (closed below; closing gives the lock up)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                lock.close()
                if waiting is not None:
                    waiting(holder)
                    time.sleep(0.2)
                    continue
                raise SagaError(f"{what} is being worked on by process {holder}; wait for it or stop it") from None
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                break
            lock.close()  # its last holder removed the file between our open and our lock: try again
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
    except OSError as error:
        raise SagaError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is given up: whoever waits notices and makes a new file
        lock.close()


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP stop this process the way Ctrl-C does, so that everything is cleaned up."""

    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupt)


def stop_with(parent: int) -> None:
    """Stop this process soon after its parent is gone, even if that was killed and could not say so."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def count_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
