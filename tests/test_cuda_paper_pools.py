"""yakv-paper on the CUDA backend over the fake driver and the emulator: long tails, cuts, slots used again,
what it takes of a machine. Beside what it has in common with methods of pages (test_cuda_page_methods.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu
from kv_slots import KvSlots
from paper_scores import dots_of_bytes
from tiny_device_model import WIDE_CONFIG

import yakvrt
from yakvrt import plan
from yakvrt.cpu.coded_rows import CodedRows
from yakvrt.cuda.backend import CudaBackend
from yakvrt.cuda.device import Device
from yakvrt.kernels import paper_layout
from yakvrt.kvcache import open_method
from yakvrt.kvcache.slot_state import copy_slot
from yakvrt.kvcache.state_blocks import StateBlocks
from yakvrt.prefix_cache import PrefixCache

CTX, HEADS = 160, (4, 2, 16)
ARGS = {"sparse_budget": "0.2", "prefix_budget": "5", "recent": "8"}


@pytest.fixture
def open_backend(gpu: FakeGpu, compiled_on_demand: None) -> Iterator[Callable[..., CudaBackend]]:
    yield lambda **how: CudaBackend(Device(), None, **how)
    assert not gpu.failures
    assert not gpu.held


def rows(first: int, last: int, seed: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((CTX, n, HEADS[2])).astype(np.float32) for n in (4, 2, 2))
    return 2 * q[first:last], k[first:last], v[first:last]


def decoded(slots: KvSlots, slot: int, first: int, n: int) -> np.ndarray:
    given = zip(*rows(first, first + n), strict=True)
    return np.array([slots.decode(slot, first + i, *each) for i, each in enumerate(given)])


def opened(backend: Any, args: dict[str, str] = ARGS, kind: str = "f32") -> KvSlots:
    return KvSlots("yakv-paper", args, heads=HEADS, ctx_size=CTX, kind=kind, backend=backend)


def test_a_tail_longer_than_the_ring(
    open_backend: Callable[..., CudaBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From nothing on; behind a prompt; behind cuts within the tail, to its beginning, and far into what was
    indexed; behind a further prompt, and one that is shorter than the first tokens.
    """
    monkeypatch.setattr(CodedRows, "dots", dots_of_bytes)
    monkeypatch.setattr(paper_layout, "RING_BEYOND", 2)
    found = []
    for how in ("cpu", "gpu", "host"):
        backend = None if how == "cpu" else open_backend(kv_on_host=how == "host")
        with opened(backend, ARGS | {"recent": "4"}) as slots:
            slot = slots.kv.open(CTX)
            outs = [decoded(slots, slot, 0, 8)]
            slots.prefill(slot, 8, *rows(8, 100))
            outs.append(decoded(slots, slot, 100, 5))
            for held, cut in ((105, 104), (105, 100), (101, 60)):
                slots.kv.truncate(slot, held, cut)
                outs.append(decoded(slots, slot, cut, 1))
            slots.prefill(slot, 61, *rows(61, 90))
            outs.append(decoded(slots, slot, 90, 1))
            slots.kv.truncate(slot, 91, 2)
            slots.prefill(slot, 2, *rows(2, 4))
            outs.append(decoded(slots, slot, 4, 1))
            stats = slots.kv.stats()
            counts = [stats[key] for key in ("rows_read", "gross_bytes", "moved_bytes", "hit_rate", "steps")]
            found.append((np.concatenate(outs), counts))
    (cpu, cpu_counts), (gpu, gpu_counts), (host, host_counts) = found
    np.testing.assert_allclose(gpu, cpu, atol=2e-5)
    np.testing.assert_array_equal(host, gpu)
    assert cpu_counts == gpu_counts == host_counts
    assert cpu_counts[1] < cpu_counts[2] < 2 * cpu_counts[1]


def test_scores_of_bytes_choose_nearly_what_exact_ones_do(open_backend: Callable[..., CudaBackend]) -> None:
    found = []
    for backend in (None, open_backend()):
        with opened(backend) as slots:
            slot = slots.kv.open(CTX)
            slots.prefill(slot, 0, *rows(0, 120))
            found.append(decoded(slots, slot, 120, 4))
            stats = slots.kv.stats()
            assert (stats["rows_read"], stats["steps"]) == (2 * sum(24 + 5 + 9 + i for i in range(4)), 4)
    assert 1e-5 < np.linalg.norm(found[1] - found[0]) / np.linalg.norm(found[0]) < 0.1


def state(slots: KvSlots, slot: int, n: int) -> dict[str, np.ndarray]:
    return {name: np.array(part.values) for name, part in slots.kv.state(slot, n).items()}


@pytest.mark.parametrize("on_host", [True, False])
def test_a_slot_does_not_know_who_had_it(open_backend: Callable[..., CudaBackend], on_host: bool) -> None:
    """Nor what it held before a cut: what is not indexed is nothing, also beside what is, in its block."""
    found = []
    with opened(open_backend(kv_on_host=on_host)) as slots:
        for n_before in (0, 150):
            slot = slots.kv.open(CTX)
            if n_before:
                slots.prefill(slot, 0, *rows(0, n_before, seed=6))
                slots.kv.truncate(slot, n_before, 0)
            slots.prefill(slot, 0, *rows(0, 69))
            outs = decoded(slots, slot, 69, 10)
            found.append(state(slots, slot, 79) | {"outs": outs})
            slots.kv.release(slot)
    for other in found[1:]:
        for name, values in found[0].items():
            np.testing.assert_array_equal(other[name].view(np.uint8), values.view(np.uint8), err_msg=name)
    first, end = 5, 69 - 8
    codes, selectors = found[0]["codes.0"], found[0]["selectors.0"]
    assert codes.shape == (1, 79 - 8 - first, 2, 16)
    assert codes[:, : end - first].any(axis=-1).all()
    assert not codes[:, end - first :].any()
    assert selectors.shape[:2] == (2, 2)
    assert not selectors[:, 1].any()


@pytest.mark.parametrize("on_host", [True, False])
def test_blocks_of_a_state(open_backend: Callable[..., CudaBackend], on_host: bool) -> None:
    """A state cut into blocks that a further prompt leaves as they were, and filled into another slot."""
    with opened(open_backend(kv_on_host=on_host)) as slots:
        source, target = slots.kv.open(CTX), slots.kv.open(CTX)
        slots.prefill(source, 0, *rows(0, 66))
        held = StateBlocks(slots.kv.state(source, 66), 66, 32)
        blocks = [held.block(i) for i in range(2)]
        slots.prefill(source, 66, *rows(66, 150))
        after = StateBlocks(slots.kv.state(source, 150), 150, 32)
        assert all(after.holds(i, block) for i, block in enumerate(blocks))
        cache = PrefixCache(1 << 30)
        cache.keep(list(range(150)), slots.kv.state(source, 150))
        prefix = cache.find(list(range(120)), 120)
        assert prefix
        assert set(blocks[1].arrays) == {"exact.k.0", "exact.v.0", "codes.0", "scales.0"}
        prefix.fill(slots.kv.state(target, prefix.n_held))
        assert prefix.n_held == 120 or slots.kv.truncate(target, prefix.n_held, 120) == 120
        slots.kv.truncate(source, 150, 120)
        np.testing.assert_array_equal(*(decoded(slots, slot, 120, 2) for slot in (source, target)))


def test_layers_that_have_indexed_different_numbers_of_tokens(
    open_backend: Callable[..., CudaBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a further prompt leaves them that was interrupted behind the first layer; and a copy of them."""
    monkeypatch.setattr(CodedRows, "dots", dots_of_bytes)
    how: dict[str, Any] = {"heads": HEADS, "ctx_size": CTX, "kind": "f32", "n_layers": 2}
    found = []
    for backend in (None, open_backend()):
        with KvSlots("yakv-paper", ARGS, backend=backend, **how) as slots:
            source, target = slots.kv.open(CTX), slots.kv.open(CTX)
            for layer in range(2):
                slots.prefill(source, 0, *rows(0, 40), layer=layer)
            for position in range(40, 44):
                for layer in range(2):
                    slots.decode(source, position, *(x[position] for x in rows(0, CTX)), layer=layer)
            slots.prefill(source, 44, *rows(44, 110))
            slots.kv.truncate(source, 44, 44)
            assert np.asarray(slots.kv.state(source, 44)["ends"].values).reshape(-1).tolist() == [36, 32]
            assert copy_slot(slots.kv, source, 44, target, 44) == 44
            given = [x[44] for x in rows(0, CTX)]
            found += [
                [slots.decode(slot, 44, *given, layer=layer) for layer in range(2)]
                for slot in (source, target)
            ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=2e-5)


def test_what_is_pinned_is_planned(open_backend: Callable[..., CudaBackend], gpu: FakeGpu) -> None:
    """The codes, and the exact rows of all tokens beside them."""
    with opened(open_backend(kv_on_host=True), kind="f16") as slots:
        method, parameters = open_method("yakv-paper", ARGS)
        pools = method.pools(slots.config, parameters, "f16", CTX)
        assert pools.gpu.host == CTX * 2 * 2 * 16 * 2
        planned = 2 * (sum(pools.host.values()) + pools.gpu.host)
        pinned, page = sum(gpu.registered.values()), 4096  # of which each pool takes whole ones
        assert planned <= pinned <= planned + 2 * page


def test_the_plan_counts_what_lies_beside_the_codes(
    gpu: FakeGpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(WIDE_CONFIG))
    flags = ["-m", str(tmp_path), "--load-format", "dummy", "-dev", "cuda", "--kv", "yakv-paper", "--json"]

    def totals(n: int, where: str) -> dict[str, int]:
        assert plan.main([*flags, "-c", str(n), "--kv-device", where]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return {place["name"]: place["total_bytes"] for place in found["places"]}

    beside = 1000 * (64 + 4 + 2 * 64 * 2)  # codes and scales, and a key and its value in 16 bits
    for where, name in (("cpu", "host memory"), ("gpu", "GPU memory")):
        other = totals(2000, "cpu" if where == "gpu" else "gpu")[name]
        base = totals(1000, "cpu" if where == "gpu" else "gpu")[name]
        assert totals(2000, where)[name] - totals(1000, where)[name] - (other - base) == beside


def test_wide_rows_are_refused_before_weights_load(
    gpu: FakeGpu, compiled_on_demand: None, tmp_path: Path
) -> None:
    heads = {"num_attention_heads": 24, "num_key_value_heads": 24, "head_dim": 128}
    (tmp_path / "config.json").write_text(json.dumps(WIDE_CONFIG | heads))
    how: dict[str, Any] = {"load_format": "dummy", "device": "cuda", "ctx_size": 64}
    with pytest.raises(ValueError, match="rows of up to 2048 numbers, those of all KV heads together, and"):
        yakvrt.load(str(tmp_path), kv="yakv-paper", **how)
    assert not gpu.held


def test_a_state_does_not_know_the_context(open_backend: Callable[..., CudaBackend]) -> None:
    """What is held of so many tokens has the same shapes in slots of other sizes."""
    found = []
    for ctx_size in (CTX, 500):
        how: dict[str, Any] = {"heads": HEADS, "ctx_size": ctx_size, "kind": "f32"}
        with KvSlots("yakv-paper", ARGS, backend=open_backend(), **how) as slots:
            slot = slots.kv.open(ctx_size)
            slots.prefill(slot, 0, *rows(0, 100))
            found.append({name: part.values.shape for name, part in slots.kv.state(slot, 100).items()})
    assert found[0] == found[1]
    assert found[0]["ring.k.0"] == (2, 100, 16)
