"""--trace: what is noted of a run, the file that it becomes, and what is read out of one."""

from __future__ import annotations

import ctypes
import itertools
import json
import signal
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_values import tiny_dir
from kernel_team import KernelTeam, count
from take_rows import TAKE_ROWS
from trace_file_checks import check_nesting, ns, read, slices

import yakvrt
from yakvrt import bench, generate, trace_events
from yakvrt.cpu.tape import Tape
from yakvrt.serve.verb import main as serve_main
from yakvrt.trace_file import Tracing
from yakvrt.trace_log import TraceLog
from yakvrt.trace_records import PACKED, RECORD, Job, Stage

sys.path.append(str(Path(__file__).parent.parent / "bench"))
import trace_report

PROMPT = list(range(1, 21))
LAYER_STAGES = {"qkv", "attend", "attn_output", "mlp"}
N_TOKENS = 5
HOST = 10_000  # the first thread of the first process


def traced(path: Path, **keywords: Any) -> tuple[list[int], list[dict[str, Any]], dict[str, Any], int]:
    """Greedy tokens, events, the method's counts and the model's layers."""
    settings = {"dtype": "f32", "cache_type": "f32", "ctx_size": 64, "threads": 2, "ubatch_size": 8}
    with (
        Tracing(str(path)) as tracing,
        yakvrt.load(str(tiny_dir("qwen3")), **{**settings, **keywords}) as engine,
        tracing.follow(engine, "a run"),
    ):
        sequence = engine.generate(PROMPT, temperature=0, max_tokens=N_TOKENS, ignore_eos=True)
        list(sequence)
        return sequence.ids, read(path) if path.exists() else [], sequence.kv, engine.config.n_layers


def test_all_stages_of_all_layers_are_there(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    ids, _, _, n_layers = traced(path)
    events = read(path)
    check_nesting(events)
    assert {event["args"]["name"] for event in events if event["name"] == "thread_name"} == {
        "thread 0 (host)",
        "thread 1",
    }
    with yakvrt.load(
        str(tiny_dir("qwen3")), dtype="f32", cache_type="f32", ctx_size=64, threads=2, ubatch_size=8
    ) as engine:
        plain = engine.generate(PROMPT, temperature=0, max_tokens=N_TOKENS, ignore_eos=True)
        list(plain)
    assert plain.ids == ids
    # the first token comes from the prompt
    steps = slices(events, name="decode")
    assert [step["args"] for step in steps] == [
        {"position": len(PROMPT) + i, "tokens": 1} for i in range(N_TOKENS - 1)
    ]
    for step in steps:
        begin, end = ns(step)
        inside = [e for e in slices(events, cat="decode") if begin <= ns(e)[0] <= ns(e)[1] <= end]
        for track in {event["tid"] for event in inside}:
            found = [(e["name"], e["args"].get("layer")) for e in inside if e["tid"] == track]
            layers = [(name, i) for i in range(n_layers) for name in ("qkv", "attend", "attn_output", "mlp")]
            assert found == [("embed", None), *layers, ("logits", None)]
    chunks = slices(events, name="prefill", cat="prompt")
    expected = [(layer, at) for layer in [None, *range(n_layers)] for at in (0, 8, 16)]
    assert [(c["args"].get("layer"), c["args"]["position"]) for c in chunks] == expected
    assert {event["name"] for event in slices(events, cat="prefill")} == {"embed", *LAYER_STAGES}
    assert len(slices(events, name="store", cat="prompt")) == n_layers


def test_waits_lie_within_slices(tmp_path: Path) -> None:
    traced(tmp_path / "trace.json")
    timed = [event for event in slices(read(tmp_path / "trace.json")) if "wait_us" in event["args"]]
    assert timed
    assert all(0 <= event["args"]["wait_us"] <= event["dur"] + 0.001 for event in timed)
    assert any(event["args"]["wait_us"] for event in timed)


def test_bytes_and_counters_are_those_of_the_method(tmp_path: Path) -> None:
    """A method in plain Python, whose slices are the host's."""
    path = tmp_path / "trace.json"
    settings = {"sparse_budget": "16", "page": "4", "window": "1", "dense_layers": "0"}
    _, _, kv, n_layers = traced(path, kv="quest", kv_args=settings)
    events = read(path)
    check_nesting(events)
    counters = defaultdict(list)
    for event in events:
        if event["ph"] == "C":
            counters[event["name"]].append(event["args"])
    assert counters["bytes moved from the host"][-1]["total"] == kv["moved_bytes"] > 0
    assert all(values["hit rate"] == 0 for values in counters["hit rate"])
    told = counters["bytes read"]
    assert len(told) == N_TOKENS - 1
    inside = slices(events, cat="decode")
    attended = [event for event in inside if event["name"] == "attend"]
    assert len(attended) == n_layers * len(told)
    assert {event["tid"] for event in attended} == {HOST}
    total = sum(event["args"].get("bytes", 0) for event in inside)
    expected = sum(sum(values.values()) for values in told)
    assert abs(total - expected) <= len(inside)  # shares are rounded down


def test_stages_of_yakv(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "hidden_size": 64,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 64,
                "vocab_size": 64,
                "max_position_embeddings": 512,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": True,
            }
        )
    )
    settings = {"sparse_budget": "16", "min_seqlen_to_prune": "0", "slot_cache": "2"}
    with (
        Tracing(str(path)) as tracing,
        yakvrt.load(
            str(tmp_path), load_format="dummy", kv="yakv", kv_args=settings, ctx_size=256, threads=2
        ) as engine,
        tracing.follow(engine, "a run"),
    ):
        sequence = engine.generate([5, 7] * 75, temperature=0, max_tokens=4, ignore_eos=True)
        list(sequence)
    events = read(path)
    check_nesting(events)
    names = [
        event["name"] for event in slices(events, cat="decode", tid=HOST) if event["args"].get("layer") == 1
    ]
    assert names == ["qkv", "select", "fetch", "attend", "attn_output", "mlp"] * 3
    rates = [event["args"]["hit rate"] for event in events if event["name"] == "hit rate"]
    assert all(0 <= rate <= 1 for rate in rates)
    totals = [event["args"]["total"] for event in events if event["name"] == "bytes moved from the host"]
    assert totals[-1] == sequence.kv["moved_bytes"]
    # the many small steps that store a prompt are one slice a layer
    assert {event["tid"] for event in slices(events, name="store")} == {HOST}
    assert not list(slices(events, cat="store"))


def test_a_tape_is_traced_and_then_is_not(team: KernelTeam, tmp_path: Path) -> None:
    rows, buffers = np.arange(64), [np.zeros((64, 32), np.float32) for _ in range(7)]
    tape = Tape()
    for i, (source, target) in enumerate(itertools.pairwise(buffers)):
        if i in (1, 4):
            tape.begin_stage(Stage("ab"[i // 4], i))
        tape.reads(10)
        tape.add(TAKE_ROWS, target, target.strides[0], source, source.strides[0], 32, rows, count(64))
    tape.begin_stage(Stage("empty"))
    tape.finish(team.cache.load(tape.specs))
    stages = tape.stages
    tape.finish(team.cache.load(tape.specs))
    assert tape.stages is stages
    log = TraceLog(tmp_path)
    log.begin_process("ops")
    team.team.trace(log)
    buffers[0][:] = 1
    team.team.run(tape)
    team.team.trace(None)
    buffers[0][:] = 2
    team.team.run(tape)
    assert (buffers[-1] == 2).all()
    records = np.concatenate(list(log.records()))
    log.close()
    assert records.dtype == RECORD
    assert [log.labels[i].name for i in records["label"]] == ["a", "b"] * team.n_threads
    assert records["track"].tolist() == [t for t in range(team.n_threads) for _ in "ab"]
    assert (records["begin_ns"][1::2] == records["end_ns"][::2]).all()
    assert len(set(records["end_ns"][1::2])) == 1  # with the job
    assert records["second"].tolist() == [30 // team.n_threads, 20 // team.n_threads] * team.n_threads


def test_ticks_become_times_between_two_readings_of_the_clock() -> None:
    blank = np.zeros((3, 2), RECORD)
    pairs = [
        # clock and ticks at the beginning, ticks at the end of each stage and in it waited, both at the end
        [(1000, 70), (90, 10), (110, 0), (2000, 120)],
        [(1000, -40), (0, 0), (40, 4), (1600, 60)],
        [(1000, 500), (100, 900), (520, 5), (1100, 400)],  # moved to a core that counts otherwise
    ]
    words = np.zeros((3, 16), np.int64)
    words[:, :8] = np.array(pairs).reshape(3, 8)
    found = Job((), blank).records_of_ticks(words)
    assert not blank["end_ns"].any()
    assert found["begin_ns"].tolist() == [[1000, 1400], [1000, 1240], [1000, 1000]]
    # the last stage ends for all with the last of them
    assert found["end_ns"].tolist() == [[1400, 1800], [1240, 1800], [1000, 1800]]
    assert found["first"].tolist() == [[200, 0], [0, 24 + 320], [0, 100 + 700]]


def test_of_a_bounded_log_the_newest_is_left(tmp_path: Path) -> None:
    most = 4096 * PACKED.size
    log = TraceLog(tmp_path, most_bytes=most)
    log.begin_process("a run")
    stages = (Stage("a"), Stage("b"))
    for i in range(20_000):
        with log.span("step", number=i):
            log.ran(stages, np.arange(1), 8) if log.room(8) else None
    records = np.concatenate(list(log.records()))
    log.close()
    labels = np.array([log.labels[i].name for i in records["label"]])
    steps = records["first"][labels == "step"].tolist()
    assert steps == list(range(steps[0], 20_000))
    assert labels.tolist() == ["a", "b", "step"] * len(steps)
    step_bytes = 2 * PACKED.size + 64
    assert most // 2 <= len(steps) * step_bytes <= most + 1024 * step_bytes
    assert not list(tmp_path.iterdir())


def test_a_job_may_be_larger_than_the_buffer(tmp_path: Path) -> None:
    log = TraceLog(tmp_path)
    log.begin_process("a run")
    stages = (Stage("a"),)
    for n in (16, 1 << 18, 16):
        words = np.frombuffer((ctypes.c_int64 * n).from_address(log.room(n)), np.int64)
        words[:6] = n, 0, 2, 1, 3 * n, 4
        log.ran(stages, np.arange(1), n)
    (times,) = np.concatenate(list(log.records()))[["begin_ns", "end_ns", "first"]].reshape(1, -1)
    log.close()
    assert times.tolist() == [(n, 2 * n, n // 2) for n in (16, 1 << 18, 16)]


def test_an_interrupted_run_keeps_what_was_traced(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.json"

    def run(engine: yakvrt.Engine) -> None:
        with Tracing(str(path)) as tracing, tracing.follow(engine, "a run"), engine.session() as session:
            session.prefill(PROMPT)
            with tracing.log.span("decode", position=len(PROMPT), tokens=1):
                raise KeyboardInterrupt

    model = str(tiny_dir("qwen3"))
    with yakvrt.load(model, dtype="f32", ctx_size=64, threads=1) as engine:
        with pytest.raises(KeyboardInterrupt):
            run(engine)
        events = read(path)
        assert slices(events, name="prompt")
        assert slices(events, name="decode")
        assert "open it in ui.perfetto.dev" in capsys.readouterr().err
        check_nesting(events)
        # and again while it is written
        counts = itertools.count(1)

        def impatient(*given: Any) -> str:
            if next(counts) == 5:
                signal.raise_signal(signal.SIGINT)
            return whole_slice(*given)

        whole_slice, handler = trace_events._slice, signal.getsignal(signal.SIGINT)
        monkeypatch.setattr(trace_events, "_slice", impatient)
        with pytest.raises(KeyboardInterrupt):
            run(engine)
    assert len(slices(read(path))) == 4 < len(slices(events))
    assert "(Ctrl-C cut it short)" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
    assert [found.name for found in tmp_path.iterdir()] == ["trace.json"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing/trace.json", "missing does not exist"),
        (".", "is no regular file, a trace cannot be written"),
    ],
)
def test_a_bad_path_is_told_before_anything_is_loaded(
    name: str, told: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yakvrt, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    path = str(tmp_path / name)
    for main, flags in ((generate.main, ["-p", "x"]), (bench.main, []), (serve_main, [])):
        assert main([*flags, "-m", str(tiny_dir("qwen3")), "--trace", path]) == 1
        message = capsys.readouterr().err
        assert told in message
        assert message.count("\n") == 1


def test_the_verbs_write_it_and_the_report_reads_it(tmp_path: Path, capsys: Any) -> None:
    path, model = tmp_path / "trace.json", str(tiny_dir("qwen3"))
    flags = ["-m", model, "-t", "2", "--trace", str(path)]
    assert generate.main([*flags, "--json", "--prompt-ids", "1,2,3,4", "-n", "4", "-s", "1"]) == 0
    events = read(path)
    assert len(slices(events, name="sample")) == 4
    assert bench.main([*flags, "-p", "8", "-n", "4", "-r", "2", "--load-format", "dummy"]) == 0
    events = read(path)
    check_nesting(events)
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names == [f"{model} full pp8", f"{model} full tg4"]
    rows = trace_report.rows_of(trace_report.read_events(path))
    decode = {row["stage"]: row for row in rows if row["step"] == "decode" and row["process"] == names[1]}
    assert set(decode) == {"embed", *LAYER_STAGES, "logits", "(between)"}
    assert sum(row["share"] for row in decode.values()) == pytest.approx(1)
    assert all(0 <= row["stall"] <= 1 for row in decode.values())
    assert decode["mlp"]["gb_per_s"] > 0
    capsys.readouterr()
    assert trace_report.main([str(path)]) == 0
    assert "| decode | mlp |" in capsys.readouterr().out
    path.write_text("[]")
    assert trace_report.main([str(path)]) == 1
    assert "is no trace of yakvrt" in capsys.readouterr().err
