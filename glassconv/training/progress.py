"""A progress bar with an estimate of the time that remains, for terminals; a line now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

__all__ = ["ProgressBar"]

_REDRAW_SECONDS = 0.1
_N_LINES = 10
_BAR_WIDTH = 24


class ProgressBar:
    """Progress of ``total`` equal pieces of work, on stderr.

    On a terminal one line is redrawn; elsewhere (a log file) about ten lines are written in all.

    Args:
        label: what is going on.
        total: pieces of work.
        done: pieces that were done before, by an earlier run: they do not enter the estimate.
        stream: default ``sys.stderr``.
    """

    def __init__(self, label: str, total: int, *, done: int = 0, stream: TextIO | None = None) -> None:
        self._label = label
        self._total = max(total, 1)
        self._before = done
        self._done = done
        self._note = ""
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._start = time.monotonic()
        self._drawn = -1.0
        self._tenth = done * _N_LINES // self._total
        self._open = False

    def update(self, done: int, note: str | None = None) -> None:
        """Set the number of pieces done, and a note to show beside it."""
        self._done = min(done, self._total)
        self._note = self._note if note is None else note
        if self._terminal:
            now = time.monotonic()
            if now - self._drawn >= _REDRAW_SECONDS or self._done == self._total:
                self._drawn = now
                self._draw()
        elif self._done * _N_LINES // self._total > self._tenth:
            self._tenth = self._done * _N_LINES // self._total
            self._stream.write(f"{self._label}: {self._text()}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the line, so that what follows stands below it. May be called again."""
        if self._open:
            self._draw()
            self._stream.write("\n")
            self._stream.flush()
            self._open = False

    def _draw(self) -> None:
        filled = _BAR_WIDTH * self._done // self._total
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r{f'{self._label} [{bar}] {self._text()}'[:width]:<{width}}")
        self._stream.flush()
        self._open = True

    def _text(self) -> str:
        elapsed = time.monotonic() - self._start
        text = f"{100 * self._done // self._total:3d} % after {duration(elapsed)}"
        if self._before < self._done < self._total:
            remaining = elapsed * (self._total - self._done) / (self._done - self._before)
            text += f", {duration(remaining)} left"
        return f"{text}; {self._note}" if self._note else text


def duration(seconds: float) -> str:
    """Seconds as ``42s``, ``3m07s`` or ``2h05m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
