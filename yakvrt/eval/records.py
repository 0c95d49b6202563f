"""The records of an evaluation: one line of JSON for each sample and method, safe as soon as it is written.

The first line says under which options all others came about. What a killed run leaves half written at the
end is dropped; a run with the same options goes on behind what is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NAME = "records.jsonl"
FORMAT = 1
MAX_LINE_BYTES = 16 << 20
MAX_INT = 1 << 63
NUMBERS = (
    *("kl_mean", "kl_p99", "same_top1", "nll", "gross_bytes", "moved_bytes"),
    *("device_bytes_per_token", "host_bytes_per_token"),
)
Record = dict[str, Any]
Key = tuple[str, str, str, float | None]


def key_of(record: Mapping[str, Any]) -> Key:
    """What a record is of: task, sample, method and budget."""
    return record["task"], record["sample"], record["method"], record["budget"]


def read_records(path: Path) -> tuple[Record, list[Record]]:
    """Header and records; a torn last line is left out.

    Raises: ValueError that names a malformed line; OSError.
    """
    lines = list(_lines(path))
    if not lines:
        raise ValueError(f"{path} is empty; remove it")
    header, *records = [found for found, _ in lines]
    if header.get("eval") != FORMAT or not _is_header(header):
        raise ValueError(f"{path}:1: no header of an evaluation; give a directory that yakvrt eval made")
    for number, record in enumerate(records, 2):
        if not _is_record(record):
            raise ValueError(f"{path}:{number}: no record of an evaluation; remove the line")
    return header, records


def _is_header(found: Record) -> bool:
    options = found.get("options")
    if not isinstance(options, dict):
        return False
    return isinstance(options.get("model", ""), str) and isinstance(found.get("started", ""), str)


def _is_record(found: Record) -> bool:
    texts = all(isinstance(found.get(name), str) for name in ("task", "sample", "method", "prompt"))
    numbers = [found.get(name, 0.0) for name in NUMBERS]
    if "score" in found:
        numbers.append(found["score"].get("score") if isinstance(found["score"], dict) else None)
    return (
        texts
        and isinstance(found.get("budget", ""), float | None)
        and found.get("intensity") in ("low", "high")
        and isinstance(found.get("facts"), dict)
        and all(map(_is_number, numbers))
    )


def _is_number(value: object) -> bool:
    """One that a float holds; a model whose logits overflow has nan."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= MAX_INT)


def _lines(path: Path) -> Iterator[tuple[Record, int]]:
    """Objects, and the bytes up to the end of their lines."""
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
            is_whole = line.endswith(b"\n")
            if not is_whole and len(line) < MAX_LINE_BYTES:
                return  # torn: the newline is written last
            end += len(line)
            try:
                found = json.loads(line) if is_whole else None
            except (ValueError, RecursionError):
                found = None
            if not isinstance(found, dict):
                raise ValueError(f"{path}:{number}: not a JSON object; mend or remove the line")
            yield found, end


class RecordFile:
    """The records of one directory, to be added to. `options` are what all records must share, `facts` what
    else the header says; of these, the device must be the same too.

    Raises: ValueError for records of other options, or when another run writes there; OSError.
    """

    def __init__(self, directory: Path, options: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        import fcntl

        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / NAME
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another run writes {self._path}; wait for it or give another -o") from None
            whole = [end for _, end in _lines(self._path)]
            os.ftruncate(self._file, whole[-1] if whole else 0)
            if not whole:
                self._write({"eval": FORMAT, "options": dict(options), **facts})
            header, self.held = read_records(self._path)
            device = {"device": facts.get("device")}
            self._check(
                {"device": header.get("device"), **header["options"]},
                json.loads(json.dumps({**device, **options})),
            )
        except BaseException:
            self.close()
            raise
        self._prompts = {(r["task"], r["sample"]): r["prompt"] for r in self.held}
        self._keys = {key_of(record) for record in self.held}

    def _check(self, held: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        for name in dict.fromkeys((*held, *options)):
            if held.get(name) != options.get(name):
                raise ValueError(
                    f"{self._path} was made with {name}={held.get(name)}, now it is {options.get(name)}; "
                    "records of both would mix, give another -o"
                )

    def has(self, key: Key, prompt: str) -> bool:
        """Whether the record is there. `prompt` is what tells the sample's content.

        Raises: ValueError when the sample is there with another content.
        """
        held = self._prompts.get(key[:2], prompt)
        if held != prompt:
            raise ValueError(
                f"{self._path} holds sample {key[1]} of {key[0]} with another content; data or options have "
                "changed, give another -o"
            )
        return key in self._keys

    def add(self, record: Mapping[str, Any]) -> None:
        """Returns when it is on the disk."""
        self._write(record)
        self._keys.add(key_of(record))

    def _write(self, record: Mapping[str, Any]) -> None:
        data = (
            json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
        )
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
