"""Files of tasks: found in the folder the user names, with sentences for what is missing or malformed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 1 << 30
MAX_LINE_CHARS = 64 << 20


def find_file(data_dir: Path | None, names: tuple[str, ...], task: str, source: str) -> Path:
    """The first of the names that is a file in the folder; the folder may also be the file itself.

    Raises: ValueError that says what to get, from where, and where to put it.
    """
    if data_dir is None:
        raise ValueError(
            f"{task} needs {names[0]}: get it from {source}, and name its folder with --data DIR"
        )
    if data_dir.is_file():
        return data_dir
    if not data_dir.is_dir():
        raise ValueError(
            f"--data {data_dir} is no folder; name the one that holds {names[0]} (from {source})"
        )
    for name in names:
        if (data_dir / name).is_file():
            return data_dir / name
    raise ValueError(
        f"--data {data_dir} holds no {' or '.join(names)}: get it from {source}, and put it into that folder"
    )


def read_text(path: Path) -> str:
    """A file's text, its line ends made newlines.

    Raises: ValueError.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MB; give a smaller file")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give a readable file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from None


def parse_json(text: str, where: str) -> Any:
    """Raises: ValueError that names the place."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not JSON ({error.msg}, column {error.colno}); mend or remove it"
        ) from None
    except (ValueError, RecursionError):
        raise ValueError(
            f"{where}: JSON nested too deeply or with too long a number; mend or remove it"
        ) from None


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object with its place, "FILE:LINE"; blank lines are passed over.

    Raises: ValueError that names file and line.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        if len(line) > MAX_LINE_CHARS:
            raise ValueError(f"{where}: longer than {MAX_LINE_CHARS >> 20} million characters; shorten it")
        record = parse_json(line, where)
        if not isinstance(record, dict):
            raise ValueError(f"{where}: a JSON object was expected, not {type(record).__name__}")
        yield where, record


def text_field(record: dict[str, Any], key: str, where: str) -> str:
    """Raises: ValueError when the field is missing or no text."""
    value = record.get(key)
    if not isinstance(value, str):
        what = "no" if key not in record else f"a {type(value).__name__} as"
        raise ValueError(f"{where}: has {what} {key!r}; it must be a text")
    return value
