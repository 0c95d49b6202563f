"""Where yakvrt keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """YAKVRT_CACHE, else yakvrt in the user's cache directory."""
    if own := os.environ.get("YAKVRT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yakvrt"
