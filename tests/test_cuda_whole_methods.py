"""Whole models over the KV methods that read chosen rows, on the fake driver and the emulator, against the
CPU's; full and yakv are in test_cuda_device_flag.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu
from tiny_device_model import WIDE_CONFIG, slots_together

import yakvrt

CONFIG = {**WIDE_CONFIG, "num_hidden_layers": 2}  # InfiniGen speculates a layer ahead
PROMPT = [i * 37 % 64 for i in range(16)]
METHODS: dict[str, dict[str, str]] = {  # so that less than the prompt is read
    "yakv-paper": {"sparse_budget": "0.2", "recent": "4"},
    "arkvale": {"sparse_budget": "8", "page": "2", "dense_layers": "0"},
    "quest": {"sparse_budget": "4", "page": "2", "min_pages": "1", "dense_layers": "0"},
    "oracle": {"sparse_budget": "4", "sinks": "1", "recent": "4"},
    "shadowkv": {"sparse_budget": "4", "chunk": "2", "outliers": "2", "local": "4", "rank": "12"},
    "lrqk": {"sparse_budget": "4", "recent": "4", "rank": "4"},
    "infinigen": {"dense_layers": "1"},
}


@pytest.mark.parametrize("name", METHODS)
def test_tokens_are_those_of_the_cpu(
    name: str, gpu: FakeGpu, compiled_on_demand: None, tmp_path: Path
) -> None:
    """A prompt in two chunks; then four slots that hold different beginnings of it decode together, three
    and one, in float32, so that the same rows are selected.
    """
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    how: dict[str, Any] = {"load_format": "dummy", "kv": name, "kv_args": METHODS[name]}
    how |= {"ctx_size": 64, "ubatch_size": 8, "n_slots": 4, "dtype": "f32", "cache_type": "f32"}

    tokens: list[list[int]] = []
    rows_read: list[int] = []

    def run(**device: str) -> np.ndarray:
        with yakvrt.load(str(tmp_path), **how, **device) as engine:
            logits, kv = slots_together(engine, PROMPT, (15, 13, 16), (4, 3, 1), tokens)
        rows_read.append(kv["rows_read"])
        return logits

    cpu, cuda = run(device="cpu"), run(device="cuda", kv_device="cpu")
    assert np.abs(cuda - cpu).max() < 2e-4 * np.abs(cpu).max()
    assert cuda.argmax(axis=1).tolist() == cpu.argmax(axis=1).tolist()
    assert rows_read[0] == rows_read[1] > 0
    assert not gpu.failures
    assert not gpu.held
