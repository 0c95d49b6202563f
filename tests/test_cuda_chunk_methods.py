"""ShadowKV on the CUDA backend over the fake driver and the emulator, beyond test_cuda_page_methods.py: tails
longer than the ring, heads that differ after a cut, numbers that a file may say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fake_gpu import FakeGpu
from kv_slots import KvSlots

from yakvrt.cpu import chunk_pools as cpu_chunk_pools
from yakvrt.cuda import chunk_pools
from yakvrt.cuda.backend import CudaBackend
from yakvrt.cuda.device import Device
from yakvrt.kernels import chunk_layout
from yakvrt.kernels.chosen_rows import attend_rows
from yakvrt.kvcache.slot_state import copy_slot

CTX = 96
HEADS = (4, 2, 16)
ARGS = {"sparse_budget": "8", "chunk": "4", "outliers": "8", "local": "9", "rank": "12"}
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def open_backend(gpu: FakeGpu, compiled_on_demand: None) -> Iterator[Callable[..., CudaBackend]]:
    yield lambda **how: CudaBackend(Device(), None, **how)
    assert not gpu.failures
    assert not gpu.held


@pytest.fixture
def rows() -> Rows:
    rng, (n_heads, n_kv_heads, dim) = np.random.default_rng(5), HEADS
    q, k, v = (rng.standard_normal((CTX, n, dim)).astype(np.float32) for n in (n_heads, *[n_kv_heads] * 2))
    return 2 * q, k, v


def prompt(slots: KvSlots, slot: int, rows: Rows, first: int, last: int) -> None:
    slots.prefill(slot, first, *(x[first:last] for x in rows))


def decoded(slots: KvSlots, slot: int, rows: Rows, first: int, last: int) -> np.ndarray:
    return np.array([slots.decode(slot, i, *(x[i] for x in rows)) for i in range(first, last)])


def test_a_tail_longer_than_the_ring(
    open_backend: Callable[..., CudaBackend], rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that have left it come from where all rows rest; cuts load it again; a further prompt makes chunks
    of them.
    """
    monkeypatch.setattr(chunk_layout, "GENERATED", 2)
    found = []
    for how in ("cpu", "gpu", "host"):
        backend = None if how == "cpu" else open_backend(kv_on_host=how == "host")
        with KvSlots("shadowkv", ARGS, heads=HEADS, ctx_size=CTX, backend=backend) as slots:
            other, slot = slots.kv.open(CTX), slots.kv.open(CTX)
            prompt(slots, slot, rows, 0, 30)
            outs = [decoded(slots, slot, rows, 30, 50)]
            if how != "cpu":
                assert slots.kv.state(slot, 50)["ring.k.0"].values.shape == (2, 9 + 2 * 4 + 2, 16)
            slots.kv.truncate(slot, 50, 47)
            outs.append(decoded(slots, slot, rows, 47, 49))
            assert copy_slot(slots.kv, slot, 49, other, 49) == 49
            outs.append(decoded(slots, other, rows, 49, 51))
            prompt(slots, slot, rows, 49, 60)
            outs.append(decoded(slots, slot, rows, 60, 62))
            found.append((np.concatenate(outs), slots.kv.stats()))
    (cpu, of_cpu), (gpu, of_gpu), (host, of_host) = found
    np.testing.assert_allclose(gpu, cpu, atol=1e-5)
    np.testing.assert_array_equal(host, gpu)
    assert of_cpu == of_gpu == of_host


@pytest.mark.parametrize(("budget", "n_chosen"), [("36", (8, 9)), ("8", (2, 2))])
def test_heads_that_can_choose_different_numbers_of_chunks(
    open_backend: Callable[..., CudaBackend], rows: Rows, budget: str, n_chosen: tuple[int, int]
) -> None:
    """Outliers of the first head lie in front of a cut, those of the second behind it. The budget is more
    than the first can choose, or less.
    """
    q, k, v = rows
    k[:] = np.repeat(k[::4], 4, axis=0)  # chunks of one key
    for head, chunks in ((0, (1, 2)), (1, (12, 13))):
        for chunk in chunks:
            k[4 * chunk + 1, head] *= -1
    args, found = {**ARGS, "sparse_budget": budget, "rank": "32"}, []
    for backend in (None, open_backend(kv_on_host=True)):
        with KvSlots("shadowkv", args, heads=HEADS, ctx_size=CTX, backend=backend) as slots:
            slot = slots.kv.open(CTX)
            prompt(slots, slot, (q, k, v), 0, 70)
            before = decoded(slots, slot, (q, k, v), 70, 71)
            slots.kv.truncate(slot, 71, 50)
            state = slots.kv.state(slot, 50)
            if backend:
                assert np.asarray(state["counts.0"].values).tolist() == [[8, 10], [10, 10]]
                numbers = np.asarray(state["numbers.0"].values)
            else:
                assert state["n_others"].values.tolist() == [[8, 10]]
                assert state["n_chunks"].values.tolist() == [10]
                numbers = np.asarray(state["numbers"].values)[0]
            assert numbers.tolist() == [[0, *range(3, 10), 0, 0, 0, 0], [*range(10), 0, 0]]
            start = slots.kv.stats()["rows_read"]
            outs = [before, decoded(slots, slot, (q, k, v), 50, 51)]
            assert slots.kv.stats()["rows_read"] - start == 2 * 11 + 4 * (2 + sum(n_chosen))
            outs.append(decoded(slots, slot, (q, k, v), 51, 57))
            found.append((np.concatenate(outs), slots.kv.stats()))
    (cpu, of_cpu), (gpu, of_gpu) = found
    np.testing.assert_allclose(gpu, cpu, atol=1e-5)
    assert of_cpu == of_gpu
    if n_chosen[0] == 8:  # all rows of the first head are read
        whole = attend_rows(q[50].reshape(2, 2, 16), k[:51].swapaxes(0, 1), v[:51].swapaxes(0, 1))
        np.testing.assert_allclose(cpu[1][:2], whole[0], atol=0.02)


def test_a_cut_leaves_chunks_as_they_were(rows: Rows) -> None:
    """Landmarks, outliers and keys of low rank."""
    with KvSlots("shadowkv", ARGS, heads=HEADS, ctx_size=CTX) as slots:
        slot = slots.kv.open(CTX)
        prompt(slots, slot, rows, 0, 70)

        def kept(n: int) -> list[np.ndarray]:
            state = slots.kv.state(slot, n)
            found = [np.array(state[name].values) for name in ("basis", "left", "outliers")]
            return [*found, np.array(state["landmarks"].values)[:, :, :5]]

        before = kept(70)
        slots.kv.truncate(slot, 70, 44)
        for then, now in zip(before, kept(44), strict=True):
            np.testing.assert_array_equal(now, then[:, : now.shape[1]])
        decoded(slots, slot, rows, 44, 46)
        slots.kv.truncate(slot, 46, 11)  # no more than the last ones
        state = slots.kv.state(slot, 11)
        assert not state["n_chunks"].values.any()
        assert not state["n_others"].values.any()


def test_a_slot_does_not_know_who_had_it(open_backend: Callable[..., CudaBackend], rows: Rows) -> None:
    """Without a prompt, which would make its chunks anew."""
    found = []
    with KvSlots("shadowkv", ARGS, heads=HEADS, ctx_size=CTX, backend=open_backend()) as slots:
        for _ in range(2):
            slot = slots.kv.open(CTX)
            found.append(decoded(slots, slot, rows, 0, 2))
            slots.kv.truncate(slot, 2, 0)
            prompt(slots, slot, rows, 0, 70)
            decoded(slots, slot, rows, 70, 72)
            slots.kv.release(slot)
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(found[0][0], np.repeat(rows[2][0], 2, axis=0), atol=1e-6)


def test_any_numbers_within_limits_decode(open_backend: Callable[..., CudaBackend], rows: Rows) -> None:
    """What a file says may be wrong; it must not lead outside of anything."""
    rng, n = np.random.default_rng(3), 60
    with KvSlots("shadowkv", ARGS, heads=HEADS, ctx_size=64, backend=open_backend(kv_on_host=True)) as slots:
        slot = slots.kv.open(64)
        for round_ in range(5):
            prompt(slots, slot, rows, 0, n)
            decoded(slots, slot, rows, n, n + 1)
            for part in slots.kv.state(slot, n + 1).values():
                if part.limits:
                    shape, (least, most) = part.values.shape, part.limits
                    drawn = rng.integers(least, most + 1, shape)
                    part.values[...] = drawn if round_ > 1 else np.full(shape, part.limits[round_])
            decoded(slots, slot, rows, n + 1, n + 3)
            slots.kv.truncate(slot, n + 3, n - 7)
            decoded(slots, slot, rows, n - 7, n - 6)
            slots.kv.truncate(slot, n - 6, 0)


def test_an_interrupted_prompt_leaves_exact_rows(
    open_backend: Callable[..., CudaBackend], rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a layer whose chunks were being made anew: nothing is chosen until there is a prompt again."""

    def interrupt(*_: object) -> np.ndarray:
        raise KeyboardInterrupt

    q, k, v = rows
    exact = attend_rows(q[40].reshape(2, 2, 16), *(x[:41].swapaxes(0, 1) for x in (k, v)))
    for backend in (None, open_backend()):
        with KvSlots("shadowkv", ARGS, heads=HEADS, ctx_size=CTX, backend=backend) as slots:
            slot = slots.kv.open(CTX)
            prompt(slots, slot, rows, 0, 40)
            with monkeypatch.context() as patch:
                patch.setattr(cpu_chunk_pools, "page_rows", interrupt)
                patch.setattr(chunk_pools.ChunkPools, "_proxies", interrupt)
                with pytest.raises(KeyboardInterrupt):
                    prompt(slots, slot, rows, 40, 60)
            slots.kv.truncate(slot, 40, 40)
            found = decoded(slots, slot, rows, 40, 41)[0]
            np.testing.assert_allclose(found, exact.reshape(found.shape), atol=1e-5)
