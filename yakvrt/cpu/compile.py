"""Compiles kernels to object files: Numba makes LLVM IR, LLVM makes machine code.

Run as a process of its own by kernel_cache.py (`python -m yakvrt.cpu.compile`), so that the process that runs
the model never imports Numba.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..kernel_build.compilers import answer_requests
from ..kernel_build.files import making, read_object, write_object
from ..kernel_build.spec import KernelSpec


def compile_object(spec: KernelSpec) -> bytes:
    """The ELF (or Mach-O) object whose symbol `spec.symbol` is the kernel.

    Every kernel has the C signature void(thread, n_threads, counter, arguments) of int64.
    """
    import llvmlite.binding as llvm
    from numba import cfunc, types

    from .features import host_features
    from .simd import FASTMATH

    signature = types.void(types.int64, types.int64, types.int64, types.int64)
    # error_model numpy: a division by zero must not raise, a kernel has nobody to tell
    options: Any = {"error_model": "numpy", "fastmath": FASTMATH, "boundscheck": False}
    compiled: Any = cfunc(signature, **options)(spec.build())
    compiled._library.optimise()
    text = _with_plain_entry(compiled._library.get_llvm_str(), compiled.native_name, spec.symbol)
    bodies = "\n".join(line for line in text.splitlines() if not line.startswith(("declare", "@")))
    if leaked := sorted(set(re.findall(r"@(numba_\w+|NRT_\w+|Py\w+)", bodies))):
        raise RuntimeError(f"kernel {spec.symbol} needs the Python runtime: {', '.join(leaked)}")
    features = host_features()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=features.cpu_name, features=features.flags, opt=3, reloc="pic", codemodel="jitdefault", jit=True
    )
    module = llvm.parse_assembly(text)
    module.verify()
    code: bytes = machine.emit_object(module)
    return code


def _with_plain_entry(text: str, wrapper: str, symbol: str) -> str:
    """Replaces Numba's C wrapper, which would report errors through Python, by one that calls the function
    alone.

    Kernels do not raise; the status they return is always 0.
    """
    function = wrapper.removeprefix("cfunc.")
    start = re.search(rf"^define [^\n]*@{re.escape(wrapper)}\(", text, re.MULTILINE)
    if start is None:
        raise RuntimeError(f"Numba's wrapper {wrapper} is not in its own module")
    end = text.index("\n}\n", start.start()) + 3
    entry = f"""define void @{symbol}(i64 %thread, i64 %n_threads, i64 %counter, i64 %arguments) {{
  %result = alloca ptr
  %error = alloca ptr
  %status = call i32 @{function}(
    ptr %result, ptr %error, i64 %thread, i64 %n_threads, i64 %counter, i64 %arguments)
  ret void
}}
"""
    return text[: start.start()] + entry + text[end:]


def main() -> int:
    import llvmlite.binding as llvm

    from .object_codegen import write_objects_only

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    write_objects_only()

    def compile_one(request: dict[str, Any]) -> None:
        spec = KernelSpec(request["module"], request["builder"], tuple(request["parameters"]))
        path = Path(request["path"])
        with making(path):
            if read_object(path) is None:
                write_object(path, compile_object(spec))

    answer_requests(compile_one)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
