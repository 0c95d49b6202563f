"""What compiled kernels take of a GPU, their telling instructions, and the least that their work can cost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .cubin import Manifest

# instructions that tell how a kernel works: tensor cores, memory, copies, special functions
TELLING = re.compile(
    r"(?:[HIQD]G?MMA|UTC\w*MMA|LDG|STG|LDS|STS|LDSM|LDGSTS|UBLKCP|LDL|STL|MUFU|F2FP|IDP|SHFL|ATOMS?|ATOMG|RED)\b"
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """Limits of one multiprocessor of an SM generation, and what a whole GPU can do.

    Units: registers of 4 bytes; bytes; bytes and float32 operations per nanosecond.
    """

    name: str
    registers: int
    threads: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int  # of shared memory, by every block
    bytes_per_ns: float
    operations_per_ns: float


# Source: CUDA C++ Programming Guide 13, table of compute capability 9.0; H200 data sheet
H200 = Gpu("H200", 65536, 2048, 32, 228 * 1024, 1024, 4800, 67_000)


def occupancy(threads: int, registers: int, shared_bytes: int, gpu: Gpu = H200) -> float:
    """The part of a multiprocessor's threads that can be resident.

    Registers are given out in 256 to a warp.
    """
    warps = threads // 32
    of_a_warp = -(-registers * 32 // 256) * 256
    by_shared = gpu.shared_bytes // (shared_bytes + gpu.reserved_bytes)
    by_registers = gpu.registers // of_a_warp // warps
    blocks = min(gpu.blocks, gpu.threads // threads, by_registers, by_shared)
    return blocks * threads / gpu.threads


def report_row(manifest: Manifest) -> dict[str, Any]:
    """The facts of one kernel, for JSON; opcodes are None where no disassembler told them."""
    used = manifest.resources
    row: dict[str, Any] = {
        "name": manifest.symbol,
        "arch": manifest.arch,
        "threads": manifest.threads,
        "registers": used.registers,
        "shared_bytes": used.shared_bytes + manifest.shared_bytes,
        "stack_bytes": used.stack_bytes,
        "spill_bytes": used.spill_bytes,
        "occupancy": occupancy(manifest.threads, used.registers, used.shared_bytes + manifest.shared_bytes),
        "opcodes": None,
        "work": None,
    }
    if manifest.instructions is not None:
        counted = sorted(manifest.instructions.items())
        row["opcodes"] = {name: n for name, n in counted if TELLING.match(name)}
    if manifest.work:
        n_bytes, n_operations = int(manifest.work["n_bytes"]), int(manifest.work["n_operations"])
        floor_ns = max(n_bytes / H200.bytes_per_ns, n_operations / H200.operations_per_ns)
        row["work"] = {**manifest.work, "floor_ns": floor_ns}
    return row


def report_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A table; below each kernel its telling instructions."""
    lines = ["KERNEL                      ARCH       REGS  SHARED  STACK  SPILLS  OCCUPANCY   FLOOR ON H200"]
    for row in rows:
        work = row["work"]
        floor = ""
        if work:
            floor = f"{work['n_bytes']} B, {work['n_operations']} op a {work['unit']}"
            floor += f" ({work['floor_ns'] * 1000:.3g} ps)"
        lines.append(
            f"{row['name']:<28}{row['arch']:<9}{row['registers']:>6}{row['shared_bytes']:>8}"
            f"{row['stack_bytes']:>7}{row['spill_bytes']:>8}{row['occupancy']:>11.0%}   {floor}".rstrip()
        )
        if row["opcodes"]:
            lines.append("    " + ", ".join(f"{n} {name}" for name, n in row["opcodes"].items()))
    return lines
