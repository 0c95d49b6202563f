"""One line on a terminal's stderr: what runs, how far it is, and the time left at the mean pace so far."""

from __future__ import annotations

import sys
import time


class TimeLeft:
    """Counts `total` tasks of about the same size. Without a terminal it says nothing."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._started = total, 0, time.monotonic()
        self._shows = sys.stderr.isatty()

    def show(self, title: str, share: float) -> None:
        """The share of the task at hand that is done."""
        if not self._shows:
            return
        line = f"[{self._done + 1}/{self._total}] {title} {share:4.0%}, {self.left(share)}"
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    @property
    def done(self) -> int:
        return self._done

    def left(self, share: float = 0) -> str:
        """The time left, in words."""
        done = self._done + share
        if not done:
            return "no pace to tell the time left yet"
        left = (time.monotonic() - self._started) * (self._total - done) / done
        return f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left"

    def finish(self) -> None:
        """The task at hand is done."""
        self._done += 1
        if self._shows:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
