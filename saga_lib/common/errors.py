"""The one exception this library raises for mistakes that the user can mend, and what a command makes of it."""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable

MENDABLE, INTERRUPTED = 2, 130  # exit codes


class SagaError(Exception):
    """A mistake the user can mend: one readable line naming what is wrong and the fix."""


class CommandLine(argparse.ArgumentParser):
    """A parser whose complaints are one-line `SagaError`s that name the command's `--help`."""

    def error(self, message: str) -> None:
        raise SagaError(f"{message}; see {self.prog} --help")


def exit_code(work: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Do the work of a command and return its exit code: what it returns or 0, 2 after a `SagaError`, 130 after Ctrl-C.

    One line on stderr says what was wrong, or `interrupted`.
    """
    try:
        return work() or 0
    except SagaError as error:
        print(f"error: {error}", file=sys.stderr)
        return MENDABLE
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED


def unknown_name(kind: str, name: str, known: Iterable[str]) -> SagaError:
    """Return (not raise) the error for a `name` that is not among `known`, with the closest match.

    `kind` says what the name names, e.g. "dataset" or "DML loss".
    """
    known = sorted(known)
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    hint = f"did you mean {by_lower[close[0]]!r}? " if close else ""
    return SagaError(f"unknown {kind} {name!r}: {hint}known: {', '.join(known) or 'none'}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
