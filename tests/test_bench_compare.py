"""bench/compare.py: ratios of two result files."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent.parent / "bench"))

import compare

from yakvrt.transfer.gpu_case import DeviceCase


def record(n_depth: int, kv: str, samples: list[int], **more: Any) -> dict[str, Any]:
    own = {"n_prompt": 0, "n_gen": 8, "n_depth": n_depth, "kv_method": kv, "samples_ns": samples}
    return {**own, "test_time": "2026-01-02T03:04:05Z", **more}


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    a, b = tmp_path / "a.json", tmp_path / "b.jsonl"
    turns = [record(0, "full", [100, 100]), record(9, "full", [400]), record(0, "full", [102, 98])]
    a.write_text(json.dumps([*turns, record(5, "full", [1])]))
    others = [record(0, "yakv", [50, 54]), record(9, "yakv", [200, 100, 300], build_commit="x")]
    b.write_text("\n".join(map(json.dumps, others)))
    return str(a), str(b)


def test_samples_of_a_test_are_taken_together(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main([*files, "--ignore", "kv_method", "--json"]) == 0
    printed = capsys.readouterr()
    first, second = json.loads(printed.out)
    assert (first["a_ns"], first["b_ns"], first["ratio"]) == (100, 52, 0.52)
    assert 50 / 102 <= first["low"] < 0.52 < first["high"] <= 54 / 98
    assert (second["ratio"], second["low"], second["high"]) == (0.5, 0.375, 0.625)
    assert second["test"] == {"n_prompt": 0, "n_gen": 8, "n_depth": 9}
    assert "1 tests are in one file alone" in printed.err


def test_the_table_names_what_differs(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([*files, "--ignore", "kv_method"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| n_depth | A ms | B ms | B / A | middle half |"
    assert lines[3] == "| 9 | 0.0004 | 0.0002 | 0.500 | 0.375 to 0.625 |"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON"),
        ("[1]", "holds no records with samples_ns"),
        ('[{"samples_ns": []}]', "holds no records with samples_ns"),
        ('[{"samples_ns": [0]}]', "holds no records with samples_ns"),
        ('[{"samples_ns": [1], "n_gen": 9}]', "no test in common"),
    ],
)
def test_bad_files(
    text: str, told: str, files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.json").write_text(text)
    assert compare.main([files[0], str(tmp_path / "c.json")]) == 1
    assert told in capsys.readouterr().err
    assert compare.main([files[0], files[0], "--ignore", "depth"]) == 1
    assert compare.main([files[0], str(tmp_path / "none.json")]) == 1
    assert "none.json is no file" in capsys.readouterr().err


def test_whatever_tells_cases_of_a_gpu_apart_tells_tests_apart() -> None:
    assert {field.name for field in fields(DeviceCase)} <= set(compare.TEST_FIELDS)
