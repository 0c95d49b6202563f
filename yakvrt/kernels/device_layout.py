"""How a weight matrix rests in a GPU's memory: rows as in GGUF, codes and scales in planes of their own.

Every quantised format is one rule, `weight = scale * (code - zero) + offset`, per unit of 32 columns (Q6_K:
of 16). A lane reads the codes of a unit with loads of 16 bytes, neighbours read neighbouring units; 2-byte
scales of the same units lie side by side. Planes, row after row:

    codes   uint32  4 bits: word k of a unit holds columns 4k to 4k + 3 in the low nibbles of its bytes,
                    columns 16 + 4k to 16 + 4k + 3 in the high ones; 8 bits: signed bytes in order; 16 and
                    32 bits: in order
    high    uint32  2 further bits: word k holds columns 16k + 4i + j at bit 2i of byte j
    scales  uint16  of a unit: float16 d (and offset); Q4_K: scale | min << 8; Q6_K: two int8, low half first
    supers  uint16  of 8 units: float16 d (and dmin) that the scales of K formats are multiplied with
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

UNIT = 32  # columns

Reader = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]  # codes, scales, supers of blocks


@dataclass(frozen=True, slots=True)
class DeviceLayout:
    """One weight format; `n_scales` and `n_supers` count uint16 numbers of a unit and of 8 units."""

    name: str
    bits: int
    high_bits: int = 0
    n_scales: int = 0
    n_supers: int = 0
    zero: int = 0

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    @property
    def has_offset(self) -> bool:
        """Whether a weight has a term beside scale * (code - zero)."""
        return self.n_scales == 2 or self.n_supers == 2

    @property
    def column_multiple(self) -> int:
        return UNIT * 8 if self.n_supers else UNIT

    def row_bytes(self, n_cols: int) -> int:
        units = n_cols // UNIT
        per_unit = 4 * (self.bits + self.high_bits) + 2 * self.n_scales
        return units * per_unit + units // 8 * 2 * self.n_supers


DEVICE_LAYOUTS = {
    layout.name: layout
    for layout in (
        DeviceLayout("F32", 32),
        DeviceLayout("F16", 16),
        DeviceLayout("BF16", 16),
        DeviceLayout("Q4_0", 4, n_scales=1, zero=8),
        DeviceLayout("Q4_1", 4, n_scales=2),
        DeviceLayout("Q8_0", 8, n_scales=1),
        DeviceLayout("Q4_K", 4, n_scales=1, n_supers=2),
        DeviceLayout("Q6_K", 4, 2, n_scales=1, n_supers=1, zero=32),
    )
}


def device_layout(name: str) -> DeviceLayout:
    """Raises: ValueError."""
    if name not in DEVICE_LAYOUTS:
        raise ValueError(f"no CUDA matmul of {name} weights: convert them to {', '.join(DEVICE_LAYOUTS)}")
    return DEVICE_LAYOUTS[name]


# F32 is for routers, whose choice must not change: bfloat16 products would change it
TENSOR_CORE_FORMATS = tuple(name for name in DEVICE_LAYOUTS if name != "F32")


@dataclass(frozen=True, slots=True)
class Planes:
    """A matrix; planes that its format does not have are empty. Shapes: [rows, numbers of a row]."""

    codes: np.ndarray
    high: np.ndarray
    scales: np.ndarray
    supers: np.ndarray


def device_planes_ref(name: str, rows: np.ndarray, n_cols: int) -> Planes:
    """From GGUF rows, uint8 [rows, bytes of a row]."""
    layout, n_rows = device_layout(name), len(rows)
    rows = np.ascontiguousarray(rows)
    if layout.is_float:
        none = np.zeros((n_rows, 0), np.uint16)
        return Planes(rows.view(np.uint32), none.view(np.uint32), none, none)
    codes, scales, supers = _SOURCES[name](rows.reshape(n_rows, n_cols // layout.column_multiple, -1))
    codes, scales = codes.reshape(n_rows, -1, UNIT), scales.reshape(n_rows, -1)
    high = np.zeros((n_rows, 0), np.uint8)
    if layout.high_bits:
        groups = (codes >> 4).reshape(n_rows, -1, 2, 4, 4)
        shifts = 2 * np.arange(4, dtype=np.uint8)[:, None]
        high = np.bitwise_or.reduce(groups << shifts, axis=3).astype(np.uint8)
    if layout.bits == 4:
        codes = codes[..., :16] & 15 | codes[..., 16:] << 4
    words = [np.ascontiguousarray(part.reshape(n_rows, -1)).view(np.uint32) for part in (codes, high)]
    return Planes(words[0], words[1], *(np.ascontiguousarray(part) for part in (scales, supers)))


def _halves(blocks: np.ndarray, first: int, n: int) -> np.ndarray:
    """n uint16 of every block, [rows, blocks * n]."""
    return np.ascontiguousarray(blocks[..., first : first + 2 * n]).view(np.uint16).reshape(len(blocks), -1)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Low nibbles of the last axis, then its high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _plain(n_scales: int, bits: int) -> Reader:
    def read(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        packed = blocks[..., 2 * n_scales :]
        codes = _nibbles(packed) if bits == 4 else packed
        return codes, _halves(blocks, 0, n_scales), np.zeros((len(blocks), 0), np.uint16)

    return read


def _q4_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b, c = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=-1).astype(np.uint16)
    mins = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=-1).astype(np.uint16)
    codes = _nibbles(blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32))
    return codes, scales | mins << 8, _halves(blocks, 0, 2)


def _q6_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = blocks.shape[:2]
    low = _nibbles(blocks[..., :128].reshape(*shape, 2, 64)).reshape(*shape, 2, 4, 32)
    high = blocks[..., 128:192].reshape(*shape, 2, 1, 32) >> 2 * np.arange(4, dtype=np.uint8)[:, None] & 3
    return low | high << 4, _halves(blocks, 192, 8), _halves(blocks, 208, 1)


_SOURCES: dict[str, Reader] = {
    "Q4_0": _plain(1, 4),
    "Q4_1": _plain(2, 4),
    "Q8_0": _plain(1, 8),
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}
