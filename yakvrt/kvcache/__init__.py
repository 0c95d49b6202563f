"""KV methods by name."""

from __future__ import annotations

from .full import FullKv

METHODS = {"full": FullKv}
