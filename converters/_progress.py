"""One line of progress on a terminal."""

from __future__ import annotations

import shutil
import time
from typing import TextIO

_REDRAW_SECONDS = 0.1
_BAR_CELLS = 24
_MB = 1e6


class ProgressBar:
    """Draws bar, percent, MB/s, time left and the current tensor over one line.

    Silent when the stream is no terminal, so that a log does not fill up with it.
    """

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        """Prepares a bar.

        Args:
            stream: Where to draw, as a rule stderr.
            quiet: Draw nothing, on a terminal either.
        """
        self._stream = stream
        self._on = not quiet and stream.isatty()
        self._start = time.monotonic()
        self._drawn = 0.0
        self._width = 0

    def __call__(self, done: int, total: int, name: str) -> None:
        """Shows a state; calls that follow each other fast are skipped.

        Args:
            done: Bytes written.
            total: Bytes in all.
            name: The tensor.
        """
        now = time.monotonic()
        if not self._on or (now - self._drawn < _REDRAW_SECONDS and done < total):
            return
        self._drawn = now
        share = done / total if total else 1.0
        rate = done / max(now - self._start, 1e-9)
        left = round((total - done) / rate) if rate else 0
        full = int(share * _BAR_CELLS)
        line = (
            f"[{'#' * full}{'.' * (_BAR_CELLS - full)}] {share:4.0%} {rate / _MB:7.1f} MB/s "
            f"{left // 60:3d}:{left % 60:02d} left  {name}"
        )
        self._draw(line[: shutil.get_terminal_size().columns - 1])

    def close(self) -> None:
        """Clears the line."""
        if self._width:
            self._draw("")
            self._stream.write("\r")
            self._stream.flush()
            self._width = 0

    def _draw(self, line: str) -> None:
        # Spaces over the rest of a longer old line; escape codes would not work everywhere.
        self._stream.write("\r" + line.ljust(self._width))
        self._stream.flush()
        self._width = len(line)
