"""Where yakvrt keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """YAKVRT_CACHE, else yakvrt in the user's cache directory.

    Raises: RuntimeError where there is no home directory.
    """
    own = os.environ.get("YAKVRT_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "yakvrt"
    )
    expanded = os.path.expanduser(own)
    if expanded.startswith("~"):  # a user id without a home directory, as containers have
        raise RuntimeError(
            "there is no home directory to keep a cache in: set YAKVRT_CACHE to a writable directory"
        )
    return Path(expanded)
