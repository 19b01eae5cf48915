"""Progress as one line that is rewritten, and durations in words."""

from __future__ import annotations

import errno
import shutil
import sys
import time
from typing import TextIO

from saga_study.processes import print_nowhere

PLAIN_LINE_SECONDS = 20  # how often progress is printed where no terminal rewrites its line


def tell(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """Print at once (on stdout by default). Once the terminal has been closed print nowhere: work that it left running goes on."""
    stream = stream or sys.stdout
    try:
        print(text, end=end, file=stream, flush=True)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        print_nowhere(stream.fileno())


class ProgressLine:
    """One line that is rewritten on a terminal, and printed now and then where there is none."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.rewrites = self.stream.isatty()
        self._shown_at, self._is_open = time.monotonic(), False

    def update(self, text: str) -> None:
        """Show `text` in place of the text before; between two updates nothing is printed, so it may be called often."""
        pause = 1.0 if self.rewrites else PLAIN_LINE_SECONDS
        if time.monotonic() - self._shown_at < pause:
            return
        self._shown_at = time.monotonic()
        if self.rewrites:
            width = shutil.get_terminal_size().columns - 1
            tell(f"\r\033[K{text[:width]}", self.stream, end="")
            self._is_open = True
        else:
            tell(text, self.stream)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self.close()
        tell(text, self.stream)

    def close(self) -> None:
        """Take the line away."""
        if self._is_open:
            tell("\r\033[K", self.stream, end="")
            self._is_open = False


def show_duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours.

    >>> show_duration(45), show_duration(700), show_duration(12600)
    ('45 s', '12 min', '3.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
