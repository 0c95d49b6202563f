"""How much memory a model and its KV cache take, and how much context fits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

WORKSPACE_BYTES = 250 << 20  # code, tokenizer, activations


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by use; decided before anything is allocated."""

    weight_bytes: int
    kv_bytes: int
    available_bytes: int
    ctx_size: int


def plan_memory(
    *,
    weight_bytes: int,
    kv_bytes_per_token: int,
    ctx_size: int,
    model_context: int,
    available_bytes: int,
) -> MemoryPlan:
    """Chooses the context: ctx_size tokens, or for 0 the model's own, or what fits of it.

    Raises: ValueError when the weights, or the context asked for, do not fit.
    """
    left = available_bytes - weight_bytes - WORKSPACE_BYTES
    largest = max(0, left // kv_bytes_per_token // 16 * 16)
    if largest == 0:
        raise ValueError(
            f"the weights take {_gib(weight_bytes)} and {_gib(available_bytes)} of memory is free; "
            "choose a smaller model or --dtype q4_0"
        )
    if ctx_size > largest:
        raise ValueError(
            f"a context of {ctx_size} tokens needs {_gib(ctx_size * kv_bytes_per_token)} for its KV cache "
            f"beside {_gib(weight_bytes)} of weights, {_gib(available_bytes)} is free; "
            f"the largest that fits is --ctx-size {largest}"
        )
    chosen = ctx_size or min(model_context, largest)
    return MemoryPlan(weight_bytes, chosen * kv_bytes_per_token, available_bytes, chosen)


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"


def available_memory() -> int:
    """Bytes this process may take: the machine's free memory within the limits of its control groups."""
    free = _machine_free()
    for directory in _cgroup_directories():
        try:
            limit, used = (
                (directory / name).read_text().strip() for name in ("memory.max", "memory.current")
            )
        except OSError:
            continue
        if limit != "max":
            free = min(free, max(0, int(limit) - int(used) + _reclaimable(directory)))
    return free


def _machine_free() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_directories() -> list[Path]:
    """The process's control group and those above it (version 2)."""
    root = Path("/sys/fs/cgroup")
    try:
        line = next(x for x in Path("/proc/self/cgroup").read_text().splitlines() if x.startswith("0::"))
    except (OSError, StopIteration):
        return []
    path = root / line[3:].lstrip("/")
    return [p for p in (path, *path.parents) if p == root or root in p.parents]


def _reclaimable(directory: Path) -> int:
    """File pages the group holds, which the system drops when memory is asked for."""
    try:
        for line in (directory / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
