"""--prompt-cache: a run goes on from what the file holds, and answers as it would without it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from golden_values import tiny_dir
from safetensors import safe_open
from test_bad_input_cli import no_files, sentence
from test_bad_input_cli import yakvrt as process
from test_kvcache_contract import ids_of

from yakvrt import generate
from yakvrt.session import Session

FAMILY = "qwen3"
PROMPT = ids_of(FAMILY, 260)
N = 12
COMMON = ("--json", "-n", str(N), "--temp", "0", "-c", "384", "-t", "1", "--offline", "--ignore-eos")
Run = Callable[..., "Shown"]


@dataclass
class Shown:
    code: int
    record: Any  # None when nothing was printed
    notes: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_it(ids: list[int], *flags: str, family: str = FAMILY) -> Shown:
        prompt = ("--prompt-ids", ",".join(map(str, ids)))
        try:
            code = generate.main(["-m", str(tiny_dir(family)), *COMMON, *prompt, *flags])
        except SystemExit as end:
            code = int(str(end.code))
        shown = capsys.readouterr()
        return Shown(code, json.loads(shown.out) if shown.out else None, shown.err)

    return run_it


def tokens_in(path: Path) -> list[int]:
    with safe_open(path, "np") as file:
        return list(file.get_tensor("tokens"))


def test_answers_are_those_without_a_file(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "slot"
    prompts = [
        (PROMPT[:130], 0, 130),  # nothing is held, then what was held of the one before
        (PROMPT[:130], 129, 130),
        (PROMPT[:200], 130, 200),
        (PROMPT[:170] + PROMPT[:20], 170, 190),
        (PROMPT[:77], 76, 190),  # held whole: the file stays
        (PROMPT[5:90], 0, 85),
    ]
    for prompt, n_reused, n_saved in prompts:
        held = tokens_in(place) if place.exists() else []
        before = place.stat().st_mtime_ns if held else 0
        found = run(prompt, "--prompt-cache", str(place))
        assert (found.code, found.record["ids"]) == (0, run(prompt).record["ids"])
        assert found.record["timings"]["cache_n"] == n_reused
        assert found.record["timings"]["prompt_n"] == len(prompt) - n_reused
        said = f"yakvrt: reused {n_reused} token{'s' * (n_reused != 1)} of {len(held)} in {place}\n"
        assert (said in found.notes) == bool(held)
        covered = held[: len(prompt)] == prompt
        assert (place.stat().st_mtime_ns == before) == covered
        assert (f"yakvrt: saved {len(prompt)} tokens in {place} (" in found.notes) != covered
        assert len(tokens_in(place)) == n_saved


def test_all_keeps_the_answer_too(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "slot"
    first = run(PROMPT[:90], "--prompt-cache", str(place), "--prompt-cache-all")
    said = PROMPT[:90] + first.record["ids"]
    assert tokens_in(place) == said[:-1]  # the last token was never fed
    assert first.notes.count("saved") == 1
    turn = said + PROMPT[100:130]
    second = run(turn, "--prompt-cache", str(place), "--prompt-cache-all")
    assert second.record["timings"]["cache_n"] == len(said) - 1
    assert second.record["ids"] == run(turn).record["ids"]
    assert len(tokens_in(place)) == len(turn) + N - 1


def test_read_only_leaves_the_file(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "slot"
    flags = ("--prompt-cache", str(place), "--prompt-cache-ro")
    found = run(PROMPT[:40], *flags)
    assert (found.code, place.exists()) == (0, False)
    assert found.notes == f"yakvrt: {place} is not there and --prompt-cache-ro makes none\n"
    run(PROMPT[:100], "--prompt-cache", str(place))
    before = place.read_bytes()
    place.chmod(0o400)
    found = run(PROMPT[:150], *flags)
    assert found.notes == f"yakvrt: reused 100 tokens of 100 in {place}\n"
    assert found.record["ids"] == run(PROMPT[:150]).record["ids"]
    assert place.read_bytes() == before


@pytest.mark.parametrize("kv", ["yakv", "quest", "lrqk"])
def test_other_methods_go_on_from_what_they_keep(run: Run, tmp_path: Path, kv: str) -> None:
    place = tmp_path / "slot"
    flags = ("--kv", kv, "--prompt-cache", str(place))
    run(PROMPT[:200], *flags)
    found = run(PROMPT[:240], *flags)
    assert (found.code, found.record["timings"]["cache_n"], len(found.record["ids"])) == (0, 200, N)


def test_a_variable_names_the_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YAKVRT_PROMPT_CACHE", str(tmp_path / "slot"))
    run(PROMPT[:20])
    assert tokens_in(tmp_path / "slot") == PROMPT[:20]


def test_an_interruption_keeps_what_is_whole(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "slot"
    flags = ("--prompt-cache", str(place), "--prompt-cache-all")
    next_token = Session.next

    def stop(self: Session, *given: Any) -> Any:
        if len(self.ids) == 95:
            raise KeyboardInterrupt
        return next_token(self, *given)

    def stop_at_once(self: Session, *_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Session, "next", stop)
        found = run(PROMPT[:90], *flags)
    assert (found.code, found.record["finish_reason"]) == (130, None)
    assert tokens_in(place) == PROMPT[:90] + found.record["ids"][:5]
    before = place.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Session, "prefill", stop_at_once)
        found = run(PROMPT[:50] + PROMPT[:80], *flags)
    assert (found.code, found.record["ids"]) == (130, [])
    assert place.read_bytes() == before


# ---- files and flags that will not do


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 100 tokens."""
    place = tmp_path_factory.mktemp("kept") / "slot"
    flags = ("--prompt-ids", ",".join(map(str, PROMPT[:100])), "--prompt-cache", str(place))
    assert generate.main(["-m", str(tiny_dir(FAMILY)), *COMMON, *flags]) == 0
    return place


def refused(found: Shown) -> str:
    assert found.record is None
    return sentence((found.code, b"", found.notes), 1)


def test_settings_that_differ(run: Run, kept: Path) -> None:
    flags, before = ("--prompt-cache", str(kept)), kept.read_bytes()
    assert run([1], family="llama3").code == 0  # what has to be compiled for it is now
    assert "another model, 'qwen3' there and 'llama3' here" in refused(run([1], *flags, family="llama3"))
    for changes, message in (
        (("--kv", "yakv"), "another KV method, 'full' there and 'yakv' here; give it with --kv"),
        (("-ctk", "f32"), "another KV cache type, 'f16' there and 'f32' here; give it with -ctk"),
        (("-c", "99"), "holds 100 tokens, the slot has room for 99; raise --ctx-size"),
        (("--dtype", "q8_0"), "other weights of 'qwen3', or another --dtype; load those or name another"),
    ):
        assert run(PROMPT[:10], *changes).code == 0
        assert message in refused(run(PROMPT[:10], *flags, *changes))
    assert kept.read_bytes() == before


def test_parameters_that_differ(run: Run, tmp_path: Path) -> None:
    flags = ("--prompt-cache", str(tmp_path / "slot"), "--kv")
    run(PROMPT[:50], *flags, "quest")
    run(PROMPT[:50], "--kv", "quest-equal")
    found = refused(run(PROMPT[:50], *flags, "quest-equal"))
    assert "other KV parameters, 'sparse_budget=1024,min_pages=3,window=1,dense_layers=2'" in found
    args = ("--kv-args", "sparse_budget=1024,page=16,min_pages=3,window=1,dense_layers=2,rule=max")
    assert run(PROMPT[:50], *flags, "quest-equal", *args).record["timings"]["cache_n"] == 49


def test_files_that_are_damaged(run: Run, kept: Path, tmp_path: Path) -> None:
    whole, place = kept.read_bytes(), tmp_path / "slot"
    for content, message in (
        (b"", "is no saved session, or only its beginning; delete it or name another file"),
        (os.urandom(5000), "is no saved session"),
        (whole[:-1], "its header tells of"),
        (whole[:500], "is no saved session, or only its beginning"),
        (whole.replace(b'"n_tokens":"100"', b'"n_tokens":"101"'), "does not hold the 101 tokens"),
    ):
        place.write_bytes(content)
        assert message in refused(run(PROMPT[:10], "--prompt-cache", str(place)))
        assert place.read_bytes() == content


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    """They are refused before any model is looked for."""
    os.mkfifo(tmp_path / "pipe")
    for place, message in (
        (tmp_path, "is no regular file, a session cannot be saved there; name another file"),
        (tmp_path / "pipe", "is no regular file"),
        ("/dev/zero", "is no regular file"),
        (tmp_path / "none" / "slot", "create the directory first"),
        ("/proc/slot", "/proc/slot"),
        ("x" * 5000, "File name too long"),
    ):
        shown = process("-m", "no-such-model", "--prompt-ids", "1", "--json", "--prompt-cache", str(place))
        assert message in sentence(shown, 1)
    for place in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        flags = ("--prompt-cache", str(place), "--prompt-cache-ro")
        shown = process("-m", str(tiny_dir(FAMILY)), *COMMON, "--prompt-ids", "1", *flags)
        assert "is no regular file; name one in which a session was saved" in sentence(shown, 1)


def test_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    flags = ("--prompt-ids", "1,2,3", "--prompt-cache", str(tmp_path / "slot"))
    shown = process("-m", str(tiny_dir(FAMILY)), *COMMON, *flags, before=no_files)
    found = sentence(shown, 1)
    assert f"File too large: {tmp_path / 'slot'}; raise the limit on file sizes" in found
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            ["--prompt-cache-all"],
            "--prompt-cache-all says how a file is used, which --prompt-cache FNAME names",
        ),
        (["--prompt-cache-ro"], "--prompt-cache-ro says how a file is used"),
        (["--prompt-cache", "f", "--prompt-cache-ro", "--prompt-cache-all"], "give one"),
        (["--prompt-cache"], "expected one argument"),
    ],
)
def test_flags_that_make_no_sense(run: Run, flags: list[str], complaint: str) -> None:
    found = run([1], *flags)
    assert complaint in sentence((found.code, b"", found.notes), 2)
