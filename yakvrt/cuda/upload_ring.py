"""Small arrays on their way to the device, while the host already writes the next ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .device_array import DeviceArray
from .memory import PinnedMemory
from .stream import Event, Stream

PLACES = 32  # uploads under way at a time: more than a prompt's layer makes while the next one is asked for


class UploadRing:
    """Pinned copies of an array: a stream reads the oldest while the host fills the newest."""

    def __init__(self, target: DeviceArray, pinned: Callable[[tuple[int, ...], type], PinnedMemory]) -> None:
        """pinned: takes host memory of a shape and a type, which others give back. Raises: DeviceError."""
        self._target = target
        self._memory = pinned((PLACES, target.nbytes), np.uint8)
        self._places: np.ndarray = self._memory.array.view(target.dtype).reshape(PLACES, *target.shape)
        self._read = [Event() for _ in range(PLACES)]
        self._n_uploads = 0

    def upload(self, values: np.ndarray, stream: Stream) -> None:
        """Asks the stream to put the values into the target; they may change at once. Waits where all places
        are still to be read.
        """
        stream.enter()
        place = self._n_uploads % PLACES
        if self._n_uploads >= PLACES:
            self._read[place].synchronise()
        self._n_uploads += 1
        self._places[place] = values
        try:
            self._target.upload(self._places[place], stream)
        finally:  # an interrupted one may be under way
            stream.record(self._read[place])

    def close(self) -> None:
        for event in self._read:
            event.close()
