"""Files of compiled code, with a checksum."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

from ..whole_file import write_whole


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
