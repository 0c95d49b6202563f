"""Whole-file quantising of one F16 model by gguf_tools and by llama.cpp, each in a process of its own."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from quiet import busy_seconds

N_LAYERS, WIDTH, FEED_FORWARD, HEADS = 4, 2048, 8192, 16
# llama.cpp's numbers of the file types; pure, so that every weight gets the one type.
FILE_TYPES = {"Q4_0": 2, "Q8_0": 7, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18}
THEIRS = """
import sys, llama_cpp as c
params = c.llama_model_quantize_default_params()
params.ftype, params.nthread, params.pure = int(sys.argv[3]), int(sys.argv[4]), True
sys.exit(c.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""


def llama_file(path: Path) -> Path:
    """An F16 model of architecture llama with normal weights, 537 MB."""
    from gguf_tools.formats import FORMATS
    from gguf_tools.meta_value import ValueType, scalar, string
    from gguf_tools.writer import GGUFWriter, TensorPlan

    numbers = {
        "block_count": N_LAYERS, "context_length": 512, "embedding_length": WIDTH,
        "feed_forward_length": FEED_FORWARD, "attention.head_count": HEADS, "vocab_size": 512,
    }  # fmt: skip
    metadata = {"general.architecture": string("llama")}
    metadata |= {f"llama.{key}": scalar(ValueType.UINT32, value) for key, value in numbers.items()}
    metadata["llama.attention.layer_norm_rms_epsilon"] = scalar(ValueType.FLOAT32, 1e-5)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (512, WIDTH), "output_norm.weight": (WIDTH,)}
    for i in range(N_LAYERS):
        shapes |= {f"blk.{i}.attn_{kind}.weight": (WIDTH, WIDTH) for kind in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.ffn_{kind}.weight": (FEED_FORWARD, WIDTH) for kind in ("gate", "up")}
        shapes[f"blk.{i}.ffn_down.weight"] = (WIDTH, FEED_FORWARD)
        shapes |= {f"blk.{i}.{kind}_norm.weight": (WIDTH,) for kind in ("attn", "ffn")}
    plans = [TensorPlan(n, s, FORMATS["F16" if len(s) > 1 else "F32"]) for n, s in shapes.items()]
    rng = np.random.default_rng(0)
    with GGUFWriter(path, metadata, plans) as writer:
        for plan in plans:
            values = 0.02 * rng.standard_normal(plan.shape, np.float32)
            stored = values.astype(plan.format.block["x"].base)
            writer.write_tensor(plan.name, stored.view(np.uint8))
    return path


def quantise_in_turn(source: Path, types: list[str], n_threads: int, reps: int) -> dict[str, Any]:
    """Seconds of whole processes (start, compiling, reading, writing) and MB of F16 input a second."""
    table: dict[str, Any] = {}
    target = source.with_name("quantised.gguf")
    for kind in types:
        ours = [sys.executable, "-m", "gguf_tools", "quantize", "--pure", "--force"]
        sides = {
            "gguf_tools": [*ours, str(source), str(target), kind, str(n_threads)],
            "llama.cpp": [
                sys.executable, "-c", THEIRS, str(source), str(target), str(FILE_TYPES[kind]), str(n_threads),
            ],
        }  # fmt: skip
        taken: dict[str, list[float]] = {side: [] for side in sides}
        cpus: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(reps):
            for side in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                busy, began = busy_seconds(), time.perf_counter()
                subprocess.run(sides[side], check=True, capture_output=True)
                taken[side].append(time.perf_counter() - began)
                cpus[side].append((busy_seconds() - busy) / taken[side][-1])
                target.unlink()
        megabytes = source.stat().st_size / 1e6
        table[kind] = {
            side: {
                "median_s": round(statistics.median(seconds), 2),
                "mb_s": round(megabytes / statistics.median(seconds), 1),
                "busy_cpus_of_machine": round(statistics.median(cpus[side]), 2),
                "all_s": [round(s, 2) for s in seconds],
            }
            for side, seconds in taken.items()
        }
        ratio = table[kind]["gguf_tools"]["mb_s"] / table[kind]["llama.cpp"]["mb_s"]
        table[kind]["speed_ratio"] = round(ratio, 2)
        print(f"quantise {kind}: {table[kind]}")
    return table
