"""Blocks to float32 as vector instructions: LLVM IR for a block of any type, from one table of code layouts.

A value is scale * code, plus or minus a minimum; code and scale are made sixteen lanes at a time, with the
operations of dequantize.py in the same order, so that the bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from llvmlite import ir

from gguf_tools.formats import FORMATS, Format

LANES: Final = 16
I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F32: Final = ir.FloatType()
V_I8, V_I16, V_I32, V_F32 = (ir.VectorType(t, LANES) for t in (I8, I16, I32, F32))

# (field, bits, run): the fields of a run of bytes one after the other, the lowest bits of all of them first.
# Run 0 stands for one integer whose bits follow the values.
Bits = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Codes:
    """Where a type's codes lie: low bits, bits above them, and what is taken off."""

    scales: Literal["d", "d, m", "Q2_K", "Q3_K", "Q4_K", "Q6_K"]
    low: Bits
    high: Bits | None = None
    minus: int = 0


CODES: Final[Mapping[str, Codes]] = MappingProxyType(
    {
        "Q4_0": Codes("d", ("qs", 4, 16), minus=8),
        "Q4_1": Codes("d, m", ("qs", 4, 16)),
        "Q5_0": Codes("d", ("qs", 4, 16), ("qh", 1, 0), minus=16),
        "Q5_1": Codes("d, m", ("qs", 4, 16), ("qh", 1, 0)),
        "Q8_0": Codes("d", ("qs", 8, 32)),
        "Q2_K": Codes("Q2_K", ("qs", 2, 32)),
        "Q3_K": Codes("Q3_K", ("qs", 2, 32), ("hmask", 1, 32), minus=4),
        "Q4_K": Codes("Q4_K", ("qs", 4, 32)),
        "Q5_K": Codes("Q4_K", ("qs", 4, 32), ("qh", 1, 32)),
        "Q6_K": Codes("Q6_K", ("ql", 4, 64), ("qh", 2, 32), minus=32),
    }
)


@dataclass(slots=True)
class _Block:
    """One block at a run-time address; what was loaded of it is kept."""

    builder: Any
    fmt: Format
    address: Any
    held: dict[tuple[str, str, int], Any] = field(default_factory=dict)

    def load(self, name: str, kind: Any, start: int = 0) -> Any:
        """A number or vector from byte `start` of a field on."""
        key = (name, str(kind), start)
        if key not in self.held:
            fields: Mapping[str, Any] = self.fmt.block.fields or {}
            place = self.builder.add(self.address, I64(fields[name][1] + start))
            value = self.builder.load(self.builder.inttoptr(place, kind.as_pointer()))
            value.align = 1
            self.held[key] = value
        return self.held[key]


def decode_block(builder: Any, name: str, address: Any) -> Iterator[Any]:
    """IR that decodes the block at `address`: its values in order, as <16 x float>.

    F16 and BF16 have no blocks; sixteen numbers count as one.
    """
    fmt = FORMATS[name]
    if fmt.block_len == 1:
        yield _numbers(builder, _Block(builder, fmt, address).load("x", V_I16), name)
        return
    block, codes = _Block(builder, fmt, address), CODES[name]
    for i, (scale, plus, minus) in enumerate(_scales(block, codes.scales)):
        values = builder.fmul(scale, _codes(block, codes, i))
        if plus is not None:
            values = builder.fadd(values, plus)
        if minus is not None:
            values = builder.fsub(values, minus)
        yield values


def _numbers(b: Any, bits: Any, name: str) -> Any:
    if name == "F16":
        return _half_to_float(b, bits)
    return b.bitcast(b.shl(b.zext(bits, V_I32), _const(V_I32, 16)), V_F32)


def _codes(block: _Block, codes: Codes, i: int) -> Any:
    """Codes 16 * i and following, as floats."""
    b = block.builder
    q = _bits(block, codes.low, i)
    if codes.high:
        q = b.or_(q, b.shl(_bits(block, codes.high, i), _const(V_I8, codes.low[1])))
    if codes.minus:
        q = b.sub(q, _const(V_I8, codes.minus))
    return _as_floats(b, b.sext(q, V_I32))


def _bits(block: _Block, bits: Bits, i: int) -> Any:
    name, width, run = bits
    b = block.builder
    if run == 0:
        return b.zext(b.bitcast(block.load(name, I16, 2 * i), ir.VectorType(I1, LANES)), V_I8)
    run_index, place = divmod(LANES * i, run * 8 // width)
    shift = place // run * width
    loaded = block.load(name, V_I8, run_index * run + place % run)
    shifted = b.lshr(loaded, _const(V_I8, shift)) if shift else loaded
    return b.and_(shifted, _const(V_I8, (1 << width) - 1)) if shift + width < 8 else shifted


def _scales(block: _Block, kind: str) -> list[tuple[Any, Any, Any]]:
    """For every sixteen values the scale, what is added and what is taken off, each as <16 x float>."""
    b = block.builder
    d = _splat(b, _half_to_float(b, block.load("d", I16)))
    match kind:
        case "d":
            return [(d, None, None)] * (block.fmt.block_len // LANES)
        case "d, m":
            m = _splat(b, _half_to_float(b, block.load("m", I16)))
            return [(d, m, None)] * (block.fmt.block_len // LANES)
        case "Q3_K":
            scale = b.fmul(d, _as_floats(b, _scales_q3_k(block)))
            return [(_lane(b, scale, i), None, None) for i in range(LANES)]
        case "Q6_K":
            scale = b.fmul(d, _as_floats(b, b.sext(block.load("scales", V_I8), V_I32)))
            return [(_lane(b, scale, i), None, None) for i in range(LANES)]
    dmin = _splat(b, _half_to_float(b, block.load("dmin", I16)))
    if kind == "Q2_K":
        both = b.zext(block.load("scales", V_I8), V_I32)
        scale = b.fmul(d, _as_floats(b, b.and_(both, _const(V_I32, 15))))
        least = b.fmul(dmin, _as_floats(b, b.lshr(both, _const(V_I32, 4))))
        return [(_lane(b, scale, i), None, _lane(b, least, i)) for i in range(LANES)]
    both = _as_floats(b, _scales_and_mins_q4_k(block))
    scale, least = b.fmul(d, both), b.fmul(dmin, both)
    return [(_lane(b, scale, i // 2), None, _lane(b, least, 8 + i // 2)) for i in range(LANES)]


def _scales_q3_k(block: _Block) -> Any:
    """Sixteen 6-bit scales: low nibbles in the first 8 bytes, high 2 bits in the last 4."""
    b = block.builder
    low = _field_bits(block, 8, [*range(8)] * 2, [0] * 8 + [4] * 8, [15] * 16)
    high_bytes, shifts = [8, 9, 10, 11] * 4, [0] * 4 + [2] * 4 + [4] * 4 + [6] * 4
    high = _field_bits(block, 12, high_bytes, shifts, [3] * 16)
    return b.sub(b.or_(low, b.shl(high, _const(V_I32, 4))), _const(V_I32, 32))


def _scales_and_mins_q4_k(block: _Block) -> Any:
    """Eight scales, then eight minimums, of six bits.

    The first four of each are bytes 0-3 and 4-7, whose top bits belong to the last four; their low bits
    share bytes 8-11.
    """
    b = block.builder
    low_bytes = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 8, 9, 10, 11]
    low = _field_bits(block, 12, low_bytes, [0] * 12 + [4] * 4, [63] * 4 + [15] * 4 + [63] * 4 + [15] * 4)
    high_bytes = [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    return b.or_(low, _field_bits(block, 12, high_bytes, [2] * 16, ([0] * 4 + [48] * 4) * 2))


def _field_bits(
    block: _Block, n_bytes: int, order: Sequence[int], shifts: Sequence[int], masks: Sequence[int]
) -> Any:
    """Lane j: (byte order[j] of the first n_bytes of `scales` >> shifts[j]) & masks[j]."""
    b = block.builder
    loaded = block.load("scales", ir.VectorType(I8, n_bytes))
    spread = b.shuffle_vector(loaded, ir.Constant(loaded.type, ir.Undefined), _const(V_I32, order))
    return b.and_(b.lshr(b.zext(spread, V_I32), _const(V_I32, shifts)), _const(V_I32, masks))


def _half_to_float(b: Any, half: Any) -> Any:
    """float16 bits, one or sixteen, to float32; by integers, so that it needs no instruction of its own."""
    wide, number = (V_I32, V_F32) if half.type == V_I16 else (I32, F32)
    bits = b.zext(half, wide)
    sign = b.shl(b.and_(bits, _const(wide, 0x8000)), _const(wide, 16))
    magnitude = b.shl(b.and_(bits, _const(wide, 0x7FFF)), _const(wide, 13))
    scaled = b.bitcast(b.fmul(b.bitcast(magnitude, number), _const(number, 2.0**112)), wide)
    special = b.or_(magnitude, _const(wide, 0x7F800000))
    is_special = b.icmp_unsigned(">=", magnitude, _const(wide, 0x0F800000))
    return b.bitcast(b.or_(b.select(is_special, special, scaled), sign), number)


def _as_floats(b: Any, whole: Any) -> Any:
    return b.sitofp(whole, V_F32)


def _const(kind: Any, value: float | Sequence[int]) -> Any:
    if not isinstance(kind, ir.VectorType):
        return ir.Constant(kind, value)
    return ir.Constant(kind, list(value) if isinstance(value, Sequence) else [value] * kind.count)


def _splat(b: Any, number: Any) -> Any:
    first = b.insert_element(ir.Constant(V_F32, ir.Undefined), number, ir.Constant(I32, 0))
    return _lane(b, first, 0)


def _lane(b: Any, vector: Any, i: int) -> Any:
    """Lane i of a vector in all lanes."""
    return b.shuffle_vector(vector, ir.Constant(V_F32, ir.Undefined), _const(V_I32, i))
