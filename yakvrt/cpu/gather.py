"""Gathers of 32-bit words from a table, as LLVM IR."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from . import simd
from .simd import FEATURES, I1, I8, I32, I64, V16I32, const, declare

V8I32 = ir.VectorType(I32, 8)


def gather_words(builder: Any, table: Any, indices: Any, shift: int = 2) -> Any:
    """The words at table + (index << shift) bytes. Shapes: indices <16 x i32> -> <16 x i32>."""
    if FEATURES.avx512:
        base = builder.inttoptr(table, I8.as_pointer())
        mask = const(ir.VectorType(I1, 16), 1)
        name = "llvm.x86.avx512.mask.gather.dpi.512"
        fn = declare(builder, name, V16I32, [V16I32, base.type, V16I32, mask.type, I32])
        return builder.call(fn, [const(V16I32, 0), base, indices, mask, ir.Constant(I32, 1 << shift)])
    if FEATURES.avx2:
        base = builder.inttoptr(table, I8.as_pointer())
        name = "llvm.x86.avx2.gather.d.d.256"
        fn = declare(builder, name, V8I32, [V8I32, base.type, V8I32, V8I32, I8])
        halves = []
        for h in (0, 8):
            lanes = ir.Constant(V8I32, list(range(h, h + 8)))
            part = builder.shuffle_vector(indices, ir.Constant(V16I32, ir.Undefined), lanes)
            arguments = [const(V8I32, 0), base, part, const(V8I32, -1), ir.Constant(I8, 1 << shift)]
            halves.append(builder.call(fn, arguments))
        return builder.shuffle_vector(*halves, ir.Constant(V16I32, list(range(16))))
    words = ir.Constant(V16I32, ir.Undefined)
    for i in range(16):
        lane = ir.Constant(I32, i)
        index = builder.zext(builder.extract_element(indices, lane), I64)
        offset = builder.shl(index, ir.Constant(I64, shift))
        words = builder.insert_element(words, simd.load(builder, table, I32, offset), lane)
    return words
