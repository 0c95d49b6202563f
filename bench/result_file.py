"""What every result file says of the machine and the code, and how it is written."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "yakvrt",
    "numpy",
    "numba",
    "llvmlite",
    "cuda-bindings",
    "llama_cpp_python",
    "torch",
    "transformers",
)
# Settings that change the speed of either side.
VARIABLES = (
    "OMP_",
    "GOMP_",
    "GGML_",
    "LLAMA_",
    "NUMBA_",
    "OPENBLAS_",
    "MKL_",
    "ONEDNN_",
    "TORCH_",
    "YAKVRT_",
)


def facts() -> dict[str, Any]:
    """The machine, the versions, the commit, the date and the command line."""
    from yakvrt.bench_facts import cpu_info

    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python", *sys.argv]),
        "commit": _commit(),
        "cpu": cpu_info(),
        "cpus_allowed": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
    }


def _commit() -> str:
    """The commit of this checkout, with + when tracked files differ from it; empty where there is no git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True
        ).stdout.strip()

    if shutil.which("git") is None:
        return ""
    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes the result under a temporary name and renames it, so that no half file is ever seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
