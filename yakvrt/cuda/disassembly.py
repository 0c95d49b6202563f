"""The instructions of cubins, by NVIDIA's disassembler where it is installed."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

# an address, perhaps a predicate, the instruction
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", re.MULTILINE)


def find_disassembler() -> str | None:
    if found := shutil.which("nvdisasm"):
        return found
    try:
        from cuda.pathfinder import find_nvidia_binary_utility
    except ImportError:
        return None
    packaged: str | None = find_nvidia_binary_utility("nvdisasm")
    return packaged


def count_instructions(cubins: Sequence[bytes], arch: str) -> list[dict[str, int]] | None:
    """How often each SASS instruction occurs, with its modifiers, in cubins of one architecture; None without
    a disassembler.

    It gets the code of all of them at once: its start takes ten times as long as a kernel.
    """
    if (program := find_disassembler()) is None:
        return None
    codes = [machine_code(cubin) for cubin in cubins]
    with tempfile.TemporaryDirectory(prefix="yakvrt-") as directory:
        path = Path(directory) / "code"
        path.write_bytes(b"".join(codes))
        options = ["-ndf", "-b", arch.replace("sm_", "SM")]
        shown = subprocess.run([program, *options, str(path)], capture_output=True, text=True, check=False)
    if shown.returncode:
        raise RuntimeError(f"{program} cannot read machine code: {shown.stderr.strip()[:200]}")
    ends = list(accumulate(map(len, codes)))
    counts: list[Counter[str]] = [Counter() for _ in codes]
    for address, name in INSTRUCTION.findall(shown.stdout):
        counts[bisect_right(ends, int(address, 16))][name] += 1
    return [dict(count) for count in counts]


def machine_code(cubin: bytes) -> bytes:
    """The functions of a cubin: the sections of an ELF file of 64 bits that are called .text.NAME."""
    (headers,) = struct.unpack_from("<Q", cubin, 0x28)
    size, n_sections, names = struct.unpack_from("<HHH", cubin, 0x3A)
    # name, type, flags, address, offset, bytes
    sections = [struct.unpack_from("<IIQQQQ", cubin, headers + size * i) for i in range(n_sections)]
    first_name = sections[names][4]
    return b"".join(
        cubin[offset : offset + n_bytes]
        for name, *_, offset, n_bytes in sections
        if cubin.startswith(b".text.", first_name + name)
    )
