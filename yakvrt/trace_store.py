"""Where a trace lies until it is written: a file without a name, or memory."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from .trace_records import JOB, PACKED

BUFFER_BYTES = 1 << 20
WORD_BYTES = 8


class TraceStore:
    """Records and jobs: all in a file, of which nothing is left of a run that is killed; or, with most_bytes,
    the newest in memory, so that no full disk stops who runs for days.

    Owns: the file, in `directory` until close(). Raises: OSError, naming `target`, where nothing can be
    written, here and whenever something is.
    """

    def __init__(self, directory: Path, target: str, most_bytes: int | None = None) -> None:
        self._directory, self._target, self._most_bytes = directory, target, most_bytes
        self._files: list[IO[bytes]] = []
        self._open()

    def write(self, parts: Iterable[bytes | memoryview]) -> None:
        try:
            self._n_bytes += self._files[-1].write(b"".join(parts))
        except OSError as error:
            error.filename = self._target
            raise

    def end_step(self) -> None:
        """What comes may be read without what came before: of two halves the older goes when the newer is
        full.
        """
        if self._most_bytes is not None and self._n_bytes >= self._most_bytes // 2:
            for old in self._files[:-1]:
                old.close()
            del self._files[:-1]
            self._open()

    def entries(self) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """Every record in order, and of a job its words. Raises: OSError."""
        for file in self._files:
            file.seek(0)
            while len(head := file.read(PACKED.size)) == PACKED.size:
                record = PACKED.unpack(head)
                words = file.read(record[4] * WORD_BYTES) if record[0] == JOB else b""
                if record[0] == JOB and len(words) < record[4] * WORD_BYTES:
                    break  # the disk was full
                yield record, words

    def close(self) -> None:
        for file in self._files:
            with suppress(OSError):  # of what could not be written before
                file.close()

    def _open(self) -> None:
        self._n_bytes = 0
        if self._most_bytes is not None:
            self._files.append(io.BytesIO())
            return
        try:
            file = tempfile.TemporaryFile(dir=self._directory, buffering=BUFFER_BYTES)  # noqa: SIM115 (close())
        except OSError as error:
            error.filename = self._target
            raise
        self._files.append(file)
