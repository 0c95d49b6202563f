"""Prompt tokens computed in one step; apart from the engine, so that --help can show the limits at once."""

from __future__ import annotations

MAX_CHUNK = 8192
LOGITS_CHUNK = 240  # bounds the logits of all rows, which a large vocabulary makes large


def default_chunk(device: str) -> int:
    """What this CPU reads a prompt fastest with: on matrix registers weights are widened once for a chunk;
    otherwise its activations should stay in a 1-MiB cache (a multiple of 6, see kernels/pack_size.py). On a
    GPU, enough rows for all its multiprocessors (not measured).
    """
    if device.lower().startswith("cuda"):
        return 2048
    from .cpu.features import host_features

    return 512 if host_features().amx_bf16 else 240
