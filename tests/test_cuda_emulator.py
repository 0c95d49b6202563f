"""The emulator of CUDA kernels: what is wrong in a kernel is found, what is right gives numpy's results."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable
from typing import Any

import cuda_emulated_warpgroup  # noqa: F401 (adds to the vocabulary)
import numpy as np
import pytest
from cuda_emulated_memory import EmulationError
from cuda_emulated_ops import emulated as g
from cuda_emulator import launch

from yakvrt.kernels.cuda_kernel import CudaKernel

THREADS = 64


def run(
    function: Callable[..., None],
    signature: str,
    *arguments: Any,
    grid: int = 1,
    seed: int | None = None,
    shared_bytes: int = 0,
) -> None:
    launch(CudaKernel(function, signature, THREADS, shared_bytes), grid, *arguments, seed=seed)


def reversed_through_shared(barrier: Callable[[], None]) -> Callable[[Any], None]:
    def kernel(out: Any) -> None:
        held, t = g.shared_f32(THREADS), g.thread()
        held[t] = g.float32(t)
        barrier()
        out[t] = held[THREADS - 1 - t]

    return kernel


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_a_barrier_orders_shared_memory(seed: int | None) -> None:
    out = np.full(THREADS, np.nan, np.float32)
    run(reversed_through_shared(g.sync_threads), "f32*", out, seed=seed)
    np.testing.assert_array_equal(out, np.arange(THREADS)[::-1])


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_a_missing_barrier_is_found_in_every_order(seed: int | None) -> None:
    out = np.full(THREADS, np.nan, np.float32)
    with pytest.raises(EmulationError, match=r"another thread (wrote|read) since the barrier"):
        run(reversed_through_shared(lambda: None), "f32*", out, seed=seed)


def test_a_warps_barrier_orders_its_own_lanes_only() -> None:
    out = np.full(THREADS, np.nan, np.float32)

    def within_the_warp(out: Any) -> None:
        held, t = g.shared_f32(THREADS), g.thread()
        held[t] = g.float32(t)
        g.sync_warp()
        out[t] = held[t ^ 1]

    run(within_the_warp, "f32*", out, seed=4)
    np.testing.assert_array_equal(out, np.arange(THREADS) ^ 1)
    with pytest.raises(EmulationError, match="since the barrier"):
        run(reversed_through_shared(g.sync_warp), "f32*", out)


def test_overwriting_what_others_still_read_is_found() -> None:
    def kernel(out: Any) -> None:
        held, t = g.shared_i32(THREADS), g.thread()
        held[t] = t
        g.sync_threads()
        out[t] = held[0]
        held[0] = t

    with pytest.raises(EmulationError, match="since the barrier"):
        run(kernel, "i32*", np.zeros(THREADS, np.int32))


def test_shared_memory_starts_as_poison() -> None:
    out = np.zeros(THREADS, np.float32)

    def kernel(out: Any) -> None:
        out[g.thread()] = g.shared_f32(THREADS)[g.thread()]

    run(kernel, "f32*", out)
    assert np.isnan(out).all()


@pytest.mark.parametrize("index", [-1, THREADS, 10**9])
def test_reaching_beyond_an_array_is_found(index: int) -> None:
    def read(out: Any) -> None:
        out[0] = out[index]

    def write(out: Any) -> None:
        out[index] = g.float32(0)

    def shifted(out: Any) -> None:
        g.shifted(out, index + 5)[-5] = g.float32(0)

    def wide(out: Any) -> None:
        g.load_f32x4(out, index)

    for kernel in (read, write, shifted, wide):
        with pytest.raises(EmulationError, match=r"thread 0 of block \(0, 0\) reaches element"):
            run(kernel, "f32*", np.zeros(THREADS, np.float32))


@pytest.mark.parametrize("index", [-1, 4])
@pytest.mark.parametrize("kind", ["f32", "u32", "i32"])
def test_reaching_beyond_a_local_array_is_found(kind: str, index: int) -> None:
    def read(out: Any) -> None:
        out[0] = g.float32(getattr(g, f"local_{kind}")(4)[index])

    def write(out: Any) -> None:
        getattr(g, f"local_{kind}")(4)[index] = 1

    for kernel in (read, write):
        with pytest.raises(EmulationError, match=f"reaches element {index} of a local array, which has 4"):
            run(kernel, "f32*", np.zeros(1, np.float32))


def test_local_arrays_start_as_poison_and_hold_what_their_type_holds() -> None:
    found: list[Any] = []

    def kernel() -> None:
        floats, words, numbers = g.local_f32(2), g.local_u32(2), g.local_i32(2)
        floats[1], words[1], numbers[1] = 0.1, -1, 2**31
        found[:] = [floats[0], floats[1], words[0], words[1], numbers[0], numbers[1]]

    run(kernel, "")
    assert np.isnan(found[0])
    assert (type(found[1]), found[1]) == (np.float32, np.float32(0.1))
    assert found[2:] == [0xCDCDCDCD, 2**32 - 1, 0xCDCDCDCD - 2**32, -(2**31)]


def test_the_last_wide_access_must_fit_and_be_aligned() -> None:
    def kernel(x: Any, i: int) -> None:
        g.load_u32x4(x, i)

    x = np.zeros(14, np.uint16)
    run(kernel, "u16* i32", x, 0)
    with pytest.raises(EmulationError, match="reaches elements 8 to 15 of x, which has 14"):
        run(kernel, "u16* i32", x, 8)
    with pytest.raises(EmulationError, match="16 bytes at byte 8 of x"):
        run(kernel, "u16* i32", x, 4)


def test_the_address_0_cannot_be_reached() -> None:
    def kernel(x: Any) -> None:
        g.shifted(x, 3)[0] = g.float32(1)

    with pytest.raises(EmulationError, match="address 0"):
        run(kernel, "f32*", None)


def test_divergent_barriers_are_found() -> None:
    def kernel() -> None:
        if g.thread() < 32:
            g.sync_threads()
        else:
            g.sync_threads()

    with pytest.raises(EmulationError, match=r"divergent barriers; threads: 32 from 0 wait at sync_threads"):
        run(kernel, "")


def test_a_barrier_that_some_have_left_is_found() -> None:
    def kernel() -> None:
        if g.thread() < 40:
            g.sync_threads()

    with pytest.raises(EmulationError, match="some threads have ended"):
        run(kernel, "")


def test_a_deadlock_is_found() -> None:
    def kernel() -> None:
        if g.lane() == 3:
            g.sync_threads()
        g.warp_sum(g.float32(1))

    with pytest.raises(EmulationError, match="deadlock"):
        run(kernel, "")


def test_a_shuffle_needs_all_lanes_at_one_place() -> None:
    def ended(out: Any) -> None:
        if g.lane() != 5:
            out[g.thread()] = g.shuffle_xor(g.lane(), 1)

    def diverged(out: Any) -> None:
        if g.lane() < 16:
            out[g.thread()] = g.shuffle_xor(g.lane(), 1)
        else:
            out[g.thread()] = g.shuffle_xor(g.lane(), 1)

    with pytest.raises(EmulationError, match="lanes 5 have ended"):
        run(ended, "i32*", np.zeros(THREADS, np.int32))
    with pytest.raises(EmulationError, match="the lanes of a warp diverge"):
        run(diverged, "i32*", np.zeros(THREADS, np.int32))


def test_shuffles_and_votes() -> None:
    out = np.zeros((8, THREADS), np.int32)

    def kernel(out: Any) -> None:
        t, lane = g.thread(), g.lane()
        out[t] = g.shuffle_xor(lane, 5)
        out[THREADS + t] = g.shuffle_from(lane, 7)
        out[2 * THREADS + t] = g.shuffle_up(lane, 2)
        out[3 * THREADS + t] = g.shuffle_down(lane, 3)
        out[4 * THREADS + t] = g.ballot(lane % 3 == 0)
        out[5 * THREADS + t] = g.warp_sum(lane)
        out[6 * THREADS + t] = g.warp_max(t)
        out[7 * THREADS + t] = g.block() * 100 + g.block_y() * 10 + g.n_blocks()

    run(kernel, "i32*", out, seed=5)
    lane = np.arange(THREADS) % 32
    np.testing.assert_array_equal(out[0], lane ^ 5)
    np.testing.assert_array_equal(out[1], 7)
    np.testing.assert_array_equal(out[2], np.where(lane < 2, lane, lane - 2))
    np.testing.assert_array_equal(out[3], np.where(lane > 28, lane, lane + 3))
    np.testing.assert_array_equal(out[4].view(np.uint32), sum(1 << i for i in range(0, 32, 3)))
    np.testing.assert_array_equal(out[5], 31 * 16)
    np.testing.assert_array_equal(out[6], np.repeat([31, 63], 32))
    np.testing.assert_array_equal(out[7], 1)


def test_a_shuffle_takes_32_bits() -> None:
    with pytest.raises(EmulationError, match="takes 32 bits"):
        run(lambda: g.shuffle_xor(2**32, 1), "")


def test_atomics_count_every_thread_and_do_not_race_with_each_other() -> None:
    out, total = np.zeros(3 * THREADS, np.int32), np.zeros(1, np.int32)

    def kernel(out: Any, total: Any) -> None:
        counter, t = g.shared_i32(1), g.thread()
        if t == 0:
            counter[0] = 0
        g.sync_threads()
        place = g.atomic_add_i32(counter, 0, 1)
        g.sync_threads()
        out[g.block() * THREADS + place] = counter[0]
        g.atomic_add_i32(total, 0, t)

    run(kernel, "i32* i32*", out, total, grid=3, seed=6)
    np.testing.assert_array_equal(out, THREADS)
    assert total[0] == 3 * THREADS * (THREADS - 1) // 2

    def unordered(out: Any) -> None:
        counter = g.shared_i32(1)
        g.atomic_add_i32(counter, 0, 1)
        out[0] = counter[0]

    with pytest.raises(EmulationError, match="since the barrier"):
        run(unordered, "i32*", out)


def test_integers_wrap_as_in_c() -> None:
    assert g.int32(2**31) == -(2**31)
    assert g.int32(-(2**31) - 1) == 2**31 - 1
    assert g.uint32(-1) == 2**32 - 1
    assert g.uint16(0x12345) == 0x2345
    assert g.int64(2**63) == -(2**63)
    assert g.uint64(-1) == 2**64 - 1
    assert g.int32(np.float32(-2.7)) == -2
    out = np.zeros(2, np.uint16)

    def kernel(out: Any) -> None:
        out[0], out[1] = -1, 0x12345

    run(kernel, "u16*", out)
    assert out.tolist() == [0xFFFF, 0x2345]


def test_products_of_signed_bytes() -> None:
    assert g.dot4_i8(0x80FF017F, 0x8002037F, -5) == 127 * 127 + 3 - 2 + 128 * 128 - 5
    assert g.dot4_i8(0x7F, 1, 2**31 - 1) == -(2**31) + 126


def test_a_fused_product_is_rounded_once() -> None:
    special = [0.0, -0.0, 1.0, -1.0, np.inf, np.nan, 3e38, 1e-45, 1.0000001, 16777217.0]
    values = [np.float32(value) for value in special]
    for a, b, c in itertools.product(values, repeat=3):
        with np.errstate(all="ignore"):
            expected = np.float32(np.float64(a) * np.float64(b) + np.float64(c))
            found = g.fma(a, b, c)
        assert type(found) is np.float32
        np.testing.assert_array_equal(found, expected)
        assert np.isnan(found) or np.signbit(found) == np.signbit(expected)


def test_halves_are_rounded_as_numpy_and_ml_dtypes_do() -> None:
    import ml_dtypes

    rng = np.random.default_rng(2)
    values = (rng.standard_normal(2000) * 10.0 ** rng.integers(-9, 6, 2000)).astype(np.float32)
    special = np.array([0, -0.0, np.inf, -np.inf, 65504, 65520, 3.4e38, 1.00390625, 1.01171875], np.float32)
    for value in np.concatenate([values, special]):
        with np.errstate(over="ignore"):
            assert g.f16_from_f32(value) == value.astype(np.float16).view(np.uint16)
            assert g.bf16_from_f32(value) == value.astype(ml_dtypes.bfloat16).view(np.uint16)
            assert g.high_f16(g.pack_f16(0, value)) == np.float32(value.astype(np.float16))
        assert g.low_bf16(g.pack_bf16(value, 1)) == np.float32(value.astype(ml_dtypes.bfloat16))
    assert np.isnan(g.f32_from_bf16(g.bf16_from_f32(np.float32(np.nan))))


def test_a_copy_arrives_when_it_was_waited_for() -> None:
    def kernel(waits: bool) -> Callable[..., None]:
        def copied(out: Any, x: Any) -> None:
            held, t = g.shared_f32(THREADS * 4), g.thread()
            g.copy_async_or_zero(held, t * 4, x, t * 4, t % 2 == 0)
            g.copy_async_commit()
            g.copy_async_commit()
            if waits:
                g.copy_async_wait(1)
            else:
                g.copy_async_wait(2)
            g.sync_threads()
            other = t ^ 3
            g.store_f32x4(out, other * 4, *g.load_f32x4(held, other * 4))

        return copied

    x = np.arange(THREADS * 4, dtype=np.float32)
    expected = np.where(x // 4 % 2 == 0, x, 0)
    for waits in (True, False):
        out = np.zeros_like(x)
        run(kernel(waits), "f32* f32*", out, x, seed=7)
        assert np.array_equal(out, expected) == waits
        assert np.isnan(out).all() != waits


def test_dynamic_memory_is_shared_by_the_block() -> None:
    out = np.zeros(THREADS, np.float32)

    def kernel(out: Any) -> None:
        held, t = g.dynamic_f32(16), g.thread()
        held[t] = g.float32(t)
        g.sync_threads()
        out[t] = g.dynamic_f32(16)[t ^ 33]

    run(kernel, "f32*", out, shared_bytes=16 + THREADS * 4)
    np.testing.assert_array_equal(out, np.arange(THREADS) ^ 33)
    with pytest.raises(EmulationError, match="of dynamic shared memory, which has 67"):
        run(kernel, "f32*", out, shared_bytes=12 + THREADS * 4)


def test_every_op_of_the_vocabulary_is_emulated_with_its_parameters() -> None:
    from yakvrt.cuda import device_ops

    assert sorted(vars(g)) == sorted(device_ops.__all__)
    for name in device_ops.__all__:
        definition = getattr(getattr(device_ops, name), "_defn", None)
        if definition is not None and (parameters := inspect.signature(getattr(g, name)).parameters):
            if any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
                continue
            assert len(parameters) == len(inspect.signature(definition).parameters) - 1, name


@pytest.mark.parametrize(
    ("signature", "threads", "told"),
    [("f32*", 64, "1 types"), ("f32* f64", 64, "'f64'"), ("f32* i32", 48, "48 threads")],
)
def test_a_wrong_record_is_refused(signature: str, threads: int, told: str) -> None:
    def kernel(out: Any, n: int) -> None: ...

    with pytest.raises(ValueError, match=re.escape(told)):
        CudaKernel(kernel, signature, threads)
