"""KV methods on the CUDA backend, over the fake driver and the emulator, against the CPU's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_cubins import write_fake_cubin
from fake_gpu import FakeGpu
from kv_slots import KvSlots

from yakvrt.cuda import device_kernels
from yakvrt.cuda.backend import CudaBackend
from yakvrt.cuda.device import Device
from yakvrt.kernel_build.spec import KernelSpec

HEADS, CTX = (4, 2, 64), 384
YAKV = {"sparse_budget": "0.1", "min_seqlen_to_prune": "0"}
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def open_backend(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., CudaBackend]]:
    """Kernels are "compiled" when asked for."""

    def compiled(specs: list[KernelSpec], archs: list[str], directory: Path, progress: object) -> None:
        for spec in specs:
            write_fake_cubin(directory, spec, *archs)

    monkeypatch.setattr(device_kernels, "compile_missing", compiled)
    monkeypatch.setattr(device_kernels, "cache_path", lambda: tmp_path)
    yield lambda **how: CudaBackend(Device(), None, **how)
    assert not gpu.failures
    assert not gpu.device
    assert not gpu.pinned


def rows(n: int) -> Rows:
    rng = np.random.default_rng(11)
    n_heads, n_kv_heads, dim = HEADS
    q, k, v = (
        rng.standard_normal((CTX, heads, dim)).astype(np.float32) for heads in (n_heads, *[n_kv_heads] * 2)
    )
    return q[:n], k[:n] + 0.5, v[:n]


def part(first: int, last: int) -> Rows:
    q, k, v = rows(last)
    return q[first:], k[first:], v[first:]


def decoded(slots: KvSlots, slot: int, first: int, n: int) -> np.ndarray:
    q, k, v = rows(first + n)
    return np.array([slots.decode(slot, i, q[i], k[i], v[i]) for i in range(first, first + n)])


def error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("k_bits", ["r3", "4"])
def test_yakv_is_that_of_the_cpu(open_backend: Callable[..., CudaBackend], k_bits: str) -> None:
    """A prompt, tokens behind it, one of which completes a block, a further prompt, a cut, and more tokens;
    with rows on the device and on the host the same bits.
    """
    found = []
    for how in ("cpu", "gpu", "host"):
        backend = None if how == "cpu" else open_backend(kv_on_host=how == "host")
        args = {**YAKV, "k_bits": k_bits, "tail": "0.25", "slot_cache": "1.5"}
        with KvSlots("yakv", args, heads=HEADS, ctx_size=CTX, kind="f16", backend=backend) as slots:
            slots.kv.open(CTX)
            slot = slots.kv.open(CTX)
            slots.prefill(slot, 0, *part(0, 258))
            outs = [decoded(slots, slot, 258, 3)]
            slots.prefill(slot, 261, *part(261, 300))
            outs.append(decoded(slots, slot, 300, 1))
            assert slots.kv.truncate(slot, 301, 230) == 230
            outs.append(decoded(slots, slot, 230, 1))
            stats = slots.kv.stats()
            found.append((np.concatenate(outs), stats["rows_read"], stats["steps"]))
            if how == "host":
                assert 0 < stats["hit_rate"] < 1
    (cpu, *cpu_counts), (gpu, *gpu_counts), (host, *host_counts) = found
    assert error(gpu, cpu) < 5e-3
    np.testing.assert_array_equal(host, gpu)
    assert cpu_counts == gpu_counts == host_counts
