"""What the host and the GPU hand each other, on the fake driver: a wait that is left out shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from fake_gpu import FakeGpu

from yakvrt.cuda import upload_ring
from yakvrt.cuda.backend import CudaBackend
from yakvrt.cuda.device import Device
from yakvrt.cuda.driver import DeviceError
from yakvrt.cuda.graph import Graph
from yakvrt.cuda.stream import Event, Stream

ROWS = np.arange(24, dtype=np.float32).reshape(6, 4)


@pytest.fixture
def backend(gpu: FakeGpu, tmp_path: Path) -> Iterator[CudaBackend]:
    (tmp_path / "sm_90a").mkdir()
    made = CudaBackend(Device(), tmp_path)
    yield made
    made.close()
    assert not gpu.device
    assert not gpu.pinned


def test_rows_come_and_go(backend: CudaBackend) -> None:
    x = backend.buffer(6, 4)
    backend.write(x, ROWS)
    np.testing.assert_array_equal(backend.read(x, 2, 5), ROWS[2:5])
    states = backend.hidden_states(20, x)
    states.keep(9, x, 6)
    backend.write(x, np.zeros_like(ROWS))
    states.give(10, x, 4)
    np.testing.assert_array_equal(backend.read(x, 0, 6), [*ROWS[1:5], *np.zeros((2, 4))])
    states.free()


def test_reading_without_a_wait_shows(backend: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    x = backend.buffer(6, 4)
    backend.write(x, ROWS)
    monkeypatch.setattr(Stream, "synchronise", lambda self: None)
    assert np.isnan(backend.read(x, 0, 6)).all()


@pytest.mark.parametrize("waits", [True, False])
def test_uploads_under_way(backend: CudaBackend, monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    """More than there are places: each is taken again only once the stream has read it."""
    monkeypatch.setattr(upload_ring, "PLACES", 2)
    target, all_seen = backend.array((4,), np.int64), backend.array((5, 4), np.int64)
    ring = backend.upload_ring(target)
    if not waits:
        monkeypatch.setattr(Event, "synchronise", lambda self: None)
    for i in range(5):
        ring.upload(np.full(4, i), backend.stream)
        all_seen.copy_rows(i, target.reshaped((1, 4)), 0, 1, backend.stream)
    seen = all_seen.get(5, backend.stream)[:, 0].tolist()
    assert (seen == [0, 1, 2, 3, 4]) == waits


def test_a_graph_replays_what_was_captured(backend: CudaBackend, gpu: FakeGpu) -> None:
    source, target = backend.put(np.arange(3)), backend.put(np.zeros(3, np.int64))
    graph = Graph()
    with graph.capture(backend.stream):
        target.copy_rows(0, source, 0, 3, backend.stream)
        with pytest.raises(DeviceError, match="CAPTURE_UNSUPPORTED"):
            backend.stream.synchronise()
    assert target.get(3, backend.stream).tolist() == [0, 0, 0]
    source.put(np.array([7, 8, 9]), backend.stream)
    graph.launch(backend.stream)
    assert target.get(3, backend.stream).tolist() == [7, 8, 9]
    graph.close()


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("forks", [True, False])
@pytest.mark.parametrize("joins", [True, False])
def test_streams_of_a_graph_wait_only_where_told(
    backend: CudaBackend, gpu: FakeGpu, eager: bool, forks: bool, joins: bool
) -> None:
    """A copy on a second stream between two of the first: without the wait before or after it, it comes too
    early or too late, or the graph is refused.
    """
    gpu.eager = eager
    first, second = backend.stream, Stream()
    a, b, c, d = (backend.put(np.full(1, n)) for n in range(4))
    graph, forked, joined = Graph(), Event(), Event()

    def capture() -> None:
        with graph.capture(first):
            if not forks:
                second.wait(first.record(forked))  # too early
            b.copy_rows(0, a, 0, 1, first)
            if forks:
                second.wait(first.record(forked))
            c.copy_rows(0, b, 0, 1, second)
            second.record(joined)
            if joins:
                first.wait(joined)
            d.copy_rows(0, c, 0, 1, first)

    if not joins:
        with pytest.raises(DeviceError, match="CAPTURE_UNJOINED"):
            capture()
        return
    capture()
    graph.launch(first)
    found = d.get(1, first)[0]
    assert found == (1 if eager and not forks else 0)
    graph.close()
    second.close()


def test_another_thread_takes_its_turn(backend: CudaBackend) -> None:
    found = []

    def turn() -> None:
        x = backend.buffer(6, 4)
        backend.write(x, ROWS)
        states = backend.hidden_states(6, x)
        states.free()
        found.append(backend.read(x, 0, 6).copy())

    thread = Thread(target=turn)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found, [ROWS])
    backend.put(ROWS)


def test_what_was_given_back_is_refused(gpu: FakeGpu, tmp_path: Path) -> None:
    (tmp_path / "sm_90a").mkdir()
    backend = CudaBackend(Device(), tmp_path)
    x = backend.buffer(6, 4)
    ring = backend.upload_ring(backend.array((4,), np.int64))
    backend.close()
    for use in (
        lambda: backend.read(x, 0, 1),
        lambda: backend.write(x, ROWS),
        lambda: backend.hidden_states(3, x),
        lambda: ring.upload(np.zeros(4, np.int64), backend.stream),
    ):
        with pytest.raises(RuntimeError, match="the model is closed; load it again"):
            use()
