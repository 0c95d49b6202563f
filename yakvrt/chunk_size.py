"""Prompt tokens computed in one step; apart from the engine, so that --help can show the number at once."""

from __future__ import annotations

DEFAULT_CHUNK = 240  # a multiple of 6, whose activations stay in a 1-MiB cache
MAX_CHUNK = 8192
