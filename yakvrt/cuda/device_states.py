"""Hidden states of a prompt on a GPU."""

from __future__ import annotations

import numpy as np

from ..ops import Buffer
from .device_array import DeviceArray
from .stream import Stream


class DeviceStates:
    """The hidden states of a whole prompt between two layers."""

    def __init__(self, n_rows: int, width: int, stream: Stream) -> None:
        """Raises: DeviceError."""
        self._rows, self._stream = DeviceArray((n_rows, width), np.float32), stream

    def keep(self, first: int, x: Buffer, n: int) -> None:
        self._rows.copy_rows(first, x.data, 0, n, self._stream)

    def give(self, first: int, x: Buffer, n: int) -> None:
        held: DeviceArray = x.data
        held.copy_rows(0, self._rows, first, n, self._stream)

    def free(self) -> None:
        self._rows.free()
