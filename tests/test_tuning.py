"""Files of measurements: sections merge, and a broken file costs a sentence."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

from yakvrt.tuning import LinkRates, TuningError, load, save, tuning_path

NAME = "NVIDIA H200 (SXM)/../x"
RATES = LinkRates(55, 54, 40, 4000, 2.5, 1.5, 65536, 264)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YAKVRT_CACHE", str(tmp_path))


def test_sections_merge_in_a_file_of_a_safe_name(tmp_path: Path) -> None:
    assert load(NAME) is None
    save(NAME, "link", asdict(RATES))
    save(NAME, "decode", {"entries": [{"depths": [512, 1024], "threads": 2}]})
    save(NAME, "decode", {"entries": []})
    path = tuning_path(NAME)
    assert path == tmp_path / "tuning" / "nvidia-h200-sxm-..-x.json"
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    sections = load(NAME)
    assert sections is not None
    assert sections["decode"] == {"entries": []}
    assert LinkRates.read(sections) == RATES
    assert LinkRates.read({}) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"version": 2, "device": "D", "sections": {}}',
        '{"version": 1, "device": "another", "sections": {}}',
        '{"version": 1, "device": "D", "sections": []}',
        '{"version": 1, "device": "D", "sections": {"link": 1}}',
        '{"version": 1, "device": "D", "sections": {"link": {"a": -1}}}',
        '{"version": 1, "device": "D", "sections": {"link": {"a": NaN}}}',
        '{"version": 1, "device": "D", "sections": {"link": {"a": [Infinity]}}}',
        '{"version": 1, "device": "D", "sections": {"link": {"a": 1' + 400 * "0" + "}}}",
        '{"version": 1, "device": "D", "sections": {"link": {"a": true}}}',
        '{"version": 1, "device": "D", "sections": {"link": {"a": ' + 9 * "[" + 9 * "]" + "}}}",
        " " * (1 << 20) + "{}",
    ],
    ids=range(14),
)
def test_a_broken_file_is_said_and_ignored(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tuning_path("D")
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert load("D") is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is ignored" in said
    assert "remove it" in said
    save("D", "link", {"a": 1})  # starts over
    assert load("D") == {"link": {"a": 1}}


def test_halves_of_characters_are_kept() -> None:
    path = save("D", "link", {"a": "\ud800"})
    save("D", "decode", {"b": "\N{DEGREE SIGN}"})
    assert load("D") == {"link": {"a": "\ud800"}, "decode": {"b": "\N{DEGREE SIGN}"}}
    assert path.read_bytes().isascii()


def test_without_a_home_directory_nothing_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("YAKVRT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert load("D") is None
    with pytest.raises(RuntimeError, match="set YAKVRT_CACHE"):
        save("D", "link", {"a": 1})


def test_a_directory_that_takes_no_file_is_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("YAKVRT_CACHE", str(tmp_path / "file" / "cache"))
    told = r"cannot be written \(Not a directory\): set YAKVRT_CACHE to a writable directory$"
    with pytest.raises(RuntimeError, match=told):
        save("D", "link", {"a": 1})


def test_what_load_would_refuse_is_not_written() -> None:
    with pytest.raises(TuningError, match="no number of 0 or more"):
        save("D", "link", {"a": float("inf")})
    with pytest.raises(TuningError, match="neither a number nor a text"):
        save("D", "link", {"a": None})
    assert not tuning_path("D").exists()


def test_a_section_without_its_numbers_is_refused() -> None:
    section = {**asdict(RATES), "copy_us": "2"}
    with pytest.raises(TuningError, match="copy_us is '2', not a number; measure again"):
        LinkRates.read({"link": section})
    del section["copy_us"]
    with pytest.raises(TuningError, match="copy_us is None"):
        LinkRates.read({"link": section})


def test_sections_saved_at_once_are_all_kept() -> None:
    """Each reads the file, adds its own and writes the whole."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: save(NAME, f"section{i}", {"n": i}), range(40)))
    sections = load(NAME)
    assert sections is not None
    assert {name: section["n"] for name, section in sections.items()} == {f"section{i}": i for i in range(40)}
