"""What every command has in common: its options' complaints and its exit codes."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable

from saga_lib.common.errors import CLOSED, FULL, SagaError, cannot_write
from saga_study.processes import stop_on_signals

MENDABLE, INTERRUPTED = 2, 128  # exit codes; the number of the signal is added to the second


class CommandLine(argparse.ArgumentParser):
    """A parser whose complaints are one-line `SagaError`s that name the command's `--help`."""

    def error(self, message: str) -> None:
        raise SagaError(f"{message}; see {self.prog} --help")


def exit_code(work: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Do the work of a command and return its exit code: what it returns or 0, 2 after a `SagaError`, that of a signal.

    One line on stderr says what was wrong, or `interrupted`. A full disk and a place that cannot be written count as `SagaError`s.
    """
    stop_on_signals()
    try:
        return work() or 0
    except SagaError as error:
        print(f"error: {error}", file=sys.stderr)
        return MENDABLE
    except OSError as error:
        if error.errno not in FULL + CLOSED:
            raise
        print(f"error: {cannot_write(error.filename or 'a file', error)}", file=sys.stderr)
        return MENDABLE
    except KeyboardInterrupt as interrupt:
        print(interrupted, file=sys.stderr)
        return interrupted_code(interrupt)


def interrupted_code(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code of a command that a signal ended, as shells have it: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    `saga_study.processes.stop_on_signals` notes the signal's name in the exception.
    """
    name = str(interrupt) or "SIGINT"
    return INTERRUPTED + getattr(signal, name, signal.SIGINT)
