"""Values between the 32 lanes of a warp, all of which must come."""

from __future__ import annotations

from typing import Any

from numba.cuda import types
from numba.cuda.extending import intrinsic

from .llvm_asm import FIXED, I32, LETTERS, LLVM_TYPES, asm
from .threads import inline


def _word(kind: Any) -> Any:
    """The 32-bit type that a value of this type is exchanged as; Numba widens int32 and uint32 to 64 bits."""
    if isinstance(kind, types.Integer):
        return types.int32 if kind.signed else types.uint32
    return types.float32 if kind is types.float32 else None


def _shuffle(mode: str, last: int) -> Any:
    @intrinsic
    def shuffle(typing: Any, value: Any, source: Any) -> Any:
        word = _word(value)
        if word is None:
            return None
        letter = LETTERS[word]

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            text = f"shfl.sync.{mode}.b32 $0, $1, $2, {last}, 0xffffffff;"
            return asm(builder, LLVM_TYPES[word], text, f"={letter},{letter},r", values, FIXED)

        return word(word, types.int32), codegen

    return shuffle


shuffle_xor = _shuffle("bfly", 31)  # (value, mask): of the lane whose number differs in these bits
shuffle_from = _shuffle("idx", 31)  # (value, lane)
shuffle_up = _shuffle("up", 0)  # (value, n): of the lane n below; the first n keep their own
shuffle_down = _shuffle("down", 31)  # (value, n): of the lane n above; the last n keep their own


@intrinsic
def ballot(typing: Any, flag: Any) -> Any:
    """Bit i says whether lane i's flag is set."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        text = "{ .reg .pred p; setp.ne.u32 p, $1, 0; vote.sync.ballot.b32 $0, p, 0xffffffff; }"
        return asm(builder, I32, text, "=r,r", values, FIXED)

    return types.uint32(types.uint32), codegen


@inline
def warp_sum(value):  # type: ignore[no-untyped-def]
    """The sum over the warp, the same bits in every lane."""
    for step in (16, 8, 4, 2, 1):
        value += shuffle_xor(value, step)
    return value


@inline
def warp_max(value):  # type: ignore[no-untyped-def]
    for step in (16, 8, 4, 2, 1):
        value = max(value, shuffle_xor(value, step))
    return value
