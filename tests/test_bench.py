"""The bench verb: its lists and combinations, llama-bench's names in every format, and a real run."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeGpu
from golden_values import TINY_FAMILIES, tiny_cases, tiny_dir
from tiny_gguf import tiny_weights, write_tiny_gguf

import yakvrt
from yakvrt import bench, tuning
from yakvrt.bench_arguments import build_parser, plan, prompt_and_gen, shown_columns
from yakvrt.bench_facts import build, cpu_info, model_facts
from yakvrt.bench_records import SQL_TABLE, Record, bench_table, format_bytes, format_params, test_name
from yakvrt.hub import resolve
from yakvrt.record_formats import formats, print_records
from yakvrt.terminal import UsageError
from yakvrt.value_lists import numbers

test_name.__test__ = False  # type: ignore[attr-defined]  # a name of tests, not a test

RECORD = Record(
    build_commit="abc1234",
    build_number=7,
    cpu_info="A CPU",
    gpu_info="",
    backends="CPU",
    model_filename="it's.gguf",
    model_type="llama 135M Q4_1",
    model_size=96_000_000,
    model_n_params=134_515_008,
    n_batch=2048,
    n_ubatch=512,
    n_threads=2,
    type_k="f16",
    type_v="f16",
    n_prompt=0,
    n_gen=128,
    n_depth=4096,
    test_time="2026-01-02T03:04:05Z",
    samples_ns=(1_000_000_000, 500_000_000),
    kv_method="full",
    kv_bytes=1000,
    kv_moved_bytes=0,
    kv_hit_rate=0.0,
    kv_link_gbps=0.0,
    kv_link_part=0.0,
    dtype="auto",
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("512", [512]),
        ("0", [0]),
        ("1,2,4", [1, 2, 4]),
        ("1-3", [1, 2, 3]),
        ("128-512+128", [128, 256, 384, 512]),
        ("128-1000*2", [128, 256, 512]),
        ("7,16-64*2,5-5", [7, 16, 32, 64, 5]),
    ],
)
def test_numbers_reads_lists_and_ranges(text: str, values: list[int]) -> None:
    assert numbers(text) == values


@pytest.mark.parametrize(
    "text", ["", "x", "1,,2", "-1", "5-1", "1-9*1", "0-9*2", "1-9+0", "1-99999999", "99999999999", "1-5000"]
)
def test_numbers_refuses_what_is_no_list(text: str) -> None:
    with pytest.raises(ValueError, match=r"[:;] "):
        numbers(text)


def test_a_number_over_the_limit_is_called_that() -> None:
    with pytest.raises(ValueError, match="'100000000' is over the limit of 16777216: give a smaller number"):
        numbers("100000000")
    with pytest.raises(ValueError, match="-pg '1,99999999' is over the limit"):
        prompt_and_gen("1,99999999")


def test_prompt_and_gen() -> None:
    assert prompt_and_gen("512,128") == (512, 128)
    with pytest.raises(ValueError, match="write prompt and generated tokens as"):
        prompt_and_gen("512")


def test_plan_runs_all_combinations() -> None:
    args = build_parser().parse_args(
        ["-p", "0,16", "-n", "8", "-n", "4", "-pg", "16,8", "-d", "0,32", "-t", "1,2"]
    )
    planned = plan(args)
    assert [setup.threads for setup, _ in planned] == [1, 2]
    names = ["pp16", "tg8", "tg4", "pp16+tg8"]
    for _, tests in planned:
        assert [test.name for test in tests] == names + [f"{name} @ d32" for name in names]


def test_plan_has_llama_bench_tests_and_whole_prompts() -> None:
    [(setup, tests)] = plan(build_parser().parse_args([]))
    assert [test.name for test in tests] == ["pp512", "tg128"]
    assert (setup.n_batch, setup.n_ubatch, setup.cache_type, setup.kv) == (None, None, "f16", "full")
    assert shown_columns([setup]) == []
    assert shown_columns([setup, replace(setup, n_batch=64)]) == ["n_batch"]


@pytest.mark.parametrize(
    "flags",
    [["-r", "0"], ["--delay", "-1"], ["-ctk", "f16", "-ctv", "f32"], ["-t", "0"], ["-p", "0", "-n", "0"]],
)
def test_plan_refuses(flags: list[str]) -> None:
    with pytest.raises(UsageError):
        plan(build_parser().parse_args(flags))


def test_record_statistics() -> None:
    fields = RECORD.fields()
    assert fields["samples_ts"] == [128.0, 256.0]
    assert fields["avg_ts"] == 192.0
    assert fields["stddev_ts"] == pytest.approx(90.5097, abs=1e-4)
    assert fields["avg_ns"] == 750_000_000
    assert replace(RECORD, samples_ns=(5,)).fields()["stddev_ts"] == 0.0
    first, last = list(fields)[:8], list(fields)[-16:]
    assert " ".join(first) == (
        "build_commit build_number cpu_info gpu_info backends model_filename model_type model_size"
    )
    assert " ".join(last) == (
        "n_gen n_depth test_time avg_ns stddev_ns avg_ts stddev_ts samples_ns samples_ts "
        "kv_method kv_bytes kv_moved_bytes kv_hit_rate kv_link_gbps kv_link_part dtype"
    )


def written(name: str, extra_columns: tuple[str, ...] = ()) -> str:
    printed = io.StringIO()
    form = formats(bench_table(extra_columns), SQL_TABLE)[name]
    print_records([RECORD, replace(RECORD, n_gen=0, n_prompt=512)], [(form, printed)])
    return printed.getvalue()


def test_markdown_table() -> None:
    lines = written("md", ("n_batch",)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[0] == ["model", "size", "params", "backend", "threads", "n_batch", "test", "t/s"]
    assert all(re.fullmatch(r"-+:?", cell) for cell in cells[1])
    assert cells[2][:6] == ["llama 135M Q4_1", "91.55 MiB", "134.52 M", "CPU", "2", "2048"]
    assert cells[2][6:] == ["tg128 @ d4096", "192.00 ± 90.51"]
    assert cells[3][6] == "pp512 @ d4096"
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[-1] == "build: abc1234 (7)"


def test_json_and_jsonl_hold_the_fields() -> None:
    expected = json.loads(json.dumps(RECORD.fields()))
    assert json.loads(written("json"))[0] == expected
    assert json.loads(written("jsonl").splitlines()[0]) == expected


def test_an_interrupted_run_leaves_whole_records() -> None:
    def records() -> Iterator[Record]:
        yield RECORD
        raise KeyboardInterrupt

    printed = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        print_records(records(), [(formats(bench_table([]), SQL_TABLE)["json"], printed)])
    assert len(json.loads(printed.getvalue())) == 1


def test_csv_and_sql_hold_the_fields() -> None:
    expected = {name: value for name, value in RECORD.fields().items() if not name.startswith("samples")}
    rows = list(csv.DictReader(io.StringIO(written("csv"))))
    assert len(rows) == 2
    assert list(rows[0]) == list(expected)
    assert rows[0]["model_filename"] == "it's.gguf"
    with sqlite3.connect(":memory:") as database:
        database.executescript(written("sql"))
        database.row_factory = sqlite3.Row
        stored = [dict(row) for row in database.execute("SELECT * FROM llama_bench")]
    assert stored[0] == expected
    assert stored[1]["n_prompt"] == 512


def test_names_and_units() -> None:
    assert test_name(512, 0, 0) == "pp512"
    assert test_name(512, 128, 0) == "pp512+tg128"
    assert format_bytes(3 << 30) == "3.00 GiB"
    assert format_params(7_620_000_000) == "7.62 B"


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_model_facts_count_what_is_stored(family: str, tmp_path: Path) -> None:
    n_params = sum(array.size for array in tiny_weights(family).values())
    facts = model_facts(resolve(tiny_dir(family)), "tiny")
    assert (facts.n_params, facts.size_bytes) == (n_params, 2 * n_params)
    assert facts.type_name.endswith("BF16")
    n_factors = 8 if family.startswith("llama") else 0
    facts = model_facts(resolve(write_tiny_gguf(family, tmp_path / "model.gguf")), "tiny")
    assert (facts.n_params, facts.size_bytes) == (n_params + n_factors, 4 * (n_params + n_factors))
    assert facts.type_name.endswith("F32")


def test_machine_and_build_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    commit, number = build()
    assert commit
    assert number >= 0
    assert cpu_info()
    monkeypatch.setenv("PATH", "")
    assert build() == (yakvrt.__version__, 0)  # there is no git


def test_a_run_prints_records(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "-m",
        str(tiny_dir("qwen3")),
        "-p",
        "33",
        "-n",
        "3",
        "-pg",
        "5,2",
        "-d",
        "0,17",
        "-r",
        "2",
        "-t",
        "1",
    ]
    assert bench.main([*flags, "-o", "jsonl", "-oe", "md", "-b", "16", "--progress"]) == 0
    printed = capsys.readouterr()
    records = [json.loads(line) for line in printed.out.splitlines()]
    tests = [(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in records]
    assert tests == [(33, 0, 0), (0, 3, 0), (5, 2, 0), (33, 0, 17), (0, 3, 17), (5, 2, 17)]
    for record in records:
        assert len(record["samples_ns"]) == 2
        assert min(record["samples_ts"]) > 0
        assert (record["n_threads"], record["kv_method"]) == (1, "full")
        assert record["kv_bytes"] > 0
    assert "pp5+tg2 @ d17" in printed.err


def test_what_a_method_moves(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "cache_directory", lambda: tmp_path)
    tuning.save(cpu_info(), "host", {"gather_gbps": 0.5})
    flags = ["-p", "0", "-n", "2", "-d", "200", "-r", "2", "-t", "1", "--kv", "full,oracle,arkvale-equal"]
    assert bench.main(["-m", str(tiny_dir("qwen3")), *flags, "-o", "jsonl", "-oe", "md"]) == 0
    printed = capsys.readouterr()
    full, oracle, arkvale = (json.loads(line) for line in printed.out.splitlines())
    assert (full["kv_moved_bytes"], full["kv_hit_rate"]) == (0, 0)
    with yakvrt.load(str(tiny_dir("qwen3")), threads=1, ctx_size=32) as engine:
        config = engine.config
    row = 4 * config.head_dim  # K and V in 16 bits
    assert oracle["kv_moved_bytes"] == config.n_layers * config.n_kv_heads * int(200 / 32) * row
    assert (oracle["kv_hit_rate"], arkvale["kv_hit_rate"] > 0) == (0, True)
    gbps = 2 * oracle["kv_moved_bytes"] / np.median(oracle["samples_ns"])
    assert oracle["kv_link_gbps"] == pytest.approx(gbps, abs=1e-4)
    assert oracle["kv_link_part"] == pytest.approx(gbps / 0.5, abs=1e-4)
    assert (full["kv_link_gbps"], full["kv_link_part"]) == (0, 0)
    assert "| kv_method | kv_moved_bytes | kv_hit_rate | kv_link_gbps | kv_link_part |" in printed.err


def test_an_unknown_model_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["-m", "smollm3-135n", "--offline"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"yakvrt: error: [^\n]+\n", printed.err)


@pytest.fixture
def bench_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "bench"))


@pytest.mark.usefixtures("bench_path")
def test_meter_tells_own_work_from_that_of_others() -> None:
    from quiet import Meter

    burning = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    with Meter() as own:
        exec(burning)
    assert own.own_cpus > 0.3
    with Meter() as other:
        subprocess.run([sys.executable, "-c", burning], check=True)
    assert other.other_cpus > 0.3
    assert not other.quiet


@pytest.mark.usefixtures("bench_path")
def test_result_file_replaces_or_leaves_alone(tmp_path: Path) -> None:
    import result_file

    path = tmp_path / "results" / "x.json"
    result_file.write(path, {"facts": result_file.facts()})
    assert json.loads(path.read_text())["facts"]["cpus_allowed"] >= 1
    with pytest.raises(TypeError):
        result_file.write(path, {"no json": np.float32})
    assert json.loads(path.read_text())["facts"]
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


@pytest.mark.usefixtures("bench_path")
def test_work_in_its_own_thread_leaves_none_behind() -> None:
    from taking_turns import in_own_thread

    thread = in_own_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()
    with pytest.raises(ZeroDivisionError):
        in_own_thread(divmod, 1, 0)


@pytest.mark.usefixtures("bench_path")
def test_transformers_side_forgets_what_is_truncated() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers_side import Transformers

    case = tiny_cases("qwen3")[1]
    side = Transformers(tiny_dir("qwen3"), 1)
    errors = []
    for _ in range(2):
        side.truncate(0)
        logits = side.prefill(case.ids)
        assert logits.dtype == np.float32
        errors.append(np.abs(logits - case.logits[-1]).max())
        side.prefill(case.ids[:5])  # forgotten by the next line
        side.truncate(len(case.ids) - 1)
        errors.append(np.abs(side.decode(case.ids[-1]) - case.logits[-1]).max())
    side.close()
    assert max(errors) < 0.03 * np.abs(case.logits[-1]).max()


def test_a_gpu_is_named(gpu: FakeGpu, fake_cubins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["-p", "2", "-n", "1", "-r", "1", "-ub", "4", "-ctk", "f32", "--no-warmup", "-o", "json"]
    model = ["-m", str(tiny_dir("llama3")), "-dev", "cuda", "--cubins", str(fake_cubins)]
    assert bench.main([*model, *flags]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["n_gen"] for record in records] == [0, 1]
    assert {(record["backends"], record["gpu_info"]) for record in records} == {("CUDA", "Fake GPU")}
    assert not gpu.device
    assert bench.main([*model, *flags, "--mlock"]) == 2
    assert "--mlock is for the CPU" in capsys.readouterr().err
