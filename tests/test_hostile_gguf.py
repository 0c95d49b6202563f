"""Malformed and hostile GGUF files: only GGUFError may come out, quickly and without large allocations."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_files import Info, assemble, model_bytes, pair, string, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_tools.reader import GGUFError, GGUFFile

HUGE = 1 << 60
F32, Q8_0 = 0, 8


def array(item_type: int, count: int, items: bytes = b"") -> bytes:
    return string("k") + struct.pack("<IIQ", 9, item_type, count) + items


def nested(depth: int) -> bytes:
    return string("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 0, 0)


CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "three bytes": (b"GGU", "not a GGUF file"),
    "magic": (assemble([], magic=b"GGML"), "not a GGUF file: it starts with b'GGML'"),
    "magic only": (b"GGUF", "ends inside the version"),
    "version 1": (assemble([], version=1), "version 1 is not supported; versions 2 and 3"),
    "version 4": (assemble([], version=4), "version 4 is not supported"),
    "version 0": (assemble([], version=0), "version 0 is not supported"),
    "big endian": (assemble([], version=3 << 24), "big-endian"),
    "tensor count": (assemble([], n_tensors=HUGE), f"announces {HUGE} tensors; at most"),
    "key count": (assemble([], n_pairs=HUGE), f"announces {HUGE} metadata keys; at most"),
    "too many keys": (assemble([pair("a", 1)], n_pairs=100), "metadata"),
    "too many tensors": (assemble([], n_tensors=100), "ends inside the description of tensor ''"),
    "key length": (assemble([struct.pack("<Q", HUGE)], n_pairs=1), "over the limit of 65535"),
    "key past the end": (assemble([struct.pack("<Q", 60000)], n_pairs=1), "ends inside a metadata key"),
    "key not UTF-8": (assemble([pair(b"\xff\xfe", 1)]), "not valid UTF-8"),
    "duplicate key": (assemble([pair("a", 1), pair("a", 2)]), "key 'a' occurs twice"),
    "value type": (assemble([string("k") + struct.pack("<II", 13, 0)]), "unknown value type 13"),
    "string length": (assemble([string("k") + struct.pack("<IQ", 8, HUGE)]), "string reaches past the end"),
    "string length 2^64-1": (assemble([string("k") + struct.pack("<IQ", 8, 2**64 - 1)]), "past the end"),
    "array count": (assemble([array(4, HUGE)]), f"inside the metadata value 'k': {HUGE} entries announced"),
    "array item type": (assemble([array(77, 1)]), "unknown value type 77"),
    "string array count": (assemble([array(8, HUGE)]), f"{HUGE} entries announced"),
    "string array short": (assemble([array(8, 3, string("a"))]), "'k'"),
    "string in array": (assemble([array(8, 2, string("a") + struct.pack("<Q", HUGE))]), "past the end"),
    "string lengths past 2^63": (
        assemble([array(8, 3, struct.pack("<Q", 2**63 - 1) + bytes(32))]),
        "past the end",
    ),
    "nested array count": (assemble([array(9, HUGE)]), f"{HUGE} entries announced"),
    "nesting": (assemble([nested(4)]), "nests arrays more than 4 deep"),
    "deep nesting": (assemble([nested(100_000)]), "nests arrays more than 4 deep"),
    "alignment 0": (assemble([pair("general.alignment", 0)]), "alignment is 0; it must be a power of two"),
    "alignment 48": (assemble([pair("general.alignment", 48)]), "alignment is 48"),
    "alignment 2^30": (assemble([pair("general.alignment", 1 << 30)]), "power of two from 8 to 1048576"),
    "alignment text": (assemble([pair("general.alignment", "x" * 1000)]), "alignment is xxx"),
    "alignment true": (assemble([pair("general.alignment", True)]), "alignment is True"),
    "no dimensions": (assemble([], [Info("t", (), F32, 0)]), "has 0 dimensions; 1 to 4"),
    "many dimensions": (assemble([], [Info("t", (1,) * 5, F32, 0)]), "has 5 dimensions"),
    "empty dimension": (assemble([], [Info("t", (4, 0), F32, 0)], bytes(64)), "empty dimension"),
    "type": (assemble([], [Info("t", (4,), 31, 0)], bytes(64)), "type id 31 is not known"),
    "row": (
        assemble([], [Info("t", (33, 2), Q8_0, 0)], bytes(99)),
        "33 values is not a whole number of Q8_0",
    ),
    "product": (assemble([], [Info("t", (1 << 32, 1 << 32, 4), F32, 0)], bytes(64)), "the file has"),
    "product 2^252": (assemble([], [Info("t", (1 << 63,) * 4, F32, 0)], bytes(64)), "the file has"),
    "truncated data": (assemble([], [Info("t", (17,), F32, 0)], bytes(64)), "needs 68 bytes"),
    "offset": (assemble([], [Info("t", (1,), F32, 64)], bytes(64)), "the file has"),
    "offset 2^60": (assemble([], [Info("t", (1,), F32, HUGE)], bytes(64)), "the file has"),
    "offset 2^64-32": (assemble([], [Info("t", (8,), F32, 2**64 - 32)], bytes(64)), "the file has"),
    "misaligned": (assemble([], [Info("t", (1,), F32, 4)], bytes(64)), "not aligned to 32"),
    "overlap": (
        assemble([], [Info("a", (16,), F32, 0), Info("b", (4,), F32, 32)], bytes(64)),
        "tensors 'a' and 'b' overlap",
    ),
    "same place": (
        assemble([], [Info("a", (4,), F32, 0), Info("b", (4,), F32, 0)], bytes(64)),
        "tensors 'a' and 'b' overlap",
    ),
    "duplicate tensor": (
        assemble([], [Info("a", (4,), F32, 0), Info("a", (4,), F32, 32)], bytes(64)),
        "tensor 'a' occurs twice",
    ),
    "tensor name": (assemble([], [Info(b"\x80", (4,), F32, 0)], bytes(64)), "tensor name is not valid UTF-8"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(tmp_path: Path, case: str) -> None:
    content, message = CASES[case]
    path = write(tmp_path / "bad.gguf", content)
    with pytest.raises(GGUFError) as caught:
        GGUFFile(path)
    text = str(caught.value)
    assert message in text
    assert str(path) in text
    assert len(text) < 600 + len(str(path))
    assert "\n" not in text
    assert case == "empty" or "at byte" in text


def test_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path, tmp_path / "pipe.gguf"):
        with pytest.raises(GGUFError, match="not a regular file"):
            GGUFFile(path)
    with pytest.raises(FileNotFoundError):
        GGUFFile(tmp_path / "absent.gguf")


@pytest.mark.parametrize("item_type", [0, 8])
def test_arrays_are_bounded(tmp_path: Path, item_type: int) -> None:
    # Sparse: 20 million bytes or empty strings on paper, almost nothing on disk.
    path = write(tmp_path / "sparse.gguf", assemble([array(item_type, 20_000_000)]))
    os.truncate(path, 160_000_100)
    with pytest.raises(GGUFError, match="at most 16777216 entries"):
        GGUFFile(path)


def valid_file() -> bytes:
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "general.alignment": 32,
        "t.tokens": ["a", "bc", "def"],
        "t.scores": [0.5, 1.5],
        "t.nested": [["x"], ["y", "z"]],
        "t.flag": True,
    }
    x = np.ones((2, 32), np.float32)
    return model_bytes(metadata, {"w.a": ("Q8_0", x), "w.b": ("F32", x[0]), "w.c": ("F16", x[:1])})


VALID = valid_file()
BOUNDARIES = (0, 1, 7, 8, 9, 31, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1)


def use(path: Path) -> None:
    """Opens a file and touches everything in it; a GGUFError is the only way to fail."""
    try:
        with GGUFFile(path) as file:
            for key in file.metadata:
                repr(file.metadata[key])
            for tensor in file.tensors.values():
                tensor.data.sum()
                tensor.release()
    except GGUFError:
        return


def test_every_truncation(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for length in range(len(VALID)):
        use(write(path, VALID[:length]))


def test_every_byte_changed(tmp_path: Path) -> None:
    path = tmp_path / "changed.gguf"
    for position in range(len(VALID)):
        for change in (0x01, 0x80, 0xFF):
            content = bytearray(VALID)
            content[position] ^= change
            use(write(path, bytes(content)))


def mutate(content: bytearray, draw: Callable[[int], int]) -> None:
    """Overwrites, inserts or deletes at a drawn place; draw(n) gives a number below n."""
    at = draw(len(content))
    match draw(4):
        case 0:
            content[at] = draw(256)
        case 1:
            content[at : at + 8] = struct.pack("<Q", BOUNDARIES[draw(len(BOUNDARIES))])
        case 2:
            del content[at : at + 1 + draw(16)]
        case 3:
            start = draw(len(content))
            content[at:at] = content[start : start + 1 + draw(64)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_drawn_mutations(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        if content:
            mutate(content, lambda n: data.draw(st.integers(0, n - 1)))
    use(write(tmp_path / "drawn.gguf", bytes(content)))


def test_random_mutations_for_a_while(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)
    path = tmp_path / "random.gguf"
    deadline = time.monotonic() + 5.0
    slowest = 0.0
    while (start := time.monotonic()) < deadline:
        content = bytearray(VALID)
        for _ in range(rng.randint(1, 6)):
            if content:
                mutate(content, rng.randrange)
        path.write_bytes(content)
        try:
            use(path)
        except Exception as error:
            error.add_note(f"seed {seed}, file {bytes(content)!r}")
            raise
        slowest = max(slowest, time.monotonic() - start)
    assert slowest < 2.0, f"seed {seed}"
