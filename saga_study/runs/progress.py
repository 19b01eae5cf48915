"""Progress as one line that is rewritten, and durations in words."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

PLAIN_LINE_SECONDS = 20  # how often progress is printed where no terminal rewrites its line


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
            print(f"\r\033[K{text[:width]}", end="", file=self.stream, flush=True)
            self._is_open = True
        else:
            print(text, file=self.stream, flush=True)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self.close()
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Take the line away."""
        if self._is_open:
            print("\r\033[K", end="", file=self.stream, flush=True)
            self._is_open = False


def show_duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours.

    >>> show_duration(45), show_duration(700), show_duration(12600)
    ('45 s', '12 min', '3.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
