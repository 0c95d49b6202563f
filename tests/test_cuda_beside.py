"""What is stored of a prompt's layer while the next one computes, on the fake driver: streams wait for each
other where they must, and nowhere else. A wait that is left out shows with streams that work early, or late.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fake_gpu
import numpy as np
import pytest
from fake_gpu import FakeGpu
from kv_slots import KvSlots
from tiny_device_model import WIDE_CONFIG

import yakvrt
from yakvrt.cuda import yakv_prompt
from yakvrt.cuda.backend import CudaBackend
from yakvrt.cuda.device import Device
from yakvrt.cuda.record_codes import BlockRows
from yakvrt.cuda.stream import Event, Stream
from yakvrt.cuda.streams import Streams
from yakvrt.cuda.yakv_pools import YakvRows
from yakvrt.kernels.cuda_kernel import CudaKernel
from yakvrt.kvcache import tail_fit, yakv

BEFORE, BETWEEN, BEHIND = (
    "storing waits for the layer",
    "its rows are read before others come",
    "the end waits",
)
WAITS = [None, BEFORE, BETWEEN, BEHIND]
N_LAYERS = 4


@contextmanager
def left_out(wait: str | None, backend: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, layers are stored without one of the waits; the last one behind them."""
    streams: Streams = backend._streams

    def without(patched: pytest.MonkeyPatch, stream: Stream, event: Event) -> None:
        real = stream.wait
        patched.setattr(stream, "wait", lambda other: None if other is event else real(other))

    with monkeypatch.context() as patched:
        if wait == BEFORE:
            without(patched, streams._storing, streams._handed_over)
        if wait == BETWEEN:
            without(patched, streams._main, streams._stored)
        yield
    if wait != BEHIND:
        backend.settle()


def shows(wait: str | None, eager: bool) -> bool:
    return wait is not None and eager == (wait == BEFORE)


@pytest.fixture(params=[True, False], ids=["early", "late"])
def eager(request: pytest.FixtureRequest, gpu: FakeGpu) -> bool:
    gpu.eager = request.param
    return gpu.eager


@pytest.fixture
def open_backend(gpu: FakeGpu, compiled_on_demand: None) -> Iterator[Callable[[], CudaBackend]]:
    yield lambda: CudaBackend(Device(), None, kv_on_host=True)
    assert not gpu.failures
    assert not gpu.held


@pytest.mark.parametrize("wait", WAITS)
def test_two_sets_of_rows(
    eager: bool,
    wait: str | None,
    open_backend: Callable[[], CudaBackend],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = open_backend()
    rows, sets, kept = (backend.put(np.full((N_LAYERS, 1), n)) for n in (0, -1, -1))
    rows.put(np.arange(N_LAYERS)[:, None], backend.stream)
    with left_out(wait, backend, monkeypatch):
        for layer in range(N_LAYERS):
            sets.copy_rows(layer % 2, rows, layer, 1, backend.stream)
            with backend.beside():
                kept.copy_rows(layer, sets, layer % 2, 1, backend.stream)
    found = kept.get(N_LAYERS, backend.stream)[:, 0].tolist()
    assert (found != list(range(N_LAYERS))) == shows(wait, eager)
    backend.close()


CTX, N_TOKENS, ENCODED = 192, 134, slice(4, 68)  # rows of a prompt, and the block of them that is encoded
N_STORED = 3  # layers: the third one's rows lie where the first one's did


@pytest.mark.parametrize("wait", WAITS)
def test_yakv_reads_the_rows_of_its_layer(
    eager: bool, wait: str | None, open_backend: Callable[[], CudaBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given to the encoder, which itself takes the emulator long."""
    backend = open_backend()

    def keep_rows(launch: object, rows: YakvRows, heads: int, blocks: BlockRows) -> None:
        rows.selectors._memory.copy_from(blocks.k.address, rows.selectors.nbytes, backend.stream)

    monkeypatch.setattr(yakv_prompt, "record_codes", keep_rows)
    monkeypatch.setattr(yakv_prompt, "PIECE", 64)
    keys = np.random.default_rng(1).standard_normal((N_STORED, N_TOKENS, 64)).astype(np.float16)
    with KvSlots(
        "yakv",
        {"tail": "0", "slot_cache": "1", "centred": "false"},
        heads=(1, 1, 64),
        ctx_size=CTX,
        kind="f16",
        n_layers=N_STORED,
        backend=backend,
    ) as slots:
        slot = slots.kv.open(CTX)
        with left_out(wait, backend, monkeypatch):
            for layer in range(N_STORED):
                staged = slots._prefill[layer].out
                for words in (staged.k, staged.v):
                    words.upload(keys[layer].view(np.uint32), backend.stream)
                with backend.beside():
                    slots.kv.store(layer, slot, 0, N_TOKENS)
        state = slots.kv.state(slot, N_TOKENS)
        found = [np.array(state[f"selectors.{layer}"].values).tobytes() for layer in range(N_STORED)]
    given = [rows[ENCODED].astype(np.float32).tobytes() for rows in keys]
    assert all(a == b[: len(a)] for a, b in zip(found, given, strict=True)) != shows(wait, eager)


def test_an_engine_stores_layers_beside_the_next_ones(
    gpu: FakeGpu, compiled_on_demand: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As streams work late, a layer's codes come when the next layer's rows lie there; the host has waited
    for the last layer's output alone. All is stored before anything else is done.
    """
    (tmp_path / "config.json").write_text(json.dumps({**WIDE_CONFIG, "num_hidden_layers": N_LAYERS}))
    ran: list[str] = []

    def launch(kernel: CudaKernel, *given: object) -> None:
        ran.append(kernel.function.__code__.co_filename.rpartition("/")[2].removesuffix(".py"))

    monkeypatch.setattr(fake_gpu, "launch", launch)
    monkeypatch.setattr(fake_gpu, "POISON", 0)
    for module in (tail_fit, yakv):
        monkeypatch.setattr(module, "FIT_TOKENS", 1)
    how = {"load_format": "dummy", "kv": "yakv", "kv_device": "cpu", "device": "cuda", "ubatch_size": 200}
    with yakvrt.load(str(tmp_path), ctx_size=640, **how) as engine, engine.session() as session:  # type: ignore[arg-type]
        session.prefill([1] * 600)  # records steps
        session.truncate(0)
        ran.clear()
        n_calls = len(gpu.calls)
        hidden = engine.runner.prefill(session.slot, 0, [1] * 600)
        waited = [name for name in gpu.calls[n_calls:] if name.endswith("Synchronize")]
        engine.runner.logits(hidden)
        session.truncate(0)
        n_before = len(ran)
        session.prefill([1] * 190)  # in one chunk: no memory is given back, for which a device waits
        assert ran[n_before:].count("yakv_prompt_cuda") == 2 * N_LAYERS
    kept, encoded = (
        [i for i, name in enumerate(ran[:n_before]) if name == x] for x in ("keep_rows", "higgs_encode_cuda")
    )
    for layer in range(1, N_LAYERS):  # as often in each of them
        last = kept[(layer + 1) * len(kept) // N_LAYERS - 1]
        assert last < encoded[(layer - 1) * len(encoded) // N_LAYERS]
    assert len(waited) == 1
    assert not gpu.failures
