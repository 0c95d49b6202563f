"""Files of compiled code, which several processes may write at once and nobody may meet half written."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name first."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


@contextlib.contextmanager
def making(path: Path) -> Iterator[None]:
    """Within, one process makes the file; others that want to wait, and may find it made.

    A byte of one file in the directory stands for each name. Where a file system has no locks, all make it.
    """
    with (path.parent / ".making").open("ab") as lock:
        with contextlib.suppress(OSError):
            fcntl.lockf(lock, fcntl.LOCK_EX, 1, zlib.crc32(path.name.encode()))
        yield


def write_object(path: Path, code: bytes) -> None:
    """Writes code behind its checksum."""
    write_whole(path, hashlib.sha256(code).digest() + code)


def read_object(path: Path) -> bytes | None:
    """The code in a cache file; None when there is none or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    code = data[32:]
    return code if hashlib.sha256(code).digest() == data[:32] else None
