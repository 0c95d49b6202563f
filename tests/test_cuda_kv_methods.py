"""KV methods on the CUDA backend, over the fake driver and the emulator, against the CPU's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fake_gpu import FakeGpu
from kernel_team import SCORE_ROUNDING
from kv_slots import KvSlots

from yakvrt.cuda.backend import CudaBackend
from yakvrt.cuda.device import Device
from yakvrt.kvcache import open_method, tail_fit, yakv
from yakvrt.kvcache.slot_state import copy_slot
from yakvrt.prefix_cache import PrefixCache

HEADS, CTX = (2, 1, 64), 384
YAKV = {"sparse_budget": "0.13", "min_seqlen_to_prune": "0"}
# how far the CPU may be: scoring by tables (codeword_tables.py) it may select another row for the last
FAR = {"int8": 5e-3, "tables": 0.1}[SCORE_ROUNDING]
WAITS = ("Synchronize", "DtoH", "HtoD")
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def open_backend(gpu: FakeGpu, compiled_on_demand: None) -> Iterator[Callable[..., CudaBackend]]:
    yield lambda **how: CudaBackend(Device(), None, **how)
    assert not gpu.failures
    assert not gpu.device
    assert not gpu.pinned


def rows(n: int) -> Rows:
    rng = np.random.default_rng(11)
    n_heads, n_kv_heads, dim = HEADS
    sizes = n_heads, n_kv_heads, n_kv_heads
    q, k, v = (rng.standard_normal((CTX, heads, dim)).astype(np.float32) for heads in sizes)
    return q[:n], k[:n] + 0.5, v[:n]


def part(first: int, last: int) -> Rows:
    q, k, v = rows(last)
    return q[first:], k[first:], v[first:]


def decoded(slots: KvSlots, slot: int, first: int, n: int) -> np.ndarray:
    q, k, v = rows(first + n)
    return np.array([slots.decode(slot, i, q[i], k[i], v[i]) for i in range(first, first + n)])


def error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize(
    ("selector", "k_bits", "rule"),
    [("2bit", "r3", "sum"), ("2bit", "4", "max"), ("1.5bit", "r3", "sum"), ("1bit", "r3", "mean")],
)
def test_yakv_is_that_of_the_cpu(
    open_backend: Callable[..., CudaBackend], selector: str, k_bits: str, rule: str
) -> None:
    """A prompt, tokens behind it, one of which completes a block, a further prompt, a cut into the
    window, one into a block, and more tokens; with rows on the device and on the host the same bits.
    """
    found = []
    for how in ("cpu", "gpu", "host"):
        backend = None if how == "cpu" else open_backend(kv_on_host=how == "host")
        args = {
            **YAKV,
            "selector": selector,
            "k_bits": k_bits,
            "rule": rule,
            "tail": "0.25",
            "slot_cache": "1.5",
        }
        with KvSlots("yakv", args, heads=HEADS, ctx_size=CTX, kind="f16", backend=backend) as slots:
            slots.kv.open(CTX)
            slot = slots.kv.open(CTX)
            slots.prefill(slot, 0, *part(0, 194))
            outs = [decoded(slots, slot, 194, 2)]
            slots.prefill(slot, 196, *part(196, 236))
            outs.append(decoded(slots, slot, 236, 1))
            for held, n in ((237, 166), (167, 86)):
                assert slots.kv.truncate(slot, held, n) == n
                outs.append(decoded(slots, slot, n, 1))
            stats = slots.kv.stats()
            found.append((np.concatenate(outs), stats["rows_read"], stats["steps"]))
            if how == "host":
                assert 0 < stats["hit_rate"] < 1
    (cpu, *cpu_counts), (gpu, *gpu_counts), (host, *host_counts) = found
    assert error(gpu, cpu) < FAR
    assert np.median([error(*pair) for pair in zip(gpu, cpu, strict=True)]) < min(FAR, 0.02)
    np.testing.assert_array_equal(host, gpu)
    assert cpu_counts == gpu_counts == host_counts


def test_rows_are_recalled_in_the_order_of_the_stream(
    open_backend: Callable[..., CudaBackend], gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restoring and cutting wait for nothing, although the rows in host memory are still to be encoded; on
    another stream, which nobody waits for, the rows would be missing.
    """
    n, heads, dim, indexed = 140, 2, 64, slice(4, 68)
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((n, heads, dim)).astype(np.float32) for _ in range(3))
    found = []
    for backend in (None, open_backend(kv_on_host=True)):
        args = {**YAKV, "slot_cache": "1.5", "tail": "0"}
        sizes = (heads, heads, dim)
        with KvSlots("yakv", args, heads=sizes, ctx_size=256, kind="f16", backend=backend) as slots:
            slots.kv.open(256)
            slot = slots.kv.open(256)
            slots.prefill(slot, 0, q, k, v)
            n_calls = len(gpu.calls)
            slots.kv.restore(0, slot, n)
            slots.kv.truncate(slot, n, 100)
            if backend:
                asked = gpu.calls[n_calls:]
                assert asked.count("cuLaunchKernel") == 2
                assert not [name for name in asked if any(word in name for word in WAITS)]
            staged = slots.backend.slot_rows(slots.staged, 0, heads, dim)
            found.append(staged.read(0, n))
            if backend:
                staged.write(0, np.zeros((heads, n, dim)), np.zeros((heads, n, dim)))
                with monkeypatch.context() as patched:
                    patched.setattr(backend._streams, "now", backend._streams.side)
                    slots.kv.restore(0, slot, n)
                assert not staged.read(0, n)[0][:, indexed].any()
                backend._streams.side.synchronise()
    for exact, cpu, cuda in zip((k, v), *found, strict=True):
        for head in range(heads):
            assert 0.01 < error(cuda[head, indexed], exact[indexed, head]) < 0.15
            assert error(cuda[head], cpu[head]) < 0.02


def test_the_tail_is_fitted(
    open_backend: Callable[..., CudaBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_fit, "FIT_TOKENS", 2)
    monkeypatch.setattr(yakv, "FIT_TOKENS", 2)
    parts = []
    for backend in (None, open_backend()):
        with KvSlots("yakv", YAKV, heads=HEADS, ctx_size=CTX, kind="f16", backend=backend) as slots:
            slot = slots.kv.open(CTX)
            slots.prefill(slot, 0, *part(0, 200))
            state = slots.kv.state(slot, 200)
            held = state["tail_parts" if backend is None else "tail_parts.0"].values
            parts.append(np.ascontiguousarray(held).view(np.float32).reshape(-1))
            assert slots.kv.stats()["steps"] == 0
    np.testing.assert_allclose(parts[1], parts[0], atol=1.01 / 32)
    assert not (parts[1] == yakv.UNFITTED_PART).all()


def test_a_copied_slot_goes_on_alike(open_backend: Callable[..., CudaBackend]) -> None:
    """Rows on the host, of which some are resident; then behind a cut, whose rows are still on their way."""
    args = {**YAKV, "tail": "0.25", "slot_cache": "1.5"}
    backend = open_backend(kv_on_host=True)
    with KvSlots("yakv", args, heads=HEADS, ctx_size=CTX, kind="bf16", backend=backend) as slots:
        first, second = slots.kv.open(CTX), slots.kv.open(CTX)
        slots.prefill(first, 0, *part(0, 200))
        for held, n in ((200, 200), (201, 150)):
            slots.kv.truncate(first, held, n)
            assert copy_slot(slots.kv, first, n, second, n) == n
            outs = [decoded(slots, slot, n, 1) for slot in (first, second)]
            np.testing.assert_array_equal(*outs)
        slots.kv.truncate(second, 151, 0)
        load_kept(slots, first, 151, second, 151)
        np.testing.assert_array_equal(*[decoded(slots, slot, 151, 1) for slot in (first, second)])


def load_kept(slots: KvSlots, source: int, n_held: int, target: int, n: int) -> None:
    """An empty slot gets the first n tokens from a cache that has kept all of another's."""
    cache = PrefixCache(1 << 30)
    cache.keep(list(range(n_held)), slots.kv.state(source, n_held))
    prefix = cache.find(list(range(n)), n)
    assert prefix
    prefix.fill(slots.kv.state(target, prefix.n_held))
    assert n in (n_held, slots.kv.truncate(target, n_held, n))


def test_a_kept_beginning_goes_on_alike(open_backend: Callable[..., CudaBackend]) -> None:
    backend = open_backend()
    with KvSlots("full", {}, heads=HEADS, ctx_size=CTX, kind="f16", backend=backend) as slots:
        first, second = slots.kv.open(CTX), slots.kv.open(CTX)
        slots.prefill(first, 0, *part(0, 150))
        load_kept(slots, first, 150, second, 100)
        np.testing.assert_array_equal(*[decoded(slots, slot, 100, 1) for slot in (first, second)])


@pytest.mark.parametrize("name", ["full", "shadowkv", "lrqk", "infinigen"])
def test_other_methods_are_those_of_the_cpu(open_backend: Callable[..., CudaBackend], name: str) -> None:
    """A prompt, a token, a further prompt, and a token."""
    found = []
    for backend in (None, open_backend()):
        with KvSlots(name, {}, heads=HEADS, ctx_size=CTX, kind="f16", backend=backend) as slots:
            slot = slots.kv.open(CTX)
            slots.prefill(slot, 0, *part(0, 70))
            outs = [decoded(slots, slot, 70, 1)]
            slots.prefill(slot, 71, *part(71, 80))
            found.append(np.concatenate([*outs, decoded(slots, slot, 80, 1)]))
    assert error(found[1], found[0]) < 2e-3


def test_what_a_step_of_yakv_takes_is_planned(open_backend: Callable[..., CudaBackend]) -> None:
    """Rounded up: candidates of a head to 2048."""
    with KvSlots("yakv", {}, heads=HEADS, ctx_size=CTX, kind="f16", backend=open_backend()) as slots:
        recorder = slots._recorder(4)
        slots.kv.decode(recorder, 0, slots._inputs(recorder), recorder.buffer(2 * 64))
        names = ["candidates", *(f"yakv_{name}" for name in ("logits", "weights", "ids", "places"))]
        names += ["yakv_missing", "yakv_targets"]
        taken = sum(recorder.scratch(name, 0, np.uint32).nbytes for name in names)
        method, parameters = open_method("yakv", {})
        planned = method.pools(slots.config, parameters, "f16", CTX).gpu.step
        assert 4 * planned <= taken < 4 * (planned + 2048 * 8)
