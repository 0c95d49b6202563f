"""Prefill matmul by wgmma, emulated, against numpy; what is left out of it is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_cases import arrays
from cuda_cases.arrays import normal
from cuda_cases.case import compare
from cuda_cases.matmul import round_tiles, wgmma_matmul
from cuda_cases.weights import device_matrix
from cuda_emulated_memory import Running
from cuda_emulated_ops import emulated
from cuda_emulator import launch
from cuda_kernel import run_kernel, solve
from fake_gpu import FakeGpu

from yakvrt.cuda import kernel_choice
from yakvrt.cuda.backend import CudaBackend
from yakvrt.cuda.device import Device
from yakvrt.cuda.device_matrix import DeviceMatrix
from yakvrt.kernels import activation_tiles, matmul_wgmma_cuda
from yakvrt.kernels.cuda_kernel import CudaKernel
from yakvrt.kernels.device_layout import DEVICE_LAYOUTS, TENSOR_CORE_FORMATS
from yakvrt.kernels.matmul import ADD, GATE, WRITE
from yakvrt.kernels.swiglu import swiglu_ref


@pytest.mark.parametrize("name", TENSOR_CORE_FORMATS)
def test_every_format(name: str) -> None:
    """Of more steps than there are stages, and half a step; fewer outputs than a block has."""
    n_cols = 352 if name in ("BF16", "Q8_0") else max(96, DEVICE_LAYOUTS[name].column_multiple)
    solve(wgmma_matmul(name, 128, 5, 100, n_cols))


@pytest.mark.parametrize(
    ("name", "tile", "batch", "n_outputs", "n_cols", "mode"),
    [
        ("Q8_0", 256, 257, 1, 32, WRITE),
        ("BF16", 256, 255, 128, 64, ADD),
        ("BF16", 128, 129, 100, 96, GATE),
        ("Q4_1", 128, 128, 70, 64, ADD),
        ("F16", 256, 1, 131, 32, GATE),
    ],
)
def test_every_tile(name: str, tile: int, batch: int, n_outputs: int, n_cols: int, mode: int) -> None:
    solve(wgmma_matmul(name, tile, batch, n_outputs, n_cols, mode, with_bias=True))


@pytest.mark.parametrize("n_cols", [8, 64, 1024, 1056])
def test_activations_in_tiles(n_cols: int) -> None:
    solve(round_tiles(3, n_cols))


def test_activations_of_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_tiles, "TILE_ROWS", 16)
    monkeypatch.setattr(activation_tiles, "TILE_WORDS", 16 * activation_tiles.ROW_WORDS)
    solve(round_tiles(17, 72))


@pytest.mark.parametrize(
    ("parameters", "told"), [(("Q2_K", 128), "Q8_0"), (("F32", 128), "F16"), (("Q8_0", 32), "128, 256")]
)
def test_what_has_no_kernel_is_refused_with_what_has_one(parameters: tuple[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        matmul_wgmma_cuda.matmul_wgmma_cuda(emulated, *parameters)


def test_the_recorder_takes_it_for_many_rows(gpu: FakeGpu, fake_cubins: Path) -> None:
    backend = CudaBackend(Device(), fake_cubins)
    matrices, weights = [], []
    for name in ("Q8_0", "BF16"):
        values, planes = device_matrix(name, 20, 96)
        held = tuple(backend.put(plane) if plane is not None else None for plane in planes)
        matrices.append(DeviceMatrix(name, 20, 96, 1, held))
        weights.append(arrays.bf16_words(values)[0])
    recorder = backend.record(33, inv_freq=np.ones(8), rope_scale=1.0, heads=(1, 1, 16))
    x, out = recorder.buffer(96), recorder.buffer(20)
    recorder.gated_matmul(out, *matrices, x)
    used = [spec.builder for spec in recorder.specs[1:]]
    assert used == ["round_tiles_cuda", "matmul_wgmma_cuda", "matmul_wgmma_cuda"]
    step, rows = backend.finish(recorder), normal(33, 96)
    backend.write(x, rows)
    step.batch.n_rows[0] = 10
    step.run(0)
    gate, up = (arrays.bf16_words(rows[:10])[0] @ values.T for values in weights)
    compare("out", backend.read(out, 0, 10), swiglu_ref(gate, up), atol=1e-3)
    backend.close()
    assert not gpu.failures


def test_which_kernel_is_chosen() -> None:
    form = kernel_choice.activation_form
    assert form("sm_90a", "Q8_0", 33, False) == form("sm_90a", "F16", 4096, False) == "tiles"
    assert form("sm_90a", "Q8_0", 32, False) == form("sm_90a", "Q8_0", 128, True) == "bf16"
    assert form("sm_100a", "Q8_0", 4096, False) == form("sm_80", "Q8_0", 4096, False) == "bf16"
    assert (form("sm_90a", "Q8_0", 8, False), form("sm_90a", "F32", 4096, False)) == ("int8", "f32")
    tile = kernel_choice.wgmma_tile
    assert [tile(*sizes) for sizes in ((128, 28672), (256, 28672), (2048, 4096), (2048, 1024))] == [
        128,
        256,
        256,
        128,
    ]


def run_with(name: str, words: dict[str, Callable[..., Any]]) -> None:
    """A case of six steps, whose kernel has other functions of the vocabulary."""
    case = wgmma_matmul(name, 128, 9, 20, 384 if name == "BF16" else 512)
    (asked,) = case.launches
    g = SimpleNamespace(**{**vars(emulated), **words})
    launch(asked.kernel.build(g), 1, *asked.arguments)
    case.check()


def nothing(*_: Any) -> None:
    pass


def behind_the_first(name: str, n: int = 1) -> Callable[..., Any]:
    """The first n uses by every thread happen, further ones do not."""
    counts: dict[int, int] = {}

    def word(*arguments: Any) -> Any:
        thread = Running.thread.number
        counts[thread] = counts.get(thread, 0) + 1
        return getattr(emulated, name)(*arguments) if counts[thread] <= n else None

    return word


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("Q4_K", {"fence_async": nothing}, "a barrier that no fence_async made known"),
        ("Q4_K", {"fence_async": behind_the_first("fence_async")}, "wrote without fence_async and a barrier"),
        (
            "BF16",
            {"fence_async": behind_the_first("fence_async", 3)},
            "wrote without fence_async and a barrier",
        ),
        ("Q4_K", {"barrier_wait": nothing}, "before its barrier was waited for"),
        ("BF16", {"barrier_wait": behind_the_first("barrier_wait", 2)}, "before its barrier was waited for"),
        ("Q4_K", {"barrier_expect_bytes": nothing}, "deadlock.*wait at barrier_wait"),
        ("Q4_K", {"warpgroup_fence": nothing}, "multiplies without warpgroup_fence"),
        ("Q4_K", {"warpgroup_commit": nothing}, "which products under way read"),
        ("Q4_K", {"warpgroup_wait": nothing}, "which products under way read"),
        ("BF16", {"warpgroup_wait": nothing}, "which products under way read"),
        ("Q4_K", {"warpgroup_wait": lambda n: emulated.warpgroup_wait(2)}, "which products under way read"),
        ("Q4_K", {"warpgroup_finish": lambda sums, n: emulated.warpgroup_wait(0)}, "that were not finished"),
        ("BF16", {"copy_async_wait": nothing}, "are no numbers"),
        ("BF16", {"copy_async_wait": lambda n: emulated.copy_async_wait(2)}, "which products under way read"),
        (
            "BF16",
            {"warpgroup_mma_n128": lambda sums, a, b: emulated.warpgroup_mma_n128(sums, a, b ^ 2)},
            "are off",
        ),
        (
            "BF16",
            {
                "warpgroup_mma_n128": lambda sums, a, b: emulated.warpgroup_mma_n128(
                    sums, a + emulated.lane() % 2, b
                )
            },
            "other descriptors",
        ),
        ("Q4_K", {"sync_threads": nothing}, "another thread made since the barrier"),
        ("Q4_K", {"sync_threads": behind_the_first("sync_threads")}, "without fence_async and a barrier"),
        ("BF16", {"sync_threads": behind_the_first("sync_threads", 7)}, "read since the barrier"),
    ],
)
def test_what_is_left_out_is_found(name: str, words: dict[str, Callable[..., Any]], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        run_with(name, words)


@pytest.mark.parametrize(
    ("bits", "told"),
    [
        (1 << 62 | 512 // 16 << 32 | 1 << 16, "are off"),
        (2 << 62 | 64 << 32 | 1 << 16, "not of a 128-byte swizzle"),
        (1 << 62 | 64 << 32 | 1 << 49, "not of a 128-byte swizzle"),
        (1 << 62 | 64 << 32 | 1024, "before its barrier was waited for"),
        (1 << 62 | 64 << 32 | 8, "not aligned to 1024 bytes"),
    ],
)
def test_a_wrong_descriptor_is_found(monkeypatch: pytest.MonkeyPatch, bits: int, told: str) -> None:
    monkeypatch.setattr(matmul_wgmma_cuda, "SWIZZLED_ROWS", bits)
    with pytest.raises(AssertionError, match=told):
        run_with("BF16", {})


def test_a_wrong_swizzle_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = activation_tiles.ROW_WORDS
    monkeypatch.setattr(
        matmul_wgmma_cuda, "make_swizzled", lambda g: lambda row, piece: row * rows + piece * 4
    )
    with pytest.raises(AssertionError, match="are off"):
        run_with("BF16", {})


def test_memory_that_is_not_aligned_is_found() -> None:
    with pytest.raises(AssertionError, match="not aligned to 1024 bytes"):
        run_with("BF16", {"dynamic_tiles": emulated.dynamic_u32})


def test_copies_and_their_waits() -> None:
    """A thread copies, all wait: what came is seen. Without the wait, the block ends too early."""

    def kernel(out: Any, x: Any, waits: int) -> None:
        held, bars, thread = emulated.dynamic_tiles(0), emulated.dynamic_u64(256), emulated.thread()
        if thread == 0:
            emulated.barrier_init(bars, 0, 1)
            emulated.fence_async()
            emulated.barrier_expect_bytes(bars, 0, 128)
            emulated.copy_bulk(held, 0, x, 4, 64, bars, 0)
            emulated.copy_bulk(held, 16, x, 0, 64, bars, 0)
        emulated.sync_threads()
        if waits > 0:
            emulated.barrier_wait(bars, 0, 0)
        if waits:
            out[thread] = held[thread]

    x, out = np.arange(20, dtype=np.uint32), np.zeros(32, np.uint32)
    built = CudaKernel(kernel, "u32* u32* i32", 32, 264)
    run_kernel(built, 1, [out], out, x, 1)
    np.testing.assert_array_equal(out, [*x[4:20], *x[:16]])
    with pytest.raises(AssertionError, match="ends with 2 copies under way"):
        run_kernel(built, 1, [out], out, x, 0)
    with pytest.raises(AssertionError, match="into which a copy is under way"):
        run_kernel(built, 1, [out], out, x, -1)
