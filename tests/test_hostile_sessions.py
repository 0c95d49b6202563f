"""Damaged, foreign and hostile session files: one sentence comes out and the session stays as it was."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_values import tiny_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_kvcache_contract import engine, ids_of
from test_slot_state import SHARES, history
from tiny_files import split_header, with_header

import yakvrt

BUDGET = 6.0  # seconds
N = 61
SETTING: dict[str, Any] = {
    "ctx_size": 128,
    "ubatch_size": 64,
    "dtype": "f32",
    "cache_type": "f16",
    "threads": 1,
}


@dataclass
class Target:
    """A session with content of its own, the file of another one, and what damage to it leads to."""

    session: yakvrt.Session
    path: Path
    header: dict[str, Any]
    data: bytes

    def refusal(self, content: bytes) -> str:
        """The error of restoring this content; "" when it is accepted."""
        self.path.write_bytes(content)
        before = list(self.session.ids)
        state = self.state(len(before))
        try:
            self.session.restore(self.path)
        except ValueError as error:
            assert self.session.ids == before
            for name, values in self.state(len(before)).items():
                np.testing.assert_array_equal(values, state[name])
            message = str(error)
            assert "\n" not in message
            assert len(message) < 1000
            assert str(self.path) in message
            return message
        return ""

    def state(self, n: int) -> dict[str, np.ndarray]:
        kv: Any = self.session._kv
        return {name: part.values.copy() for name, part in kv.state(self.session.slot, n).items()}

    def with_metadata(self, **changes: Any) -> bytes:
        metadata = self.header["__metadata__"] | changes
        return with_header(self.header | {"__metadata__": metadata}, self.data)

    def with_array(self, name: str, values: np.ndarray) -> bytes:
        """The file with the first bytes of an array replaced."""
        first, last = self.header[name]["data_offsets"]
        assert values.nbytes <= last - first
        return with_header(
            self.header, self.data[:first] + values.tobytes() + self.data[first + values.nbytes :]
        )


def target(method: str, directory: Path) -> Iterator[Target]:
    loaded = engine("qwen3", method, SHARES.get(method, {}), **SETTING, n_slots=2)
    with loaded, loaded.session() as source, loaded.session() as session:
        history(source, N)
        source.save(directory / "slot")
        session.prefill(ids_of("qwen3", 40)[7:])
        yield Target(session, directory / "slot", *split_header((directory / "slot").read_bytes()))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    yield from target("full", tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module", params=[*SHARES, "yakv"])
def sparse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    yield from target(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no saved session, or only its beginning"),
        (b"\0" * 8, "is no saved session, or only its beginning"),
        (b"\xff" * 100, "is no saved session, or only its beginning"),
        (b"GGUF" + b"\0" * 100, "is no saved session"),
        ((1 << 20).to_bytes(8, "little") + b"[" * (1 << 20), "its header is not JSON"),
        ((2 << 20).to_bytes(8, "little") + b" " * (2 << 20), "is no saved session, or only its beginning"),
        (with_header(b"[1]", b""), "its header does not name it one"),
        (with_header(b"{}", b""), "its header does not name it one"),
        (with_header(b'{"__metadata__":5}', b""), "its header does not name it one"),
        (with_header(b'{"__metadata__":{"format":"pt"}}', b""), "its header does not name it one"),
        (with_header(b"\xff\xfe", b""), "its header is not JSON"),
        (with_header(b"1" * 5000, b""), "its header is not JSON"),
        ((tiny_dir("qwen3") / "model.safetensors").read_bytes(), "its header does not name it one"),
    ],
)
def test_files_that_are_no_sessions(full: Target, content: bytes, message: str) -> None:
    assert message in full.refusal(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": "2"}, "has format version '2', 1 is read here; delete it to make it anew"),
        ({"format_version": 1}, "has format version no text, 1 is read here"),
        ({"yakvrt_version": "0.0.9"}, "another version of yakvrt, '0.0.9' there and '0.1.0' here"),
        ({"model": "0" * 64, "model_name": "other"}, "another model, 'other' there and 'qwen3' here; load"),
        ({"model": None}, "other weights of 'qwen3', or another --dtype"),
        ({"model": None, "model_name": 5}, "another model, no text there and 'qwen3' here"),
        ({"rope": "x" * 5000}, "another RoPE setting"),
        ({"kv": "quest"}, "another KV method, 'quest' there and 'full' here; give it with --kv"),
        ({"kv": "a\nb\x1b[31m"}, "another KV method, 'a\\nb\\x1b[31m' there"),
        (
            {"kv_args": "page=16"},
            "other KV parameters, 'page=16' there and '' here; give them with --kv-args",
        ),
        ({"cache_type": "f32"}, "another KV cache type, 'f32' there and 'f16' here; give it with -ctk"),
        ({"cache_type": ["f16"]}, "another KV cache type, no text there"),
        ({"n_tokens": "129"}, "holds 129 tokens, the slot has room for 128; raise --ctx-size"),
        ({"n_tokens": "9999999999"}, "holds 9999999999 tokens, the slot has room for 128"),
        ({"n_tokens": "9" * 5000}, "does not say how many tokens it holds"),
        ({"n_tokens": "-1"}, "does not say how many tokens it holds but '-1'"),
        ({"n_tokens": "٦١"}, "does not say how many tokens it holds"),
        ({"n_tokens": 61}, "does not say how many tokens it holds but no text"),
        ({"n_tokens": "60"}, "does not hold the 60 tokens that it names"),
        ({"n_tokens": "0"}, "does not hold the 0 tokens that it names"),
    ],
)
def test_metadata(full: Target, changes: dict[str, Any], message: str) -> None:
    assert message in full.refusal(full.with_metadata(**changes))


def test_arrays_that_are_not_those_of_a_slot(full: Target) -> None:
    name = "kv.k.1"
    entry = full.header[name]
    first, last = entry["data_offsets"]
    others = {key: value for key, value in full.header.items() if key != name}
    for changed in (
        others,
        others | {"kv.k.9": entry},
        full.header | {"more": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}},
        others | {name: None},
        others | {name: 5},
        others | {name: entry | {"dtype": "BF16"}},
        others | {name: entry | {"dtype": "U8"}},
        others | {name: entry | {"shape": entry["shape"][::-1]}},
        others | {name: entry | {"shape": [float(n) for n in entry["shape"]]}},
        others | {name: entry | {"data_offsets": [first, last - 2]}},
        others | {name: entry | {"data_offsets": [first + 2, last + 2]}},
        others | {name: entry | {"data_offsets": [float(first), float(last)]}},
        others | {name: entry | {"data_offsets": [-(10**30), 10**30]}},
        others | {name: full.header["kv.k.0"]},
    ):
        assert f"does not hold the arrays of {N} tokens" in full.refusal(with_header(changed, full.data))


def test_only_parameters_that_differ_are_named(sparse: Target) -> None:
    own = sparse.header["__metadata__"]["kv_args"]
    assert "," in own
    name, _, value = own.split(",")[0].partition("=")
    other = own.replace(f"{name}={value}", f"{name}=0.5", 1)
    message = sparse.refusal(sparse.with_metadata(kv_args=other))
    assert f"other KV parameters, '{name}=0.5' there and '{name}={value}' here; give them" in message


def test_data_that_is_cut_or_longer(full: Target) -> None:
    whole = with_header(full.header, full.data)
    for n in (1, 7, 100, len(full.data) // 2):
        assert "its header tells of" in full.refusal(whole[:-n])
    assert "does not hold the 61 tokens" in full.refusal(whole[: -len(full.data)])
    assert "its header tells of" in full.refusal(whole + b"\0")
    assert full.refusal(whole) == ""


def test_token_ids(full: Target) -> None:
    for wrong in (512, -1, 2**31 - 1, -(2**31)):
        content = full.with_array("tokens", np.array([wrong], np.int32))
        assert "token ids outside the vocabulary, which has ids 0 to 511" in full.refusal(content)
    for place in ([0], [0, 1], [-4, 240], [0, True], None, [1 << 70, (1 << 70) + 244], {"a": 1}, "ab"):
        entry = full.header["tokens"] | {"data_offsets": place}
        content = with_header(full.header | {"tokens": entry}, full.data)
        assert "does not hold the 61 tokens that it names" in full.refusal(content)


def test_places_that_are_no_files(full: Target, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    session = full.session
    for place in ("/dev/zero", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="no regular file"):
            session.restore(place)
        with pytest.raises(ValueError, match="no regular file, a session cannot be saved there"):
            session.save(place)
    with pytest.raises(ValueError, match="create the directory first"):
        session.save(tmp_path / "none" / "slot")
    with pytest.raises(ValueError, match="leads back to itself"):
        session.save(tmp_path / "loop")
    for place in (tmp_path / "none", tmp_path / "loop"):
        with pytest.raises(OSError, match=re.escape(str(place))):
            session.restore(place)
    with pytest.raises(OSError, match="/proc/slot"):
        session.save("/proc/slot")
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "loop"}


def test_other_models_and_weights(full: Target, tmp_path: Path) -> None:
    """The same configuration with other weights is another model; a copy of the files is the same one."""
    whole = with_header(full.header, full.data)
    assert full.refusal(whole) == ""
    for changes, message in (
        ({"dtype": "bf16"}, "other weights of 'qwen3', or another --dtype; load those or name another file"),
        ({"load_format": "dummy"}, "other weights of 'qwen3'"),
        ({"cache_type": "f32"}, "another KV cache type"),
    ):
        with engine("qwen3", "full", {}, **SETTING | changes) as other, other.session() as session:
            with pytest.raises(ValueError, match=message):
                session.restore(full.path)
            assert session.ids == []
    other, message = engine("llama3", "full", {}, **SETTING), "another model, 'qwen3' there and 'llama3' here"
    with other, other.session() as session, pytest.raises(ValueError, match=message):
        session.restore(full.path)


def whole_numbers(found: Target) -> dict[str, tuple[int, int, np.dtype[Any]]]:
    kv: Any = found.session._kv
    state = kv.state(found.session.slot, N)
    return {name: (*part.limits, part.values.dtype) for name, part in state.items() if part.limits}


def test_numbers_outside_their_limits(sparse: Target) -> None:
    limited = whole_numbers(sparse)
    types = {entry["dtype"] for name, entry in sparse.header.items() if name.startswith("kv.")}
    assert bool(limited) == bool(types & {"I32", "I64"})
    for name, (least, most, dtype) in limited.items():
        for wrong in (least - 1, most + 1, np.iinfo(dtype).max, np.iinfo(dtype).min):
            message = sparse.refusal(sparse.with_array(f"kv.{name}", np.array([wrong], dtype)))
            assert f"numbers in {name} that are not from {least} to {most}" in message


def test_any_values_within_limits_decode(sparse: Target) -> None:
    """What the numbers say may be wrong; they must not lead outside of anything."""
    limited, rng = whole_numbers(sparse), np.random.default_rng(3)
    for round_ in range(12):
        content = with_header(sparse.header, sparse.data)
        header, data = split_header(content)
        changed = bytearray(data)
        for name, (least, most, dtype) in limited.items():
            first, last = header[f"kv.{name}"]["data_offsets"]
            n = (last - first) // dtype.itemsize
            drawn = rng.integers(least, most + 1, n) if round_ > 1 else np.full(n, (least, most)[round_])
            changed[first:last] = drawn.astype(dtype).tobytes()
        if not limited:  # codes and scales of any value
            changed[:] = rng.integers(0, 256, len(changed), np.uint8).tobytes()
            first, last = header["tokens"]["data_offsets"]
            changed[first:last] = data[first:last]
        assert sparse.refusal(with_header(header, bytes(changed))) == ""
        with np.errstate(all="ignore"):
            for token in ids_of("qwen3", 20):
                sparse.session.decode(token)
            sparse.session.truncate(N - 5)
            for token in ids_of("qwen3", 6):
                sparse.session.decode(token)
            sparse.session.prefill(ids_of("qwen3", 9))
            sparse.session.decode(3)


def test_drawn_mutations(full: Target) -> None:
    """Whatever is overwritten, inserted or deleted in the header, a sentence or nothing comes."""
    original = with_header(full.header, full.data)
    limit = len(original) - len(full.data)
    deadline = time.monotonic() + BUDGET

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.tuples(st.integers(0, limit), st.binary(max_size=8), st.integers(0, 8)), min_size=1))
    def check(edits: list[tuple[int, bytes, int]]) -> None:
        if time.monotonic() > deadline:
            return
        content = bytearray(original)
        for at, new, n_old in edits:
            content[at : at + n_old] = new
        full.refusal(bytes(content))

    check()


def test_an_interruption_leaves_an_empty_session(full: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Any, state: Any, write: Any) -> None:
        raise KeyboardInterrupt

    whole = with_header(full.header, full.data)
    with monkeypatch.context() as patch:
        patch.setattr("yakvrt.saved_session.SavedSession.copy_to", stop)
        full.path.write_bytes(whole)
        with pytest.raises(KeyboardInterrupt):
            full.session.restore(full.path)
    assert full.session.ids == []
    assert full.refusal(whole) == ""


def test_a_failed_save_leaves_the_old_file(full: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = with_header(full.header, full.data)
    assert full.refusal(whole) == ""
    before = full.path.read_bytes()

    def fail(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match=re.escape(f"No space left on device: '{full.path}'")):
            full.session.save(full.path)
    assert full.path.read_bytes() == before
    assert [path.name for path in full.path.parent.iterdir()] == [full.path.name]


def test_the_header_stays_small() -> None:
    """The limit holds for the deepest models there may be."""
    from yakvrt.kvcache.contract import StateArray
    from yakvrt.saved_session import MAX_HEADER_BYTES
    from yakvrt.session_file import header_entries

    rows = StateArray(np.broadcast_to(np.float16(0), (1024, 1 << 20, 256)))
    state = {f"{name}.{layer}": rows for name in "kv" for layer in range(1024)}
    entries, _ = header_entries([], state)
    assert len(json.dumps(entries)) < MAX_HEADER_BYTES / 2
