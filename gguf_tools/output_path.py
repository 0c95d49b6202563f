"""Where an output really goes: links are followed, so that they keep pointing at what is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def output_path(path: str | Path) -> Path:
    """The absolute path without links that `path` stands for; nothing has to be there yet.

    Raises: ValueError for links that lead in a circle and for a directory that does not exist.
    """
    try:
        os.stat(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(
                f"{path}: a link that leads back to itself; remove it or name another output"
            ) from None
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        wrong = "is not a directory" if target.parent.exists() else "does not exist"
        raise ValueError(
            f"{path}: {target.parent} {wrong}; create the directory first or name another output"
        )
    return target
