"""The vocabulary of CUDA kernels (yakvrt/cuda/device_ops) for the emulator, one function for each op.

A new op is a function of the same name and parameters here or in a file like cuda_emulated_tensor.py, under
`@emulates`. An op that lanes do together calls `Running.thread.wait(name, value, combine)`; `combine` gets
the 32 values in the order of lanes and returns 32 results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda_emulated_local import local_array
from cuda_emulated_memory import Memory, Null, Pointer, Running, wrapped

emulated = SimpleNamespace()  # `g` of the builders


def emulates(function: Callable[..., Any]) -> Callable[..., Any]:
    setattr(emulated, function.__name__, function)
    return function


def _define(name: str, function: Callable[..., Any]) -> None:
    setattr(emulated, name, function)


# --- who a thread is, barriers

_define("thread", lambda: Running.thread.number)
_define("lane", lambda: Running.thread.lane)
_define("block", lambda: Running.thread.block.index[0])
_define("block_y", lambda: Running.thread.block.index[1])
_define("n_blocks", lambda: Running.thread.block.grid[0])
_define("inline", lambda function: function)


@emulates
def sync_threads() -> None:
    Running.thread.wait("sync_threads")


@emulates
def sync_warp() -> None:
    Running.thread.wait("sync_warp", None, lambda values: values)
    Running.thread.passed_warp_barrier()


# --- casts and bits


def _cast(bits: int, signed: bool) -> Callable[[Any], int]:
    """`wrapped`, written out for speed."""
    mask, half = (1 << bits) - 1, 1 << (bits - 1) if signed else 0
    return lambda value: ((int(value) + half) & mask) - half


for _bits in (16, 32, 64):
    _define(f"uint{_bits}", _cast(_bits, False))
_define("int32", _cast(32, True))
_define("int64", _cast(64, True))
_define("float32", np.float32)


_define("mask_bits", lambda word, mask: wrapped(word & mask, 32, False))
_define("count_ones", lambda word: wrapped(word, 32, False).bit_count())


@emulates
def permute_bytes(a: int, b: int, selector: int) -> int:
    given = (wrapped(a, 32, False) | wrapped(b, 32, False) << 32).to_bytes(8, "little")
    digits = [selector >> 4 * i & 15 for i in range(4)]
    if max(digits) > 7:
        raise Running.thread.error(f"permutes bytes by {selector:#x}, whose digits must be 0 to 7")
    return int.from_bytes(bytes(given[digit] for digit in digits), "little")


@emulates
def funnel_right(low: int, high: int, n: int) -> int:
    if not 0 <= n < 32:
        raise Running.thread.error(f"shifts two words by {n}: it must be 0 to 31")
    return wrapped((wrapped(low, 32, False) | wrapped(high, 32, False) << 32) >> int(n), 32, False)


@emulates
def f32_from_bits(word: int) -> np.float32:
    return np.uint32(word).view(np.float32)


@emulates
def bits_from_f32(value: np.float32) -> int:
    return int(np.float32(value).view(np.uint32))


# what every 16 bits stand for
_OF_BF16 = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
_OF_F16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


@emulates
def f32_from_bf16(half: int) -> np.float32:
    return _OF_BF16[half]  # type: ignore[no-any-return]


@emulates
def bf16_from_f32(value: np.float32) -> int:
    word = bits_from_f32(value)
    if word & 0x7FFFFFFF > 0x7F800000:
        return 0x7FFF  # NaN
    return (word + 0x7FFF + (word >> 16 & 1)) >> 16


@emulates
def f32_from_f16(half: int) -> np.float32:
    return _OF_F16[half]  # type: ignore[no-any-return]


@emulates
def f16_from_f32(value: np.float32) -> int:
    return int(np.float32(value).astype(np.float16).view(np.uint16))


_define("low_bf16", lambda word: f32_from_bf16(word & 0xFFFF))
_define("high_bf16", lambda word: f32_from_bf16(word >> 16))
_define("low_f16", lambda word: f32_from_f16(word & 0xFFFF))
_define("high_f16", lambda word: f32_from_f16(word >> 16))
_define("pack_bf16", lambda low, high: bf16_from_f32(low) | bf16_from_f32(high) << 16)
_define("pack_f16", lambda low, high: f16_from_f32(low) | f16_from_f32(high) << 16)


@emulates
def constants(values: Sequence[float]) -> Callable[[int], np.float32]:
    table = Memory("constants", np.array(values, np.float32))
    return lambda i: Pointer(table)[i]


# --- arithmetic, rounded to float32 once


def _rounded(function: Callable[[np.float64], Any]) -> Callable[[Any], np.float32]:
    return lambda value: np.float32(function(np.float64(value)))


# Python's floats are float64 and much faster than numpy's; so is adding them to a float32, which rounds them
_NOTHING = np.float32(-0.0)
_define("fma", lambda a, b, c: float(a) * float(b) + float(c) + _NOTHING)
_define("absolute", lambda a: abs(np.float32(a)))
_define("sqrt", _rounded(np.sqrt))
_define("divide", lambda a, b: np.float32(np.float64(a) / np.float64(b)))
_define("round_even", _rounded(np.rint))
_define("rsqrt", _rounded(lambda a: 1 / np.sqrt(a)))
_define("reciprocal", _rounded(lambda a: 1 / a))
_define("exp2", _rounded(lambda x: np.exp2(x) if x >= -126 or x != x else 0.0))  # flushed to zero
_define("log2", _rounded(np.log2))


_WORD, _BYTES = Struct("<I").pack, Struct("<4b").unpack


@emulates
def dot4_i8(a: int, b: int, c: int) -> int:
    a, b = wrapped(a, 32, False), wrapped(b, 32, False)
    for x, y in zip(_BYTES(_WORD(a)), _BYTES(_WORD(b)), strict=True):
        c += x * y
    return wrapped(c, 32, True)


# --- memory


def _load4(number: type[np.generic]) -> Callable[[Pointer, int], tuple[Any, ...]]:
    def load(pointer: Pointer, index: int) -> tuple[Any, ...]:
        found = pointer.read16(index)
        if found.dtype != number:
            found = found.view(number)
        return tuple(found) if number is np.float32 else tuple(found.tolist())

    return load


for _name in ("load_f32x4", "load_constant_f32x4"):
    _define(_name, _load4(np.float32))
for _name in ("load_u32x4", "load_constant_u32x4"):
    _define(_name, _load4(np.uint32))


@emulates
def load_constant_u32x2(pointer: Pointer, index: int) -> tuple[int, ...]:
    return tuple(pointer.read16(index, 8).view(np.uint32).tolist())


@emulates
def load_u32_at(pointer: Pointer, n_bytes: int) -> int:
    if n_bytes % 4:
        raise Running.thread.error(f"reaches a word at byte {n_bytes}")
    word: int = pointer[n_bytes // 4]
    return word


@emulates
def store_f32x4(pointer: Pointer, index: int, a: Any, b: Any, c: Any, d: Any) -> None:
    pointer.write16(index, np.array([a, b, c, d], np.float32))


@emulates
def store_u32x4(pointer: Pointer, index: int, a: int, b: int, c: int, d: int) -> None:
    words = [wrapped(word, 32, False) for word in (a, b, c, d)]
    pointer.write16(index, np.array(words, np.uint32))


@emulates
def shifted(pointer: Pointer | Null, n: int) -> Pointer | Null:
    return pointer if isinstance(pointer, Null) else Pointer(pointer.memory, pointer.offset + int(n))


def _shared(number: type[np.generic]) -> Callable[[int], Pointer]:
    return lambda n: Running.thread.block.shared(n, number)


def _dynamic(number: type[np.generic]) -> Callable[[int], Pointer]:
    return lambda offset: Running.thread.block.dynamic(offset, number)


for _name, _number in (("f32", np.float32), ("u32", np.uint32), ("i32", np.int32), ("u16", np.uint16)):
    _define(f"shared_{_name}", _shared(_number))
    if _name != "i32":
        _define(f"dynamic_{_name}", _dynamic(_number))
    if _name != "u16":
        _define(f"local_{_name}", local_array(_number))


@emulates
def atomic_add_i32(pointer: Pointer, index: int, value: int) -> int:
    memory, at = pointer.memory, pointer.place(index)
    if memory.written is not None:
        memory.note_atomic(at)
    before = int(memory.array[at])
    memory.array[at] = wrapped(before + value, 32, True)
    return before


# --- warps


def _exchange(name: str, source: Callable[[int, int], int]) -> Callable[[Any, int], Any]:
    """A shuffle; `source` gives the lane to read from, by a lane's number and argument."""

    def shuffle(value: Any, argument: int) -> Any:
        if isinstance(value, int) and not -(2**31) <= value < 2**32:
            raise Running.thread.error(f"passes {value} to {name}, which takes 32 bits")

        def combine(given: list[tuple[Any, int]]) -> list[Any]:
            return [given[source(lane, given[lane][1])][0] for lane in range(32)]

        return Running.thread.wait(name, (value, argument), combine)

    return shuffle


_define("shuffle_xor", _exchange("shuffle_xor", lambda lane, mask: (lane ^ mask) & 31))
_define("shuffle_from", _exchange("shuffle_from", lambda lane, origin: origin & 31))
_define("shuffle_up", _exchange("shuffle_up", lambda lane, n: lane - n if lane >= n else lane))
_define("shuffle_down", _exchange("shuffle_down", lambda lane, n: lane + n if lane + n < 32 else lane))


@emulates
def ballot(flag: Any) -> int:
    def combine(flags: list[Any]) -> list[int]:
        return [sum(1 << lane for lane, flag in enumerate(flags) if flag)] * 32

    return Running.thread.wait("ballot", flag, combine)


def _reduce(name: str, join: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """Pairs of lanes 16, 8, 4, 2 and 1 apart, as the vocabulary's own; both of a pair get the same."""

    def combine(values: list[Any]) -> list[Any]:
        for step in (16, 8, 4, 2, 1):
            values = [join(values[lane], values[lane + step]) for lane in range(step)]
        return values * 32

    return lambda value: Running.thread.wait(name, value, combine)


_define("warp_sum", _reduce("warp_sum", lambda a, b: a + b))
_define("warp_max", _reduce("warp_max", max))
