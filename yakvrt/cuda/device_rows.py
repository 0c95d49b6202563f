"""Exact KV rows of one slot as a GPU holds them, position after position; what the host reads and writes."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..ops import KvRows, element_type
from .device_array import DeviceArray
from .stream import Stream

WORD = 4  # bytes; rows lie in uint32 or float32


class DeviceValues:
    """The first rows of every head in one array of rows, as NumPy sees an array: np.asarray() fetches them,
    values[...] = x puts others in their place. Shape: [Hk, n, D].
    """

    def __init__(
        self, words: DeviceArray, first: int, stride: int, shape: tuple[int, ...], dtype: Any, stream: Stream
    ) -> None:
        """first: the byte of the first row of the first head, the next head's lies stride bytes on."""
        self._words = words.reshaped((words.nbytes // WORD,))
        self._first, self._stride, self._stream = first, stride, stream
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.itemsize

    def _word(self, head: int) -> int:
        return (self._first + head * self._stride) // WORD

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        out: np.ndarray = np.empty(self.shape, self.dtype)
        if out.size:
            for head, rows in enumerate(out):
                self._words.download(self._word(head), rows, self._stream)
            self._stream.synchronise()
        return out if dtype is None else out.astype(dtype, copy=False)

    def __getitem__(self, key: tuple[slice, ...]) -> DeviceValues:
        """A range of rows, the same of every head."""
        heads, rows = key
        assert heads == slice(None)
        first, last, _ = rows.indices(self.shape[1])
        row_bytes = prod(self.shape[2:]) * self.itemsize
        shape = (self.shape[0], max(0, last - first), *self.shape[2:])
        start = self._first + first * row_bytes
        return DeviceValues(self._words, start, self._stride, shape, self.dtype, self._stream)

    def __setitem__(self, key: Any, values: Any) -> None:
        assert key is Ellipsis
        given = np.ascontiguousarray(np.broadcast_to(np.asarray(values), self.shape), self.dtype)
        if given.size:
            for head, rows in enumerate(given):
                n_words = rows.nbytes // WORD
                self._words.part(self._word(head), n_words).upload(rows, self._stream)
            self._stream.synchronise()


class DeviceRows:
    """backend.SlotRows."""

    key_tile = 1

    def __init__(self, rows: KvRows, slot: int, n_kv_heads: int, head_dim: int, stream: Stream) -> None:
        self._rows, self._slot, self._stream = rows, slot, stream
        self._heads, self._dim = n_kv_heads, head_dim
        self._dtype = element_type(rows.kind)

    def _values(self, words: DeviceArray, first: int, n: int) -> DeviceValues:
        rows, row_bytes = self._rows, self._dim * self._dtype.itemsize
        start = self._slot * rows.slot_bytes + first * row_bytes
        shape = (self._heads, n, self._dim)
        return DeviceValues(words, start, rows.head_bytes, shape, self._dtype, self._stream)

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        k, v = (
            np.asarray(self._values(words, first, last - first)) for words in (self._rows.k, self._rows.v)
        )
        return k.astype(np.float32), v.astype(np.float32)

    def write(self, first: int, k: np.ndarray, v: np.ndarray) -> None:
        for words, rows in ((self._rows.k, k), (self._rows.v, v)):
            self._values(words, first, rows.shape[1])[...] = rows

    def state(self, n_held: int) -> tuple[DeviceValues, DeviceValues]:
        return self._values(self._rows.k, 0, n_held), self._values(self._rows.v, 0, n_held)
