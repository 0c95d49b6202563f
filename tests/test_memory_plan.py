"""What fits in memory, decided before anything is allocated."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
from golden_values import tiny_dir
from tiny_gguf import tiny_config

import yakvrt
from yakvrt.config import config_from_json
from yakvrt.cpu_device import CpuDevice
from yakvrt.free_memory import available_memory
from yakvrt.kvcache import full
from yakvrt.memory_plan import MemoryPlan, Place, Wanted, activation_bytes
from yakvrt.model_source import open_model

GIB = 1 << 30


def choose(ctx_size: int, available: int) -> int:
    memory = Place("memory", available, GIB, GIB // 4, lambda n: 100_000 * n)
    return MemoryPlan((memory,), 131_072).context(ctx_size)


def test_the_models_context_or_what_fits() -> None:
    assert choose(0, 64 * GIB) == 131_072
    fits = choose(0, 4 * GIB)
    assert fits % 16 == 0
    assert fits * 100_000 <= 4 * GIB - GIB - GIB // 4 < (fits + 16) * 100_000
    assert choose(fits, 4 * GIB) == fits
    with pytest.raises(ValueError, match=f"largest that fits is --ctx-size {fits}$"):
        choose(fits + 1, 4 * GIB)


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="choose a smaller model"):
        choose(0, GIB)


def test_the_scarcer_of_two_places_decides() -> None:
    gpu = Place("GPU memory", 8 * GIB, GIB, 0, lambda n: 1000 * n)
    host = Place("host memory", 4 * GIB, 0, GIB, lambda n: 100_000 * n)
    plan = MemoryPlan((gpu, host), 131_072)
    assert plan.largest_context == 3 * GIB // 100_000 // 16 * 16
    with pytest.raises(ValueError, match=r"of host memory for its KV cache beside 0\.00 GiB of weights"):
        plan.context(100_000)
    with pytest.raises(ValueError, match=r"9\.00 GiB, the work on them 0\.00 GiB, and 8\.00 GiB of GPU"):
        MemoryPlan((Place("GPU memory", 8 * GIB, 9 * GIB, 0, lambda n: n), host), 4096).context(0)


def test_a_prefix_cache_is_planned_for() -> None:
    """Of a gibibyte less than else is free."""
    plans = []
    for cache_bytes in (0, GIB):
        with open_model(str(tiny_dir("qwen3"))) as source:
            pools = partial(full.pools, source.config, full.Parameters(), "f16")
            wanted = Wanted(source.config, source.tensors, "auto", 64, pools, 1, 0, cache_bytes)
            plans.append(CpuDevice(1).plan(wanted))
    (without,), (reserved,) = (plan.places for plan in plans)
    assert reserved.work_bytes - without.work_bytes == GIB
    with pytest.raises(ValueError, match="cache_bytes=-1 is negative"):
        yakvrt.load(str(tiny_dir("qwen3")), cache_bytes=-1)


def test_available_memory_is_a_sane_number() -> None:
    assert 100 << 20 < available_memory() < 1 << 50


@pytest.mark.parametrize("family", ["llama3", "qwen3-moe"])
@pytest.mark.parametrize("chunk", [64, 1024])
def test_activations_take_what_was_planned(family: str, chunk: int) -> None:
    """Resident memory grows by at most the plan (and a little) when all steps are recorded and run."""
    code = f"""
import resource, yakvrt
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
yakvrt.load({str(tiny_dir(family))!r}, ctx_size=2048, ubatch_size=16).close()
before = peak()
with yakvrt.load({str(tiny_dir(family))!r}, ctx_size=2048, ubatch_size={chunk}) as engine:
    with engine.session() as session:
        session.prefill([5] * 1500)
    with engine.session() as session:
        for _ in session.all_logits([5] * 500): pass
        session.decode(3)
print((peak() - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    planned = activation_bytes(config_from_json(tiny_config(family)), chunk)
    kv_and_slack = 24 << 20
    assert int(done.stdout) < planned + kv_and_slack
