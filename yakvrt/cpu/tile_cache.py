"""Repacked weights kept on disk: the next process maps them, shares them with others and repacks nothing.

A file is a header of one page and the tiles as they lie in memory. It is named after what the tiles were made
from and after the code that made them, so that nothing stale is ever read.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..cache_directory import cache_directory
from .tile_memory import TileMemory

HEADER_BYTES = 4096
HEADER = struct.Struct("<16s32sQ")  # magic, name, bytes of tiles; a SHA-256 of these follows
MAGIC = b"yakvrt tiles 1\n\0"
HEAD_BYTES = 16 << 20  # of a model file: metadata, names and shapes
SAMPLE_BYTES, N_SAMPLES = 4096, 256
UNUSED_DAYS = 30
OLD_CODE_DAYS = 1  # for tiles of the same model that other code made
# what decides which bytes a tile holds
SOURCES = (
    *("yakvrt/weights.py", "yakvrt/kernels/repack.py", "yakvrt/kernels/tile_layout.py"),
    *("yakvrt/cpu/tiled_matrix.py", "yakvrt/cpu/tile_memory.py", "yakvrt/cpu/tile_cache.py"),
    *("gguf_tools/formats.py", "gguf_tools/quantize*.py", "gguf_tools/dequantize*.py"),
)


def files_identity(files: Iterable[Path]) -> bytes:
    """Tells model files apart wherever they lie.

    Size, time of the last change, all metadata and a thousandth or so of the weights: times alone say little
    where an archive or an image sets them all to the same second.
    Raises: OSError.
    """
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            digest.update(struct.pack("<QQ", status.st_size, status.st_mtime_ns))
            digest.update(file.read(HEAD_BYTES))
            rest = max(0, status.st_size - HEAD_BYTES - SAMPLE_BYTES)
            for i in range(N_SAMPLES if rest else 0):
                digest.update(os.pread(file.fileno(), SAMPLE_BYTES, HEAD_BYTES + rest * (i + 1) // N_SAMPLES))
    return digest.digest()


class TileCache:
    """The place on disk for the tiles of one model.

    model: what they are made from, as bytes that differ where it differs. n_bytes: the size they must have.
    """

    def __init__(self, model: bytes, n_bytes: int, directory: Path | None = None) -> None:
        self._directory = directory or cache_directory() / "tiles"
        self._model = hashlib.sha256(model).hexdigest()[:24]
        code = _code_digest()
        self._name = hashlib.sha256(model + code).digest()
        self._n_bytes = n_bytes
        self.path = self._directory / f"{self._model}-{code.hex()[:12]}.tiles"

    def open(self, *, mapped: bool = True) -> TileMemory | None:
        """The tiles in the file, mapped or read; None when there is none that is whole and ours."""
        try:
            with self.path.open("rb") as file:
                if file.read(HEADER_BYTES) != self._header():
                    return None
                if os.fstat(file.fileno()).st_size != HEADER_BYTES + self._n_bytes:
                    return None
                memory = self._map(file.fileno()) if mapped else self._read(file.fileno())
            os.utime(self.path)  # used today
        except OSError:
            return None
        return memory

    def keep(self, memory: TileMemory) -> None:
        """Writes the tiles under a temporary name and renames the file when it is whole and on the disk.

        A failure costs the next start its speed and nothing else: it is said, not raised.
        """
        temporary = None
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._prune()
            with tempfile.NamedTemporaryFile(dir=self._directory, suffix=".part", delete=False) as file:
                temporary = Path(file.name)
                file.write(self._header())
                file.write(memory.data.data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            print(
                f"yakvrt: cannot keep {self._n_bytes >> 20} MiB of tiles in {self._directory} ({error}); "
                "free some space or set YAKVRT_CACHE",
                file=sys.stderr,
            )
        finally:
            if temporary:
                temporary.unlink(missing_ok=True)

    def _header(self) -> bytes:
        fields = HEADER.pack(MAGIC, self._name, self._n_bytes)
        return (fields + hashlib.sha256(fields).digest()).ljust(HEADER_BYTES, b"\0")

    def _map(self, descriptor: int) -> TileMemory:
        mapping = mmap.mmap(descriptor, HEADER_BYTES + self._n_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        if hasattr(mmap, "MADV_WILLNEED"):
            mapping.madvise(mmap.MADV_WILLNEED)  # read ahead, all of it
        return TileMemory(np.frombuffer(mapping, np.uint8)[HEADER_BYTES:], filled=True)

    def _read(self, descriptor: int) -> TileMemory | None:
        memory = TileMemory.empty(self._n_bytes)
        done = 0
        while done < self._n_bytes:
            n = os.preadv(descriptor, [memory.data[done:].data], HEADER_BYTES + done)
            if n == 0:  # cut off since it was opened
                return None
            done += n
        memory.filled = True
        return memory

    def _prune(self) -> None:
        """Removes what nothing will read again; a process that has mapped a file keeps it."""
        for path in self._directory.iterdir():
            if path.suffix not in (".tiles", ".part"):
                continue
            days = OLD_CODE_DAYS if path.name.startswith(self._model) else UNUSED_DAYS
            with contextlib.suppress(FileNotFoundError):  # another process was first
                if path.stat().st_mtime < time.time() - days * 86400:
                    path.unlink()


def _code_digest() -> bytes:
    root = Path(__file__).parent.parent.parent
    digest = hashlib.sha256(sys.byteorder.encode())
    for path in sorted(path for pattern in SOURCES for path in root.glob(pattern)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.digest()
