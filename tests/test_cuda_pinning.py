"""Host memory for KV rows, pinned in chunks, on the fake driver; what is told and given back if it fails."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cuda_kernel import count
from fake_cubins import write_fake_cubin
from fake_gpu import FakeGpu
from interruption import Interruption

from yakvrt.cuda import pinned_pool
from yakvrt.cuda.device import Device
from yakvrt.cuda.device_kernels import built_kernels
from yakvrt.cuda.driver import DeviceError
from yakvrt.cuda.memory import DeviceMemory
from yakvrt.cuda.pinned_pool import PinnedPool
from yakvrt.cuda.stream import Stream
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.rms_norm import rms_norm_ref

CHUNK, MB = 10 * 4096 * 256, 10**6
POOL = 4 * CHUNK - 100


@pytest.fixture(autouse=True)
def mappings(monkeypatch: pytest.MonkeyPatch) -> list[mmap.mmap]:
    """Those that were made, in chunks of 10 MiB; the machine's own memory does not matter."""
    made: list[mmap.mmap] = []

    class Noted(mmap.mmap):
        def __init__(self, *given: int, **more: int) -> None:
            made.append(self)

    monkeypatch.setattr(mmap, "mmap", Noted)
    monkeypatch.setattr(pinned_pool, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(pinned_pool, "PIECE_BYTES", CHUNK // 4)
    monkeypatch.setattr(pinned_pool, "available_memory", lambda: 1 << 40)
    return made


def test_a_pool_is_pinned_in_chunks(gpu: FakeGpu, mappings: list[mmap.mmap]) -> None:
    told: list[tuple[int, int]] = []
    with Device() as device:
        pool = PinnedPool(device, POOL, lambda done, total: told.append((done, total)))
        assert list(gpu.registered.values()) == [CHUNK] * 4
        assert told == [(10 * (i + 1), 40) for i in range(4)]
        first, second = pool.take(100), pool.take(2 * CHUNK)
        assert first.address == first.array.ctypes.data == min(gpu.registered)
        assert first.address % (2 << 20) == 0
        assert second.address == first.address + 256
        assert first.array.shape == (100,)
        with pytest.raises(ValueError, match=f"{256 + 4 * CHUNK} bytes do not fit into a pool of {POOL}"):
            pool.take(2 * CHUNK)
        pool.free()
        pool.free()
    assert not gpu.held
    assert mappings[0].closed


def test_kernels_read_across_chunks_and_copies_do_not(gpu: FakeGpu, tmp_path: Path) -> None:
    norm_spec = kernel("rms_norm", "rms_norm_cuda")
    write_fake_cubin(tmp_path, norm_spec)
    x = np.random.default_rng(3).standard_normal((1, 64)).astype(np.float32)
    with Device() as device:
        stream, norm = Stream(), built_kernels(device, tmp_path).load(norm_spec)
        pool = PinnedPool(device, POOL)
        pool.take(CHUNK - 256)
        rows = pool.take(128 + 3 * x.nbytes)
        numbers = rows.array[128:].view(np.float32).reshape(3, 64)
        numbers[0], numbers[1] = x[0], 1
        n_rows = DeviceMemory(8)
        n_rows.upload(count(1), stream)
        place = [rows.address + 128 + i * x.nbytes for i in range(3)]
        norm.launch(stream, 1, norm.arguments(place[2], 64, place[0], 64, place[1], 64, 1e-5, n_rows))
        stream.synchronise()
        np.testing.assert_allclose(numbers[2:], rms_norm_ref(x, np.ones(64, np.float32), 1e-5), rtol=2e-6)
        copied = DeviceMemory(x.nbytes)
        copied.upload(numbers[1], stream)
        with pytest.raises(DeviceError, match="refused cuMemcpyHtoDAsync: CUDA_ERROR_INVALID_VALUE"):
            copied.upload(numbers[0], stream)
        pool.free()


def limited_gpu(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.pinnable_bytes = 25 * MB


def limited_memory(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned_pool, "available_memory", lambda: 30 * MB - sum(gpu.registered.values()))


def no_addresses(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: int, **more: int) -> mmap.mmap:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)


def no_host_memory(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.reads_registered, gpu.faults["cuMemHostAlloc"] = False, 2


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (
            limited_gpu,
            r"0\.02 of 0\.04 GB .* could be pinned \(.*cuMemHostRegister: CUDA_ERROR_OUT_OF_MEMORY\)",
        ),
        (
            limited_memory,
            r"0\.02 of 0\.04 GB .* could be pinned \(0\.01 GB more are free\): free some memory",
        ),
        (
            no_addresses,
            r"0\.00 of 0\.04 GB .* \(Cannot allocate memory\): .* or take a smaller context or few",
        ),
        (no_host_memory, "42 MB of host memory cannot be pinned"),
    ],
)
def test_a_pool_that_cannot_be_pinned(
    gpu: FakeGpu,
    mappings: list[mmap.mmap],
    monkeypatch: pytest.MonkeyPatch,
    limit: Callable[[FakeGpu, pytest.MonkeyPatch], None],
    told: str,
) -> None:
    limit(gpu, monkeypatch)
    with Device() as device, pytest.raises(DeviceError, match=told):
        PinnedPool(device, POOL)
    assert not gpu.held
    assert all(mapping.closed for mapping in mappings)


def test_a_gpu_that_knows_registered_memory_elsewhere(gpu: FakeGpu, mappings: list[mmap.mmap]) -> None:
    gpu.reads_registered = False
    with Device() as device:
        pool = PinnedPool(device, POOL)
        assert gpu.held == {"pinned": 1}
        assert pool.take(8).address == pool.take(8).address - 256 == min(gpu.pinned)
        pool.free()
    assert not gpu.held
    assert not mappings


@pytest.mark.parametrize("after", [True, False])
def test_ctrl_c_while_pinning(
    gpu: FakeGpu, mappings: list[mmap.mmap], monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """The driver has pinned a chunk, or not yet, when the interruption is seen."""
    interruption = Interruption(monkeypatch, 3, "cuMemHostRegister", after=after)
    with Device() as device, pytest.raises(KeyboardInterrupt):
        PinnedPool(device, POOL)
    assert interruption.happened
    assert not gpu.held
    assert mappings[0].closed


def test_ctrl_c_between_chunks(gpu: FakeGpu, mappings: list[mmap.mmap]) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with Device() as device, pytest.raises(KeyboardInterrupt):
        PinnedPool(device, POOL, interrupt)
    assert not gpu.held
    assert mappings[0].closed
