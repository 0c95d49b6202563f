"""`yakvrt eval`: nothing is lost, nothing is mixed, and the report says what the records say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_files import byte_copy

import yakvrt.eval.tasks as tasks_module
from yakvrt.__main__ import main
from yakvrt.eval.bootstrap import difference_of, mean_of
from yakvrt.eval.claims import judged, sentences, verdicts
from yakvrt.eval.evaluation import Skipped, evaluate, questions
from yakvrt.eval.findings import FULL, Findings
from yakvrt.eval.method_specs import MethodSpec
from yakvrt.eval.records import NAME, RecordFile, read_records
from yakvrt.eval.report import write_report
from yakvrt.eval.sample import Intensity, Sample
from yakvrt.eval.tasks.entry import TaskEntry

SPECS = [MethodSpec("full", None), MethodSpec("yakv", 0.25), MethodSpec("yakv", 0.5)]
OPTIONS = {"model": "m", "seed": 0}


@dataclass(frozen=True)
class Copying:
    """Its samples ask for a word that they hold."""

    name: str = "copying"
    intensity: Intensity = "low"
    n: int = 3

    def samples(self, seed: int, count: Callable[[str], int]) -> Iterator[Sample]:
        for i in range(self.n):
            length = 60 if i < 2 else 4000
            yield Sample(f"s{i}", "say hello " * (length // 10), "hello", 4, {"length": length, "depth": i})

    def score(self, sample: Sample, text: str) -> dict[str, float]:
        return {"score": 100.0 * (text == sample.answer)}


class Answering:
    """Answers well with full attention; is interrupted, or skips the third sample, when told so."""

    def __init__(self, *, stop_after: int = 1000, skips: bool = False) -> None:
        self.asked: list[tuple[str, str]] = []
        self._left, self._skips = stop_after, skips

    def readings(
        self, sample: Sample, specs: Any, progress: Any
    ) -> Iterator[tuple[MethodSpec, dict[str, Any]]]:
        if self._skips and sample.id == "s2":
            raise Skipped("it is too long")
        for spec in specs:
            if not self._left:
                raise KeyboardInterrupt
            self._left -= 1
            self.asked.append((sample.id, spec.title))
            yield (
                spec,
                {"text": "hello" if spec.label == "full" else "", "seconds": 1.0, "kl_mean": 0.5, "nll": 1.0},
            )


def run(directory: Path, side: Answering, task: Any = None, **options: Any) -> int:
    asked = questions([task or Copying()], 0, len, 3)
    with RecordFile(directory, {**OPTIONS, **options}, {"build": "b"}) as records:
        return evaluate(side, asked, SPECS, records)


def test_a_killed_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = Answering(stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, first)
    path = tmp_path / NAME
    with path.open("a") as file:
        file.write('{"task": "copying", "sample": "s')  # killed in the middle of a line
    second = Answering()
    assert run(tmp_path, second) == 0
    assert first.asked + second.asked == [(f"s{i}", spec.title) for i in range(3) for spec in SPECS]
    header, records = read_records(path)
    assert len(records) == 9
    assert header["options"] == OPTIONS
    assert [r["score"]["score"] for r in records if r["method"] == "full"] == [100.0] * 3
    third = Answering()
    run(tmp_path, third)
    assert third.asked == []
    assert "9 records of 9 are there" in capsys.readouterr().err


def test_other_options_or_contents_are_not_mixed(tmp_path: Path) -> None:
    run(tmp_path, Answering())
    with pytest.raises(ValueError, match=r"made with seed=0, now it is 1; .* another -o"):
        run(tmp_path, Answering(), seed=1)

    class Other(Copying):
        def samples(self, seed: int, count: Callable[[str], int]) -> Iterator[Sample]:
            yield Sample("s0", "another text", "hello", 4)

    with pytest.raises(ValueError, match="sample s0 of copying with another content"):
        run(tmp_path, Answering(), Other())
    with RecordFile(tmp_path, OPTIONS, {}), pytest.raises(ValueError, match="another run writes"):
        RecordFile(tmp_path, OPTIONS, {})
    path = tmp_path / NAME
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], '{"a": \n', *lines[2:]]))
    with pytest.raises(ValueError, match=rf"{NAME}:3: not a JSON object"):
        run(tmp_path, Answering())
    path.write_text("".join([*lines[:1], '{"task": "copying"}\n']))
    with pytest.raises(ValueError, match=rf"{NAME}:2: no record"):
        read_records(path)


def test_records_of_another_device_are_not_mixed(tmp_path: Path) -> None:
    with RecordFile(tmp_path, OPTIONS, {"device": "cpu"}):
        pass
    with RecordFile(tmp_path, OPTIONS, {"device": "cpu"}):
        pass
    with pytest.raises(ValueError, match="made with device=cpu, now it is cuda"):
        RecordFile(tmp_path, OPTIONS, {"device": "cuda"})


def test_samples_of_one_id(tmp_path: Path) -> None:
    class Twice(Copying):
        def samples(self, seed: int, count: Callable[[str], int]) -> Iterator[Sample]:
            yield from (Sample("s0", text, "hello", 4) for text in ("one", "one", "two")[: 3 - seed])

    assert [one.sample.prompt for one in questions([Twice()], 1, len, 3)] == ["one"]
    with pytest.raises(ValueError, match="copying has two samples 's0'"):
        questions([Twice()], 0, len, 3)


HOSTILE: list[dict[str, Any]] = [
    {"task": "../../x", "facts": {"length": [1], "depth": {}}, "score": {"score": 1}},
    {"task": "../../x", "facts": {"length": 1, "depth": 2}, "score": {"score": 1}, "sample": "s1"},
    {"task": "nan", "kl_mean": float("nan"), "moved_bytes": float("nan"), "gross_bytes": 1},
    {"task": "nothing lost", "kl_mean": 0.0, "moved_bytes": 5, "gross_bytes": 5},
]


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_hostile_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a report that cannot be written leaves the one before."""
    out = tmp_path / "out" / "out"
    run(out, Answering())
    record = read_records(out / NAME)[1][0]
    lines = (out / NAME).read_text()
    (out / NAME).write_text(lines + "".join(json.dumps({**record, **changed}) + "\n" for changed in HOSTILE))
    report, *pictures = write_report([out], out)
    assert {path.parent for path in (report, *pictures)} == {out}
    before = report.read_text()
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", raising(OSError("the disk is full")))
        with pytest.raises(OSError, match="full"):
            write_report([out], out)
    assert report.read_text() == before
    assert not list(out.glob("*.part"))
    huge: list[dict[str, Any]] = [{"kl_mean": 10**400}, {"score": {"score": 10**400}}]
    for changed in huge:
        (out / NAME).write_text(lines + json.dumps({**record, **changed}) + "\n")
        with pytest.raises(ValueError, match=rf"{NAME}:11: no record"):
            write_report([out], out)


@pytest.mark.parametrize(
    "header", [{"options": {"model": []}}, {"options": {}, "started": 5}, {"options": []}]
)
def test_hostile_headers(header: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps({"eval": 1, **header}) + "\n")
    with pytest.raises(ValueError, match=rf"{NAME}:1: no header"):
        write_report([tmp_path], tmp_path)


def test_a_line_without_an_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, Answering())
    monkeypatch.setattr("yakvrt.eval.records.MAX_LINE_BYTES", 1000)
    with (tmp_path / NAME).open("a") as file:
        file.write("x" * 999)
    assert len(read_records(tmp_path / NAME)[1]) == 9
    with (tmp_path / NAME).open("a") as file:
        file.write("x" * 5000)
    with pytest.raises(ValueError, match=rf"{NAME}:11: not a JSON object"):
        read_records(tmp_path / NAME)


def test_a_report_compares_what_can_be_compared(tmp_path: Path) -> None:
    """Samples of two seeds share ids, not contents; number formats are not mixed at all."""
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    run(one, Answering(), dtype="f32")

    class Other(Copying):
        def samples(self, seed: int, count: Callable[[str], int]) -> Iterator[Sample]:
            yield Sample("s0", "another text", "hello", 4)

    with RecordFile(two, {**OPTIONS, "seed": 1, "dtype": "f32"}, {}) as records:
        evaluate(Answering(), questions([Other()], 1, len, 3), SPECS[:1], records)
    held = [record for directory in (one, two) for record in read_records(directory / NAME)[1]]
    found = Findings.of("m", held)
    assert len(found.records) == 10
    assert len(found.differences("score", FULL, ("yakv", 0.25))["copying"]) == 3
    assert len(found.values("score", FULL)["copying"]) == 4
    write_report([one, two], tmp_path)
    run(three, Answering(), dtype="q4_0")
    with pytest.raises(ValueError, match="m was evaluated with dtype=f32 and dtype=q4_0"):
        write_report([one, three], tmp_path)
    # lengths may differ between tasks, not between samples of one
    four, five, other = (tmp_path / name for name in ("four", "five", "other"))
    run(four, Answering(), max_tokens=0)
    run(five, Answering(), max_tokens=32)
    run(other, Answering(), Copying("more"), max_tokens=32)
    write_report([four, other], tmp_path)
    with pytest.raises(ValueError, match="m copying was evaluated with max_tokens=0 and max_tokens=32"):
        write_report([four, five], tmp_path)


def test_skipped_samples_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # a further run knows them
        assert run(tmp_path, Answering(skips=True)) == 1
    assert capsys.readouterr().err.count("s2 is skipped: it is too long") == 1
    with pytest.raises(ValueError, match="copying has no samples"):
        run(tmp_path, Answering(), Copying(n=0))


def test_the_verb_from_task_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = byte_copy("qwen2", tmp_path / "model")
    for name, intensity in (("copying", "low"), ("more", "high")):
        task = Copying(name, intensity)  # type: ignore[arg-type]
        entry = TaskEntry(name, "", task.intensity, (), lambda options, data, task=task: task)
        monkeypatch.setitem(tasks_module.TASKS, name, entry)
    out = tmp_path / "out"
    flags = [
        "-m",
        str(model),
        "--dtype",
        "f32",
        "-ctk",
        "f32",
        "-t",
        "1",
        "-ub",
        "64",
        "-o",
        str(out),
        "-c",
        "256",
    ]
    flags += [
        "--task",
        "copying",
        "--task",
        "more",
        "--kv",
        "oracle:recent=8,quest-equal",
        "--budget",
        "0.25,0.5",
    ]
    assert main(["eval", *flags]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 4 * 5
    assert "2 samples skipped" in shown.err
    header, records = read_records(out / NAME)
    assert header["options"]["ctx_size"] == 256
    (found,) = [r for r in records if (r["sample"], r["task"], r["method"]) == ("s0", "more", "full")]
    assert (found["prompt_tokens"], found["fidelity_tokens"], found["kl_mean"]) == (60, 5, 0)
    assert found["generated_tokens"] <= 4
    of_oracle = [r for r in records if (r["sample"], r["method"][:6], r["budget"]) == ("s0", "oracle", 0.5)]
    assert all(r["gross_bytes"] == r["moved_bytes"] > 0 for r in of_oracle)
    assert str(tmp_path) not in (out / NAME).read_text()
    assert main(["eval", "--report", str(out)]) == 0
    text = (out / "report.md").read_text()
    for part in (
        "copying (low intensity)",
        "more (high intensity)",
        "oracle:recent=8 @ 0.25",
        "1 sample of more skipped",
    ):
        assert part in text
    assert len(list(out.glob("*.png"))) == len(list(out.glob("*.svg"))) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no task: give --task"),
        (["--task", "niah"], "no directory for the records"),
        (["--task", "niahh", "-o", "x"], "did you mean 'niah'"),
        (["--task", "niah", "-o", "x"], "--data"),
        (["--task", "niah:lengths", "-o", "x"], "write NAME:K=V"),
        (["--task", "niah", "--task", "niah", "-o", "x"], "is there twice"),
        (["--task", "niah", "--data", "ruler=x", "-o", "x"], "add --task ruler"),
        (["--task", "text2json-synth", "--kv", "yakw", "-o", "x"], "'yakw' is not known"),
        (["--report", "nowhere"], "holds no records.jsonl"),
    ],
)
def test_bad_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *flags]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_intervals_are_of_task_means() -> None:
    found = mean_of({"a": np.array([0.0] * 99 + [100]), "b": np.array([50.0] * 4), "c": np.array([])})
    assert (found.mean, found.n) == (25.5, 104)
    assert 25 <= found.low < 25.5 < found.high < 28
    assert mean_of({"a": np.array([0.0] * 99 + [100])}) == mean_of({"a": np.array([0.0] * 99 + [100])})
    assert not np.isfinite(mean_of({"a": np.array([1.0])}).low)
    better, worse = {"a": np.array([9.0, 10] * 3)}, {"b": np.array([1.0, 2] * 3)}
    assert judged(difference_of(better, worse), [better, worse]) == "confirmed"
    assert judged(difference_of(worse, better), [better, worse]) == "refuted"
    few = {"a": np.array([9.0, 10])}
    assert judged(difference_of(few, worse), [few, worse]) == "undecided"
    assert mean_of({}).shown() == "-"


def test_claims_follow_the_numbers() -> None:
    """ShadowKV loses 50 points in the intensive task, the paper's YAKV nothing; with needles nobody does."""
    records = []
    for task, intensity in (("needle", "low"), ("tables", "high")):
        for i in range(8):
            for method, loss in (
                ("full", 0),
                ("yakv-paper", 0),
                ("shadowkv-equal", 50),
                ("lrqk-equal", i % 2),
            ):
                score = 90 - loss * (intensity == "high")
                record = {"task": task, "intensity": intensity, "sample": str(i), "facts": {}, "prompt": ""}
                budget = None if method == "full" else 0.03125
                costs = {"gross_bytes": 0 if method == "full" else 1}
                records.append(
                    {**record, "method": method, "budget": budget, "score": {"score": score}, **costs}
                )
    found = list(verdicts(Findings.of("m", records)))
    words = {verdict.claim: verdict.word for verdict in found}
    ranks = "At equal bytes the paper's YAKV is better than {} on context-intensive tasks"
    assert words[ranks.format("ShadowKV")] == "confirmed"
    assert words["Context-intensive tasks lose more than needle-like ones, mean of 3 methods"] == "confirmed"
    assert words["On needle-like tasks LRQK and the paper's YAKV are level"] == "confirmed"
    lossless = (
        "The paper's YAKV at the paper's budget loses against full attention on context-intensive tasks"
    )
    assert words[lossless] == "undecided"
    said = next(one for one in sentences(found) if one.startswith(ranks.format("ShadowKV")))
    assert said.endswith(
        "by score **confirmed** (yakv-paper @ 0.03125, advantage 50.0 [50.0, 50.0] points, 8 samples)."
    )
    for record in records:
        if record["task"] == "tables":
            record["score"] = {"score": 1.0}  # nobody has anything to lose there
    words = {verdict.claim: verdict.word for verdict in verdicts(Findings.of("m", records))}
    assert ranks.format("ShadowKV") not in words
