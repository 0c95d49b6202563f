"""Files of compiled code, with a checksum."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..whole_file import write_whole


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
