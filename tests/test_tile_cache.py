"""Repacked weights on disk: the same logits, shared pages, and nothing stale, cut off or foreign is read."""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny_gguf

import yakvrt
from yakvrt.cpu.tile_cache import HEADER_BYTES, TileCache, files_identity
from yakvrt.cpu.tile_memory import TileMemory

N_BYTES = 10_000


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels stay where all tests have them."""
    from yakvrt.cache_directory import cache_directory

    own = tmp_path / "cache"
    own.mkdir()
    kernels = cache_directory() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    (own / "kernels").symlink_to(kernels)
    monkeypatch.setenv("YAKVRT_CACHE", str(own))


def tiles(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "tiles").glob("*"))


def logits(path: Path, **keywords: object) -> np.ndarray:
    with yakvrt.load(str(path), ctx_size=64, **keywords) as engine, engine.session() as session:  # type: ignore[arg-type]
        return session.prefill([3, 1, 4, 1, 5]).copy()


def filled(seed: int = 1) -> TileMemory:
    memory = TileMemory.empty(N_BYTES)
    memory.data[:] = np.random.default_rng(seed).integers(0, 256, N_BYTES, np.uint8)
    return memory


@pytest.mark.parametrize("family", ["qwen2", "llama3"])
def test_the_same_logits_from_the_file(tmp_path: Path, family: str) -> None:
    path = write_tiny_gguf(family, tmp_path / "model.gguf")
    expected = logits(path)
    assert not (tmp_path / "cache" / "tiles").exists()  # off by default
    np.testing.assert_array_equal(logits(path, tile_cache=True), expected)
    (file,) = tiles(tmp_path)
    before = file.read_bytes()
    for keywords in ({}, {"mmap": False}, {"mlock": True}):
        np.testing.assert_array_equal(logits(path, tile_cache=True, **keywords), expected)
    assert tiles(tmp_path) == [file]
    assert file.read_bytes() == before
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_is_mapped_is_shared_with_the_file(tmp_path: Path) -> None:
    path = write_tiny_gguf("qwen2", tmp_path / "model.gguf")
    logits(path, tile_cache=True)
    with yakvrt.load(str(path), ctx_size=64, tile_cache=True):
        assert str(tiles(tmp_path)[0]) in Path("/proc/self/maps").read_text()
    with yakvrt.load(str(path), ctx_size=64, tile_cache=True, mmap=False):
        assert str(tiles(tmp_path)[0]) not in Path("/proc/self/maps").read_text()


def test_another_type_has_a_file_of_its_own(tmp_path: Path) -> None:
    path = write_tiny_gguf("qwen2", tmp_path / "model.gguf")
    for dtype in ("auto", "f32", "auto"):
        np.testing.assert_array_equal(logits(path, tile_cache=True, dtype=dtype), logits(path, dtype=dtype))
    assert len(tiles(tmp_path)) == 2


def test_a_changed_model_is_not_met_by_old_tiles(tmp_path: Path) -> None:
    """Same size, same time, same names: one weight differs, in the part that is not metadata."""
    path = write_tiny_gguf("qwen2", tmp_path / "model.gguf")
    logits(path, tile_cache=True)
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-40:] = bytes(40)
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    np.testing.assert_array_equal(logits(path, tile_cache=True), logits(path))
    assert len(tiles(tmp_path)) == 2


def test_identity_is_that_of_the_content(tmp_path: Path) -> None:
    one = tmp_path / "one.bin"
    with one.open("wb") as file:
        file.truncate(40 << 20)
    two = shutil.copy2(one, tmp_path / "two.bin")
    assert files_identity([one]) == files_identity([two])
    assert files_identity([one]) != files_identity([one, two])
    times = one.stat()
    with one.open("r+b") as file:
        file.seek(20 << 20)
        file.write(b"x" * (1 << 20))
    os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert files_identity([one]) != files_identity([two])
    os.utime(two, (1, 1))
    assert files_identity([two]) != files_identity([shutil.copyfile(two, tmp_path / "three.bin")])


def test_damaged_files_are_not_read(tmp_path: Path) -> None:
    cache = TileCache(b"model", N_BYTES, tmp_path)
    assert cache.open() is None
    cache.keep(filled())
    good = cache.path.read_bytes()
    assert len(good) == HEADER_BYTES + N_BYTES
    for damaged in (
        b"",
        good[:100],
        good[:-1],
        good + b"x",
        b"x" + good[1:],
        good[:60] + b"x" + good[61:],
        good[:200] + b"x" + good[201:],
        good[HEADER_BYTES:],
    ):
        cache.path.write_bytes(damaged)
        assert cache.open() is None
        assert cache.open(mapped=False) is None
    cache.keep(filled())
    for mapped in (True, False):
        memory = cache.open(mapped=mapped)
        assert memory is not None
        assert memory.filled
        np.testing.assert_array_equal(memory.data, filled().data)


def test_a_file_of_another_plan_is_not_read(tmp_path: Path) -> None:
    TileCache(b"model", N_BYTES, tmp_path).keep(filled())
    assert TileCache(b"model", N_BYTES - 128, tmp_path).open() is None
    other = TileCache(b"another", N_BYTES, tmp_path)
    shutil.copy(TileCache(b"model", N_BYTES, tmp_path).path, other.path)
    assert other.open() is None


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    TileCache(b"model", N_BYTES, blocker / "tiles").keep(filled())
    assert "cannot keep 0 MiB of tiles in" in capsys.readouterr().err
    cache = TileCache(b"model", N_BYTES, tmp_path / "tiles")
    cache.keep(filled())
    assert [p.name for p in (tmp_path / "tiles").iterdir()] == [cache.path.name]


def test_old_files_go_and_mapped_ones_can_be_read_on(tmp_path: Path) -> None:
    old, new = TileCache(b"old", N_BYTES, tmp_path), TileCache(b"new", N_BYTES, tmp_path)
    old.keep(filled(3))
    mapped = old.open()
    assert mapped is not None
    (tmp_path / "left.part").write_text("")
    (tmp_path / "notes.txt").write_text("")
    stale = tmp_path / f"{new.path.name[:24]}-0123456789ab.tiles"  # this model, other code
    stale.write_text("")
    then = time.time() - 31 * 86400
    for path in (old.path, tmp_path / "left.part"):
        os.utime(path, (then, then))
    os.utime(stale, (time.time() - 2 * 86400,) * 2)
    new.keep(filled())
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == sorted([new.path.name, "notes.txt"])
    np.testing.assert_array_equal(mapped.data, filled(3).data)


def test_pieces_follow_each_other() -> None:
    memory = TileMemory.empty(1000)
    first, second = memory.take(100), memory.take(500)
    assert second.ctypes.data - first.ctypes.data == 128
    assert first.ctypes.data % 4096 == 0
    with pytest.raises(RuntimeError, match="do not fit in the 1000 planned"):
        memory.take(400)


def test_locked_memory_is_counted_by_the_system() -> None:
    def locked_kb() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmLck:")).split()[1])

    before = locked_kb()
    memory = TileMemory.empty(1 << 20)
    memory.data[:] = 1
    memory.lock()
    assert locked_kb() >= before + 1024
    memory.data = np.empty(0, np.uint8)
    assert locked_kb() == before
