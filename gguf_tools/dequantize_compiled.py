"""Decoders compiled by LLVM, which comes with Numba: loops over the blocks of dequantize_vectors.

Results larger than the caches are written past them, as a copy of that size is: what is evicted anyway
need not be read first.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats import FORMATS

# Types that compiled decoders exist for: those of dequantize_vectors, which cannot be imported without LLVM.
COMPILED: Final = frozenset(
    {"F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
)
# Results of more bytes than this are written past the caches.
STREAM_FROM: Final = 1 << 24
# Compiling takes longer than decoding fewer values without.
WORTH_FROM: Final = 1 << 26
# Streaming stores need addresses that are multiples of this.
_STREAM_ALIGNMENT: Final = 16
_CALL: Final = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def available(name: str) -> bool:
    """Whether the type can be decoded by compiled code here."""
    return name in COMPILED and sys.byteorder == "little" and importlib.util.find_spec("llvmlite") is not None


@dataclass(frozen=True, slots=True)
class Decoder:
    """Machine code of one type; `owners` keep it in memory."""

    unit_len: int
    unit_bytes: int
    near: Callable[[int, int, int], None]
    streaming: Callable[[int, int, int], None]
    owners: tuple[Any, ...]

    def __call__(self, stored: NDArray[np.uint8], out: NDArray[np.float32]) -> int:
        """Decodes all whole units and returns how many values that were.

        Shapes: stored flat and contiguous; out flat and contiguous.
        """
        n_units = min(stored.size // self.unit_bytes, out.size // self.unit_len)
        streams = out.nbytes >= STREAM_FROM and out.ctypes.data % _STREAM_ALIGNMENT == 0
        run = self.streaming if streams else self.near
        run(stored.ctypes.data, out.ctypes.data, n_units)
        return n_units * self.unit_len


@functools.cache
def compiled_decoder(name: str, cpu: str | None = None, features: str = "") -> Decoder:
    """The decoder of a type, for this processor or the LLVM processor named."""
    import llvmlite.binding as llvm
    from llvmlite import ir

    from gguf_tools.dequantize_vectors import LANES

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    if cpu is None:
        cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="jitdefault", jit=True
    )
    fmt = FORMATS[name]
    n_blocks = LANES if fmt.block_len == 1 else 1
    unit_len, unit_bytes = n_blocks * fmt.block_len, n_blocks * fmt.block_bytes
    module = ir.Module()
    for symbol, streams in (("near", False), ("streaming", True)):
        _emit_loop(module, symbol, name, unit_len, unit_bytes, streams=streams)
    linker = llvm.create_lljit_compiler(machine)
    builder = llvm.JITLibraryBuilder().add_ir(str(module)).add_current_process()
    library = builder.export_symbol("near").export_symbol("streaming").link(linker, name)
    near, streaming = _CALL(library["near"]), _CALL(library["streaming"])
    return Decoder(unit_len, unit_bytes, near, streaming, (library, linker))


def _emit_loop(module: Any, symbol: str, name: str, unit_len: int, unit_bytes: int, *, streams: bool) -> None:
    """void symbol(address of the blocks, address of the values, number of units)."""
    from llvmlite import ir

    from gguf_tools.dequantize_vectors import I32, I64, LANES, V_F32, decode_block

    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 3), symbol)
    first_source, first_target, n_units = function.args
    entry, loop, done = (function.append_basic_block(part) for part in ("entry", "loop", "done"))
    b = ir.IRBuilder(entry)
    end = b.add(first_source, b.mul(n_units, I64(unit_bytes)))
    b.cbranch(b.icmp_unsigned("<", first_source, end), loop, done)

    b.position_at_end(loop)
    source, target = b.phi(I64), b.phi(I64)
    for i, values in enumerate(decode_block(b, name, source)):
        place = b.add(target, I64(4 * LANES * i))
        store = b.store(values, b.inttoptr(place, V_F32.as_pointer()))
        store.align = _STREAM_ALIGNMENT if streams else 4
        if streams:
            store.set_metadata("nontemporal", module.add_metadata([I32(1)]))
    next_source, next_target = b.add(source, I64(unit_bytes)), b.add(target, I64(4 * unit_len))
    for phi, at_first, later in ((source, first_source, next_source), (target, first_target, next_target)):
        phi.add_incoming(at_first, entry)
        phi.add_incoming(later, loop)
    b.cbranch(b.icmp_unsigned("<", next_source, end), loop, done)

    b.position_at_end(done)
    if streams:
        # Such stores may become visible to other threads late; nothing may overtake the return.
        b.fence("seq_cst")
    b.ret_void()
