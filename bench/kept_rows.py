"""Rows of a result file that is written after each of them, and taken up again by the next run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import result_file

Key = tuple[str, tuple[tuple[str, str], ...]]


def key_of(row: dict[str, Any]) -> Key:
    """What makes a row of its own: the method and its parameters."""
    return row["method"], tuple(sorted(row["parameters"].items()))


class KeptRows:
    """The rows of one study. `study` holds what all of them share; `path` may be None.

    Raises: ValueError when the file that is there holds another study.
    """

    def __init__(self, path: Path | None, study: dict[str, Any]) -> None:
        self._path, self._study = path, study
        self._rows: dict[Key, dict[str, Any]] = {}
        if path and path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            other = [name for name, value in study.items() if held.get(name) != value]
            if other:
                raise ValueError(
                    f"{path} holds another study ({other[0]}: {held.get(other[0])!r}, "
                    f"now {study[other[0]]!r}); give another --out"
                )
            self._rows = {key_of(row): row for row in held["rows"]}

    def __contains__(self, key: Key) -> bool:
        return key in self._rows

    def add(self, row: dict[str, Any]) -> None:
        self._rows[key_of(row)] = row
        if self._path:
            result_file.write(self._path, self.result())

    def result(self) -> dict[str, Any]:
        return {"bench": "recall", **result_file.facts(), **self._study, "rows": list(self._rows.values())}
