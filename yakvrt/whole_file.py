"""Files that several processes may write at once and nobody may meet half written."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_whole(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Writes a file under a temporary name beside it, which ends with .part, and gives it its own at the end.

    Raises: OSError.
    """
    partial = path.parent / f"{secrets.token_hex(8)}.part"
    try:
        with open(partial, "xb", opener=_private) as file:
            file.write(data)
        partial.chmod(mode)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
