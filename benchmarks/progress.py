"""A progress bar in plain text on stderr; a line now and then where stderr is no terminal."""

from __future__ import annotations

import sys
import time

WIDTH = 24


class Progress:
    """Shows how much of the budget is spent and what is being measured."""

    def __init__(self, total_s: float, *, stream: object = None) -> None:
        self._total, self._start, self._stream = max(total_s, 1e-9), time.monotonic(), stream or sys.stderr
        self._terminal, self._shown, self._last = self._stream.isatty(), 0, -1e9

    def show(self, what: str) -> None:
        now = time.monotonic()
        spent = now - self._start
        if not self._terminal and now - self._last < 10:
            return
        self._last = now
        share = min(1.0, spent / self._total)
        bar = "#" * int(share * WIDTH)
        line = f"[{bar:<{WIDTH}}] {spent:4.0f} of about {self._total:.0f} s  {what}"[:118]
        self._write(f"\r{line:<{self._shown}}" if self._terminal else line + "\n")
        self._shown = len(line)

    def close(self) -> None:
        if self._terminal and self._shown:
            self._write("\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
