"""Methods that read the best pages, on the CUDA backend over the fake driver and the emulator: against the
CPU's numpy, from either memory, and as one graph.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kv_slots
import numpy as np
import pytest
from fake_gpu import FakeGpu
from kv_slots import KvSlots
from paper_scores import dots_of_bytes
from tiny_device_model import WIDE_CONFIG

import yakvrt
from yakvrt.cpu.coded_rows import CodedRows
from yakvrt.cuda.backend import CudaBackend
from yakvrt.cuda.device import Device
from yakvrt.kvcache import open_method
from yakvrt.kvcache.contract import KvSetting
from yakvrt.kvcache.slot_state import copy_slot

CTX = 128
METHODS = {
    "arkvale": {
        "sparse_budget": "0.1",
        "cache_budget": "0.3",
        "page": "4",
        "sinks": "1",
        "window": "2",
        "dense_layers": "0",
    },
    "quest": {"sparse_budget": "0.25", "page": "4", "min_pages": "1", "window": "2", "dense_layers": "0"},
    "oracle": {"sparse_budget": "0.2", "sinks": "3", "recent": "9"},
    "infinigen": {"sparse_budget": "0.3", "alpha": "3", "dense_layers": "0"},
    "lrqk": {"sparse_budget": "0.2", "rank": "6", "recent": "7"},
    "shadowkv": {"sparse_budget": "0.2", "chunk": "4", "outliers": "11", "local": "9", "rank": "9"},
    "yakv-paper": {"sparse_budget": "0.2", "prefix_budget": "3", "recent": "9"},
}
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def open_backend(gpu: FakeGpu, compiled_on_demand: None) -> Iterator[Callable[..., CudaBackend]]:
    yield lambda **how: CudaBackend(Device(), None, **how)
    assert not gpu.failures
    assert not gpu.held


def rows(heads: tuple[int, int, int], first: int, last: int) -> Rows:
    rng, (n_heads, n_kv_heads, dim) = np.random.default_rng(7), heads
    sizes = n_heads, n_kv_heads, n_kv_heads
    q, k, v = (rng.standard_normal((CTX, n, dim)).astype(np.float32) for n in sizes)
    return 2 * q[first:last], k[first:last], v[first:last]


@pytest.fixture
def byte_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """yakv-paper's scores on the CPU from queries and grids as bytes, as kernels have them."""
    monkeypatch.setattr(CodedRows, "dots", dots_of_bytes)


def decoded(slots: KvSlots, heads: tuple[int, int, int], slot: int, first: int, n: int) -> np.ndarray:
    given = zip(*rows(heads, first, first + n), strict=True)
    return np.array([slots.decode(slot, first + i, *each) for i, each in enumerate(given)])


@pytest.mark.parametrize(
    ("name", "heads", "kind"),
    [
        ("arkvale", (4, 2, 64), "f16"),
        ("arkvale", (2, 2, 16), "f32"),
        ("quest", (4, 1, 64), "bf16"),
        ("quest", (2, 2, 16), "f32"),
        ("oracle", (4, 2, 64), "f16"),
        ("infinigen", (4, 2, 64), "bf16"),
        ("infinigen", (2, 2, 16), "f32"),
        ("lrqk", (4, 2, 64), "f16"),
        ("lrqk", (3, 1, 64), "bf16"),
        ("lrqk", (2, 2, 16), "f32"),
        ("shadowkv", (4, 2, 64), "f16"),
        ("shadowkv", (2, 2, 16), "f32"),
        ("yakv-paper", (4, 2, 64), "f16"),
        ("yakv-paper", (2, 2, 32), "f32"),
    ],
)
@pytest.mark.usefixtures("byte_scores")
def test_a_slot_is_that_of_the_cpu(
    open_backend: Callable[..., CudaBackend], name: str, heads: tuple[int, int, int], kind: str
) -> None:
    """A prompt, tokens that complete a page, a further prompt, cuts, a copy, and tokens behind each; with
    rows on the device and on the host the same bits.
    """
    found = []
    for how in ("cpu", "gpu", "host"):
        backend = None if how == "cpu" else open_backend(kv_on_host=how == "host")
        with KvSlots(name, METHODS[name], heads=heads, ctx_size=CTX, kind=kind, backend=backend) as slots:
            other, slot = slots.kv.open(CTX), slots.kv.open(CTX)
            slots.prefill(slot, 0, *rows(heads, 0, 70))
            outs = [decoded(slots, heads, slot, 70, 3)]
            slots.prefill(slot, 73, *rows(heads, 73, 80))
            outs.append(decoded(slots, heads, slot, 80, 1))
            slots.kv.truncate(slot, 81, 50)
            outs.append(decoded(slots, heads, slot, 50, 1))
            assert copy_slot(slots.kv, slot, 51, other, 33) == 33
            outs.append(decoded(slots, heads, other, 33, 1))
            slots.kv.truncate(slot, 51, 2)  # less than is always read
            outs.append(decoded(slots, heads, slot, 2, 2))
            stats = slots.kv.stats()
            found.append((np.concatenate(outs), stats["rows_read"], stats["moved_bytes"], stats["steps"]))
    (cpu, *cpu_counts), (gpu, *gpu_counts), (host, *host_counts) = found
    off = np.linalg.norm(gpu - cpu, axis=(1, 2)) / np.linalg.norm(cpu, axis=(1, 2))
    assert off.max() < {"f32": 1e-5, "f16": 2e-3, "bf16": 2e-2}[kind]
    np.testing.assert_array_equal(host, gpu)
    assert cpu_counts == gpu_counts == host_counts
    assert cpu_counts[2] == 8


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_one_graph(open_backend: Callable[..., CudaBackend], gpu: FakeGpu, name: str) -> None:
    """With nothing for the host to do, also in dense layers. InfiniGen's further layers take a model."""
    heads, args = (2, 1, 64), dict(METHODS[name])
    n_layers = 1 if name == "infinigen" else 2
    if name in ("quest", "arkvale"):
        args["dense_layers"] = "1"
    with KvSlots(
        name, args, heads=heads, ctx_size=CTX, kind="f16", n_layers=n_layers, backend=open_backend()
    ) as slots:
        slot = slots.kv.open(CTX)
        for layer in range(n_layers):
            slots.prefill(slot, 0, *rows(heads, 0, 40), layer=layer)
        n_calls = len(gpu.calls)
        for layer in range(n_layers):
            slots.decode(slot, 40, *(x[0] for x in rows(heads, 40, 41)), layer=layer)
        asked = gpu.calls[n_calls:]
        assert asked.count("cuGraphLaunch") == n_layers
        assert asked.count("cuStreamBeginCapture") == n_layers
        assert slots.kv.stats()["steps"] == 1


@pytest.mark.usefixtures("byte_scores")
@pytest.mark.parametrize("name", METHODS)
def test_slots_of_a_batch(
    open_backend: Callable[..., CudaBackend], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three slots of different lengths in changing order, in a step for four rows."""
    heads, lengths, found = (4, 2, 16), (60, 2, 41), []
    monkeypatch.setattr(kv_slots, "N_SLOTS", 3)
    for backend in (None, open_backend(kv_on_host=True)):
        with KvSlots(name, METHODS[name], heads=heads, ctx_size=CTX, kind="f32", backend=backend) as slots:
            recorder = slots._recorder(4)
            attention, out = slots._inputs(recorder), recorder.buffer(64)
            slots.kv.decode(recorder, 0, attention, out)
            step = slots.backend.finish(recorder)
            opened = [slots.kv.open(CTX) for _ in lengths]
            for slot, n in zip(opened, lengths, strict=True):
                slots.prefill(slot, 0, *rows(heads, 0, n))
            for turn, order in enumerate([(1, 2, 0), (2, 0, 1), (1, 2, 0)]):
                positions = np.array([lengths[i] + turn for i in order])
                for buffer, all_rows in zip(
                    (attention.q, attention.k, attention.v), rows(heads, 0, CTX), strict=True
                ):
                    slots.backend.write(buffer, all_rows[positions].reshape(3, -1))
                step.batch.slots[:3], step.batch.positions[:3] = [opened[i] for i in order], positions
                step.batch.n_rows[0] = 3
                step.run()
                found.append(np.array(slots.backend.read(out, 0, 3)))
            found.append(np.array([slots.kv.stats()[key] for key in ("rows_read", "moved_bytes", "steps")]))
    for cpu, gpu in zip(found[:4], found[4:], strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["arkvale", "infinigen", "lrqk"])
def test_a_slot_does_not_know_who_had_it(open_backend: Callable[..., CudaBackend], name: str) -> None:
    """Without a prompt, which would empty the cache of pages and bring a basis."""
    heads, found = (2, 1, 64), []
    with KvSlots(name, METHODS[name], heads=heads, ctx_size=CTX, kind="f16", backend=open_backend()) as slots:
        for _ in range(2):
            slot = slots.kv.open(CTX)
            found.append(decoded(slots, heads, slot, 0, 9))
            slots.kv.truncate(slot, 9, 0)
            slots.prefill(slot, 0, *rows(heads, 0, 70))
            decoded(slots, heads, slot, 70, 2)
            slots.kv.release(slot)
    np.testing.assert_array_equal(*found)


def test_many_query_heads_are_refused_before_weights_load(
    gpu: FakeGpu, compiled_on_demand: None, tmp_path: Path
) -> None:
    heads = {"num_attention_heads": 17, "num_key_value_heads": 1, "head_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(WIDE_CONFIG | heads))
    how: dict[str, Any] = {"load_format": "dummy", "kv": "quest", "device": "cuda", "ctx_size": 64}
    with pytest.raises(ValueError, match="up to 16 query heads of a KV head, and the model has 17"):
        yakvrt.load(str(tmp_path), kv_args={"dense_layers": "0"}, **how)
    assert not gpu.held
    yakvrt.load(str(tmp_path), **how).close()  # its layers read everything


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_a_slot_takes_what_is_planned(
    open_backend: Callable[..., CudaBackend], gpu: FakeGpu, name: str, on_host: bool
) -> None:
    """Of the GPU's memory, and what steps need there, which is rounded up: rows of a head to 16, candidates
    to 2048.
    """
    heads, n_tokens, args = (4, 2, 64), 512, dict(METHODS[name])
    backend = open_backend(kv_on_host=on_host)
    if "dense_layers" in args:
        args["dense_layers"] = "1"

    def taken() -> int:
        return sum(memory.nbytes for memory in gpu.device.values())

    with KvSlots("full", {}, heads=heads, ctx_size=n_tokens, kind="f16", backend=backend) as slots:
        method, parameters = open_method(name, args)
        config = replace(slots.config, n_layers=3)
        setting = KvSetting(backend, config, None, 2, n_tokens, "f16", slots.inv_freq, slots.scale)  # type: ignore[arg-type]
        before = taken()
        kv = method.build(setting, parameters)
        pools = method.pools(config, parameters, "f16", n_tokens)
        slot = sum(pools.device.values()) + pools.gpu.device
        slot += pools.gpu.dense if on_host else sum(pools.host.values()) + pools.gpu.host
        there = "staging", "RoPE table"
        planned = 2 * slot + sum(n for what, n in pools.transient.items() if what in there)
        assert 0.9 * planned < taken() - before < 1.02 * planned + 200
        recorder = slots._recorder(2)
        kv.decode(recorder, 2, slots._inputs(recorder), recorder.buffer(4 * 64))
        scratch = recorder._scratch.items()
        of_step = sum(array.nbytes for of, array in scratch if of.startswith("page_"))
        rounding = 4 // kv._method.shape.group * (16 * 2 * 64 * 2 + 2048 * 8)
        assert 2 * pools.gpu.step <= of_step < 2 * (1.03 * pools.gpu.step + rounding)


def test_rows_in_host_memory_are_read_when_they_are_there(open_backend: Callable[..., CudaBackend]) -> None:
    """A step that nobody has waited for leaves its row where further prompts and copies find it."""
    heads = (2, 1, 64)
    backend = open_backend(kv_on_host=True)
    with KvSlots("oracle", {}, heads=heads, ctx_size=CTX, kind="f16", backend=backend) as slots:
        slot = slots.kv.open(CTX)
        slots.prefill(slot, 0, *rows(heads, 0, 10))
        for position in (10, 11):
            q, k, v = rows(heads, position, position + 1)
            slots._run(slots._decode[0], slot, position, q, k, v)
            if position == 10:
                found = np.asarray(slots.kv.state(slot, 11)["rows.k.0"].values)[0, 10]
            else:
                slots.kv.restore(0, slot, 12)
                found = slots.backend.slot_rows(slots.staged, 0, 1, 64).read(11, 12)[0][0, 0]
            np.testing.assert_array_equal(found, k[0, 0].astype(np.float16))


def test_a_cache_of_fewer_places_than_are_wanted(open_backend: Callable[..., CudaBackend]) -> None:
    """As a file may say it."""
    heads, found = (2, 1, 64), []
    for backend in (None, open_backend()):
        with KvSlots(
            "arkvale", METHODS["arkvale"], heads=heads, ctx_size=CTX, kind="f16", backend=backend
        ) as slots:
            slot = slots.kv.open(CTX)
            slots.prefill(slot, 0, *rows(heads, 0, 70))
            state = slots.kv.state(slot, 70)
            state["wanted"].values[...] = 2
            state["places"].values[...] = 1
            found.append(decoded(slots, heads, slot, 70, 2))
    np.testing.assert_allclose(found[1], found[0], atol=2e-3)


@pytest.mark.parametrize("name", ["arkvale", "lrqk"])
def test_a_cache_whose_first_places_are_empty(open_backend: Callable[..., CudaBackend], name: str) -> None:
    """As a file may say it: a step reads nothing that is not there."""
    heads = (2, 1, 64)
    backend = open_backend(kv_on_host=True)
    with KvSlots(name, METHODS[name], heads=heads, ctx_size=CTX, kind="f16", backend=backend) as slots:
        slot = slots.kv.open(CTX)
        slots.prefill(slot, 0, *rows(heads, 0, 70))
        decoded(slots, heads, slot, 70, 1)
        recalled = slots.kv.state(slot, 71)["recalled.0"].values
        assert (np.asarray(recalled) >= 0).any()
        recalled[:, :2][...] = -1
        assert np.isfinite(decoded(slots, heads, slot, 71, 2)).all()
