"""The one exception this library raises for mistakes that the user can mend, and its messages."""

import difflib
import errno
from collections.abc import Iterable

MANY = 100  # names that a message does not list
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room for what is written
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)  # we may not write there


class SagaError(Exception):
    """A mistake the user can mend: one readable line naming what is wrong and the fix."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))  # names of files, classes and models are whatever people give them

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook, in place of a traceback."""
        return [f"error: {self}"]


def cannot_write(path: object, error: Exception, otherwise: str = "choose another folder") -> SagaError:
    """Return (not raise) the error for a file or folder that could not be written: why, and what to do about it or `otherwise`."""
    fix = "make it writable" if getattr(error, "errno", None) in CLOSED else "free some space"
    return SagaError(f"cannot write {path}: {getattr(error, 'strerror', None) or first_line(error)}; {fix} or {otherwise}")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> SagaError:
    """Return (not raise) the error for a `name` that is not among `known`, with the closest match; of many names, the closest three.

    `kind` says what the name names, e.g. "dataset" or "DML loss".
    """
    known = sorted(known)
    by_lower = {k.lower(): k for k in known}
    if len(known) > MANY:
        closest = difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0)
        three = ", ".join(by_lower[one] for one in closest)
        return SagaError(f"unknown {kind} {str(name)[:100]!r}: the closest of the {len(known):,} known are {three}")
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    hint = f"did you mean {by_lower[close[0]]!r}? " if close else ""
    return SagaError(f"unknown {kind} {name!r}: {hint}known: {', '.join(known) or 'none'}")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(text: str) -> str:
    """Return a text with escapes such as \\n and \\x1b for what is not printable: line breaks, terminal controls, broken Unicode."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
