"""`--device cuda`: whole tiny models through the engine, on the fake driver and the emulator."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_gpu import FakeGpu
from golden_values import tiny_cases, tiny_dir

import yakvrt


@pytest.mark.parametrize("family", ["llama3", "qwen3-moe"])
def test_greedy_tokens_are_the_golden_ones(family: str, gpu: FakeGpu, fake_cubins: Path) -> None:
    case = tiny_cases(family)[1]
    with yakvrt.load(
        str(tiny_dir(family)),
        device="cuda",
        cubins=fake_cubins,
        ctx_size=32,
        cache_type="f32",
        ubatch_size=4,  # a prompt in two chunks
    ) as engine:
        sequence = engine.generate(case.ids, temperature=0, max_tokens=3, ignore_eos=True)
        list(sequence)
        assert sequence.ids == case.greedy_ids[:3]
    assert not gpu.failures
    assert not gpu.device
    assert not gpu.pinned
    assert gpu.calls.count("cuGraphLaunch") >= 3
