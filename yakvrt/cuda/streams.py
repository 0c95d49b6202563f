"""The streams of a backend: one for steps, one for launches beside those of a step, one for what is stored of
a prompt's layer while the next one computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from .driver import DeviceError
from .stream import Event, Stream


class Streams:
    """`now` is the one that is asked, `side` takes launches beside the others of a step."""

    def __init__(self) -> None:
        """Raises: DeviceError."""
        self.now = self._main = Stream()
        self.side, self._storing = Stream(), Stream()
        self._handed_over, self._stored = Event(), Event()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is asked inside is done behind what was asked before, and beside what is asked afterwards up
        to settle(). Entering it again settles, too: of two sets of rows, one may always be written. An
        interrupted one (Ctrl-C) leaves nothing under way. Raises: DeviceError.
        """
        self.settle()
        self._storing.wait(self._main.record(self._handed_over))
        self.now = self._storing
        try:
            yield
        except BaseException:
            with suppress(DeviceError):
                self._storing.synchronise()
            raise
        finally:
            self.now = self._main
            self._storing.record(self._stored)

    def settle(self) -> None:
        """What is asked from now on is done behind all that was asked beside it. Raises: DeviceError."""
        self._main.wait(self._stored)

    def synchronise(self) -> None:
        """Waits for all of them, going on behind what fails. Raises: DeviceError."""
        with ExitStack() as rest:
            for stream in (self._storing, self.side, self._main):
                rest.callback(stream.synchronise)

    def close(self) -> None:
        """Goes on behind what fails. Raises: DeviceError."""
        with ExitStack() as rest:
            for held in (self._stored, self._handed_over, self._storing, self.side, self._main):
                rest.callback(held.close)
