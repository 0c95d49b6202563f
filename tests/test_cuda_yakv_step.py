"""A whole decode step of YAKV on the CUDA backend, over the fake driver and the emulator, against numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import yakv_device_step
from cuda_cases.case import Mismatch
from fake_gpu import FakeGpu
from yakv_device_step import BUDGET, SHAPE, yakv_step

from yakvrt.cuda import backend as backend_module
from yakvrt.cuda import record_yakv
from yakvrt.cuda.backend import CudaBackend
from yakvrt.cuda.device import Device
from yakvrt.cuda.driver import DeviceError
from yakvrt.cuda.kernel_choice import fetch_turns
from yakvrt.cuda.recorder import CudaRecorder, Join, Launch, Piece
from yakvrt.cuda.stage_clock import BESIDE, MAIN
from yakvrt.cuda.stream import Event, Stream
from yakvrt.cuda.yakv_pools import YakvPools, check_yakv
from yakvrt.trace_log import TraceLog
from yakvrt.trace_records import RECORD


@pytest.fixture
def backend(gpu: FakeGpu, fake_cubins: Path) -> Iterator[CudaBackend]:
    made = CudaBackend(Device(), fake_cubins)
    yield made
    made.close()
    assert not gpu.failures


def recorded(backend: CudaBackend, n: int) -> list[Piece]:
    """Attention of n rows of a batch to rows from the host."""
    rows = YakvPools(backend, 1, n, 2, 324, SHAPE, BUDGET, on_host=True, n_places=48).layers[0]
    recorder = backend.record(n, inv_freq=np.ones(32), rope_scale=1.0, heads=(8, 2, 64))
    q, k, v, out = (recorder.buffer(n * 64) for n in (8, 2, 2, 8))
    recorder.attend_yakv(out, q, k, v, rows)
    (part,) = recorder.parts
    return part


def grids(pieces: Sequence[Piece], builder: str) -> list[tuple[int, int]]:
    launches = [piece for piece in pieces if isinstance(piece, Launch)]
    return [launch.grid for launch in launches if launch.kernel.builder == builder]


@pytest.mark.parametrize(
    ("selector", "k_format", "on_host", "tail", "n_turns", "eager"),
    [
        ("2bit", "r3", True, True, 2, False),
        ("2bit", "r3", True, False, 4, True),
        ("2bit", "q4", False, True, 1, False),
        ("2bit", "q4", True, False, 1, False),
        ("1.5bit", "r3", False, True, 1, False),
        ("1.5bit", "q4", True, True, 2, True),
    ],
)
def test_step(
    gpu: FakeGpu,
    backend: CudaBackend,
    selector: str,
    k_format: str,
    on_host: bool,
    tail: bool,
    n_turns: int,
    eager: bool,
    tmp_path: Path,
) -> None:
    """Rows from the host come on a stream of their own, as late as waits allow or as early: see the trace."""
    gpu.eager = eager
    log = TraceLog(tmp_path)
    log.begin_process("a step")
    backend.trace(log if tail else None)
    assert yakv_step(backend, selector, k_format, on_host, tail, n_turns)[0] <= 1
    records = np.concatenate([np.zeros(0, RECORD), *log.records()])
    log.close()
    names = {MAIN: set[str](), BESIDE: set[str]()}
    for record in records:
        names[int(record["track"])].add(log.labels[record["label"]].name)
    fetched = {"fetch"} if on_host else set()
    assert names[MAIN] == ({"select", "attend"} | fetched if tail else set())
    assert names[BESIDE] == (fetched if tail else set())


def test_neither_place_nor_turns_change_a_bit(backend: CudaBackend) -> None:
    state, outputs = yakv_device_step.RNG.bit_generator.state, []
    for on_host, n_turns in ((False, 1), (True, 4)):
        yakv_device_step.RNG.bit_generator.state = state
        error, out = yakv_step(backend, "2bit", "r3", on_host, tail=True, n_turns=n_turns)
        assert error <= 1
        outputs.append(out)
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize(("left_out", "eager"), [("join", False), ("fork", True)])
def test_a_wait_that_is_left_out_shows(
    gpu: FakeGpu,
    backend: CudaBackend,
    monkeypatch: pytest.MonkeyPatch,
    left_out: str,
    eager: bool,
    turn: int,
) -> None:
    """Attention that does not wait for the rows of its turn, and a fetch that does not wait for the selection
    of its own.
    """
    gpu.eager = eager
    join, record, turns = CudaRecorder.join, Stream.record, count()
    if left_out == "join":
        monkeypatch.setattr(CudaRecorder, "join", lambda self: next(turns) == turn or join(self))
    else:  # what was asked of the stream before is not waited for

        def at_the_beginning(stream: Stream, event: Event) -> Event:
            own = record(stream, event)
            held, graph = gpu.handles[int(event.handle)], gpu.handles[int(stream.handle)].graph
            is_fork = graph and graph.origin is gpu.handles[int(stream.handle)]
            if is_fork and next(turns) == turn:
                lane = graph.lanes[graph.origin]
                lane.insert(0, lane.pop(lane.index(held.mark)))
            return own

        monkeypatch.setattr(Stream, "record", at_the_beginning)
    with pytest.raises((Mismatch, DeviceError)):
        yakv_step(backend, "2bit", "r3", on_host=True, tail=False, n_turns=2)
    gpu.failures.clear()


def test_the_next_turn_is_scored_while_rows_come(
    backend: CudaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And shares of selected rows are those of one turn, so that the same bits come out."""
    monkeypatch.setattr(record_yakv, "fetch_turns", lambda *_: 2)
    launches = [piece for piece in recorded(backend, 4) if isinstance(piece, Join | Launch)]
    shown = ["join" if isinstance(piece, Join) else piece.kernel.builder for piece in launches]
    fetched, attended = ["higgs_score_cuda", "yakv_gather_cuda"], ["join", "yakv_attend_cuda"]
    assert [name for name in shown if name in fetched + attended] == 2 * fetched + 2 * attended
    monkeypatch.setattr(record_yakv, "fetch_turns", lambda *_: 1)
    (whole,) = grids(recorded(backend, 4), "yakv_attend_cuda")
    assert grids(launches, "yakv_attend_cuda") == 2 * [(whole[0], 2)]


def test_how_many_turns() -> None:
    """Llama-3.1-8B: 8 KV heads of 128 numbers, 34 bytes of codes each."""
    found = [fetch_turns(n, 8 * 34 * n_tokens) for n, n_tokens in ((1, 1 << 20), (8, 65536), (32, 65536))]
    assert found == [1, 1, 2]
    assert [fetch_turns(n, 8 * 34 * 131072) for n in (16, 32, 64)] == [2, 4, 4]
    assert fetch_turns(2, 1 << 40) == 2


def test_a_stage_around_plain_python_is_noted_once_and_kept_once(
    backend: CudaBackend, tmp_path: Path
) -> None:
    log = TraceLog(tmp_path)
    log.begin_process("steps")
    backend.trace(log)
    recorder = backend.record(1, inv_freq=np.ones(32), rope_scale=1.0, heads=(8, 2, 64))
    launch = recorder.parts[-1][0]
    recorder.stage("attend", 0)
    recorder.reads(100)
    recorder.call(lambda: None)
    recorder.parts[-1].append(launch)
    step = backend.finish(recorder)
    step.batch.n_rows[0] = 1
    for _ in range(3):
        step.run()
    records = [record for record in np.concatenate([*log.records()]) if record["track"] == MAIN]
    assert [log.labels[record["label"]].name for record in records] == 6 * ["attend"]
    assert [int(record["second"]) for record in records] == 3 * [100, 0]
    assert len(log._jobs) == 1  # however many steps
    log.close()


def test_rows_are_read_by_as_many_blocks_as_were_measured(
    gpu: FakeGpu, fake_cubins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "gather_blocks", {"Fake GPU": 5}.get)
    made = CudaBackend(Device(), fake_cubins)
    assert grids(recorded(made, 1), "yakv_gather_cuda") == [(5, 1)]
    made.close()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"k_format": "q3"}, "take k_bits=r3 or 4, v_bits=4"),
        ({"v_format": "q8"}, "take k_bits=r3 or 4, v_bits=4"),
        ({"kind": "f32"}, "take -ctk f16 or bf16"),
    ],
)
def test_what_has_no_kernels_is_refused(changed: dict[str, str], told: str) -> None:
    check_yakv(SHAPE)
    with pytest.raises(ValueError, match=told):
        check_yakv(replace(SHAPE, **changed))  # type: ignore[arg-type]
