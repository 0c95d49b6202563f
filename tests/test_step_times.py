"""Times of steps: the arithmetic against sums by hand, timing under a clock of its own, hostile entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

import pytest
from golden_values import tiny_dir

from yakvrt.cpu_device import CpuDevice
from yakvrt.kvcache import open_method
from yakvrt.kvcache.contract import StepBytes
from yakvrt.model_source import open_model
from yakvrt.modelled_step import WeightReads, modelled_step
from yakvrt.step_times import StepTimes
from yakvrt.step_timing import (
    LEAST_LAYERS,
    LEAST_ROUNDS,
    PERIOD,
    PERIODS,
    ROUNDS,
    STEPS,
    FilledSlots,
    Steps,
    Timed,
    batches_up_to,
    depths_up_to,
    layers_to_time,
    some_layers,
    time_steps,
    time_upkeep,
)
from yakvrt.tuning import TuningError

# head(B) = 2 + B, layer(B) = 1 + B / 4 at 512 tokens, and every slot adds n / 1024 - 1 / 2 to a layer
TIMES = StepTimes(5, (512, 2048), (3 + 5 * 1.25, 3 + 5 * 2.75), (1, 4), (9.25, 16), (4.25, 8))


@pytest.mark.parametrize("n_layers", [5, 28])
@pytest.mark.parametrize(("n_tokens", "n_slots"), [(512, 1), (2048, 1), (1000, 2), (4096, 3), (100, 4)])
def test_a_step_is_a_head_and_layers(n_layers: int, n_tokens: int, n_slots: int) -> None:
    layer = 1 + n_slots / 4 + n_slots * (n_tokens / 1024 - 0.5)
    assert TIMES.step_ms(n_layers, n_tokens, n_slots) == pytest.approx(2 + n_slots + n_layers * layer)


def test_more_slots_than_were_timed_are_not_guessed() -> None:
    assert TIMES.step_ms(5, 512, 5) is None


def test_a_model_of_one_layer() -> None:
    assert StepTimes(1, (16,), (2.0,), (1,), (2.0,), (2.0,)).step_ms(1, 500) == pytest.approx(2)


def test_noise_predicts_no_step_of_less_than_nothing() -> None:
    noisy = StepTimes(4, (16,), (2.0,), (1,), (2.0,), (2.5,))  # four layers in less time than one
    assert noisy.step_ms(4, 16) == pytest.approx(2)
    assert noisy.step_ms(28, 16) is None


def test_upkeep_counts_for_every_slot_and_layer() -> None:
    kept = replace(TIMES, upkeep_ms=0.5)
    for n_layers, n_slots in (5, 1), (28, 3):
        step_ms = TIMES.step_ms(n_layers, 2048, n_slots)
        assert step_ms is not None
        assert kept.step_ms(n_layers, 2048, n_slots) == pytest.approx(step_ms + n_slots * n_layers * 0.1)


def test_an_entry_comes_back() -> None:
    assert StepTimes.read(TIMES.entry()) == TIMES


@pytest.mark.parametrize(
    "changed",
    [
        {"n_layers": "5"},
        {"n_layers": 0},
        {"n_tokens": 512},
        {"n_tokens": [2048, 512]},
        {"n_tokens": [512.5, 2048]},
        {"n_tokens": [512]},
        {"n_slots": [2, 4]},
        {"depth_ms": [1, "2"]},
        {"depth_ms": [1, 0]},
        {"batch_ms": []},
        {"one_layer_ms": [1]},
        {"one_layer_ms": [1] * 65},
        {"spread": None},
        {"upkeep_ms": None},
        {"upkeep_ms": -1},
    ],
    ids=str,
)
def test_a_broken_entry_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(TuningError, match="calibrate again"):
        StepTimes.read({**TIMES.entry(), **changed})


def test_what_is_timed() -> None:
    assert depths_up_to(100) == (100,)
    assert depths_up_to(8192) == (512, 2048, 8192)
    assert depths_up_to(10**9) == (512, 2048, 8192, 32768, 131072)
    assert batches_up_to(1) == (1,)
    assert batches_up_to(6) == (1, 2, 4, 6)
    with open_model(str(tiny_dir("qwen3")), offline=True) as source:
        config, n = source.config, source.config.n_layers
        assert layers_to_time(config, 10**6, 10**9) == n
        assert layers_to_time(config, 10**9, 1) == min(n, LEAST_LAYERS)
        some = some_layers(source, 1)
        name = "blk.{}.attn_q.weight"
        assert some.tensors[name.format(0)] is source.tensors[name.format(n // 2)]
        assert name.format(1) not in some.tensors
        assert some.config.n_layers == 1


def clock_of(tick: Callable[[int], float]) -> Iterator[float]:
    """Reading i comes tick(i) behind the one before."""
    now = 0.0
    for i in count():
        now += tick(i)
        yield now


@pytest.mark.parametrize("kv", ["full", "yakv"])
def test_steps_are_timed_in_rounds(kv: str) -> None:
    ticks = clock_of(lambda i: 0.001 if i else 0.0)
    device = CpuDevice(1)
    try:
        with open_model(str(tiny_dir("qwen3")), offline=True) as source:
            timed = Timed(*open_method(kv, {}), "f16", "auto", (64, 600), (1, 2))
            times = time_steps(source, device, timed, clock=lambda: next(ticks))
    finally:
        device.close()
    one_ms = pytest.approx((1.0, 1.0))
    assert (times.n_tokens, times.n_slots) == ((64, 600), (1, 2))
    assert times.depth_ms == times.batch_ms == times.one_layer_ms == one_ms
    assert (times.upkeep_ms, times.spread) == (pytest.approx(0, abs=1e-9), 0)
    sides = 5
    # the clock is read before each step, behind each timed one, and once a round behind the first three
    reads = PERIODS * (2 * PERIOD + 1) + 1 + ROUNDS * sides * (2 * STEPS + 1) + ROUNDS - LEAST_ROUNDS
    assert next(ticks) * 1e3 == pytest.approx(reads, abs=1)


def test_one_step_of_a_period_that_takes_longer_is_upkeep() -> None:
    reads = 2 * PERIOD + 1  # of a turn: one before the step that warms up, two around the others

    def tick(i: int) -> float:
        return {20: 0.017, 0: 0.009}.get(i % reads, 0.001) if i < 2 * reads else 0.05  # a turn beside others

    ticks = clock_of(tick)
    device = CpuDevice(1)
    try:
        with open_model(str(tiny_dir("qwen3")), offline=True) as source:
            backend = device.open(None)
            weights = device.load(source, "auto", None)
            timed = Timed(*open_method("full", {}), "f16", "auto", (64,), (1,))
            held = FilledSlots(backend, source.config, weights, timed, 1, 64)
            assert time_upkeep(held, 1, lambda: next(ticks)) == pytest.approx((17 - 1) / PERIOD)
            samples = clock_of(lambda i: 0.004 if i % 9 == 6 else 0.001)
            steps = Steps(held, 1)
            for _ in range(3):
                steps.run(lambda: next(samples))
    finally:
        device.close()
    assert list(map(max, steps.taken_ms)) == pytest.approx([1, 1, 4, 1])
    assert (steps.step_ms, steps.spread) == pytest.approx((1, 0))


def test_a_modelled_step_is_its_slower_side() -> None:
    with open_model(str(tiny_dir("qwen3-moe")), offline=True) as source:
        config = source.config
    weights = WeightReads(held=10_000_000, dense=4_000_000, experts=6_000_000, config=config)
    part = config.n_experts_used / config.n_experts
    assert weights.of_step(1) == pytest.approx(4e6 + 6e6 * part)
    assert weights.of_step(2) == pytest.approx(4e6 + 6e6 * (1 - (1 - part) ** 2))
    read = StepBytes(device=1_000_000, host=500_000)
    device_ms = (4e6 + 6e6 * (1 - (1 - part) ** 2) + 2e6) / 100e6
    step = modelled_step(weights, read, 2, memory_gbps=100, link_gbps=4)
    assert step == pytest.approx((device_ms, 0.25))
    assert step.step_ms == step.link_ms
    assert modelled_step(weights, read, 2, 100, 0) == pytest.approx((device_ms + 0.01, 0))
