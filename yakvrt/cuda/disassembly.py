"""The instructions of a cubin, by NVIDIA's disassembler where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

# an address, perhaps a predicate, the instruction
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)", re.MULTILINE)


def find_disassembler() -> str | None:
    if found := shutil.which("nvdisasm"):
        return found
    try:
        from cuda.pathfinder import find_nvidia_binary_utility
    except ImportError:
        return None
    packaged: str | None = find_nvidia_binary_utility("nvdisasm")
    return packaged


def count_instructions(code: bytes) -> dict[str, int] | None:
    """How often each SASS instruction occurs, with its modifiers; None without a disassembler."""
    if (program := find_disassembler()) is None:
        return None
    with tempfile.TemporaryDirectory(prefix="yakvrt-") as directory:
        path = Path(directory) / "kernel.cubin"
        path.write_bytes(code)
        shown = subprocess.run(
            [program, "-ndf", "-c", str(path)], capture_output=True, text=True, check=False
        )
    if shown.returncode:
        raise RuntimeError(f"{program} cannot read a cubin: {shown.stderr.strip()[:200]}")
    return dict(Counter(INSTRUCTION.findall(shown.stdout)))
