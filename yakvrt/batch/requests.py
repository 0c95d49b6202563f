"""The input: a file with a request a line, checked as a whole before anything runs, then read lazily."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

import msgspec

URLS = ("/v1/chat/completions", "/v1/completions")
MAX_LINE_BYTES = 16 << 20
MAX_ID_CHARS = 512
MAX_NAMED = 5  # bad lines in one error
MAX_SHOWN = 200


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """A line as OpenAI defines it."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class BatchRequest(NamedTuple):
    """A request to `url`. `body` is its JSON as it stands in the file."""

    custom_id: str
    url: str
    body: bytes

    @property
    def id(self) -> str:
        """Of its result: the same for the same url and body, so that a result shows what it belongs to."""
        told = hashlib.blake2b(f"{self.url}\n".encode() + self.body, digest_size=16)
        return f"batch_req_{told.hexdigest()}"


def read_line(line: bytes) -> BatchRequest:
    """Raises: ValueError that says what is wrong with it."""
    try:
        found = msgspec.json.decode(line, type=Line)
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)[:MAX_SHOWN]) from None
    if not 0 < len(found.custom_id) <= MAX_ID_CHARS:
        raise ValueError(f"custom_id must have 1 to {MAX_ID_CHARS} characters")
    if found.method != "POST":
        raise ValueError(f"method is {found.method[:MAX_SHOWN]!r}, only POST is known")
    if found.url not in URLS:
        raise ValueError(f"url is {found.url[:MAX_SHOWN]!r}, known are {' and '.join(URLS)}")
    body = bytes(found.body)
    if not body.startswith(b"{"):
        raise ValueError("body is no JSON object")
    return BatchRequest(found.custom_id, found.url, body)


class RequestFile:
    """The requests of a file; of one that can be read only once (- is stdin) a copy is made in the temporary
    directory.

    Raises: OSError.
    """

    def __init__(self, path: str) -> None:
        self.path = "stdin" if path == "-" else path
        self._file = _open(path)
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        """Requests that check() has found."""
        return len(self._numbers)

    def check(self, held: Mapping[str, str], held_path: str) -> None:
        """Reads the whole file. `held` are the ids of the results there are in held_path, by custom_id.

        Raises: ValueError for lines that are no requests, a custom_id that comes twice, and results that are
            not of these requests.
        """
        bad: list[str] = []
        n_bad = 0
        for number, line in self._lines():
            try:
                self._check_line(number, line, held, held_path)
            except ValueError as error:
                n_bad += 1
                if n_bad <= MAX_NAMED:
                    bad.append(f"line {number}: {error}")
        if n_bad:
            more = f"; and {n_bad - MAX_NAMED} more" if n_bad > MAX_NAMED else ""
            raise ValueError(f"{self.path}: {'; '.join(bad)}{more}. Nothing was run")
        unknown = [name for name in held if name not in self._numbers]
        if unknown:
            raise ValueError(
                f"{held_path} holds a result for {unknown[0]!r}, which {self.path} does not ask for; give "
                "another output"
            )

    def _check_line(self, number: int, line: bytes, held: Mapping[str, str], held_path: str) -> None:
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
        request = read_line(line)
        first = self._numbers.setdefault(request.custom_id, number)
        if first != number:
            raise ValueError(f"custom_id {request.custom_id!r} is that of line {first} too")
        if held.get(request.custom_id, request.id) != request.id:
            raise ValueError(
                f"{held_path} holds a result for {request.custom_id!r} with another url or body; give "
                "another output"
            )

    def unanswered(self, held: Mapping[str, str]) -> Iterator[BatchRequest]:
        """Those without a result, read as they are asked for.

        Raises: ValueError when the file has changed since check().
        """
        n_read = 0
        for number, line in self._lines():
            request = read_line(line)
            if self._numbers.get(request.custom_id) != number:
                break
            n_read += 1
            if request.custom_id not in held:
                yield request
            if n_read == len(self):
                return
        if n_read < len(self):
            raise ValueError(f"{self.path} has changed since it was checked; run again")

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Numbers and lines, without empty ones. Of lines that are too long, the beginning."""
        self._file.seek(0)
        number = 0
        while line := self._file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = self._file.readline(MAX_LINE_BYTES)
            if line.strip():
                yield number, line

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RequestFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: str) -> BinaryIO:
    file = open(sys.stdin.fileno(), "rb", closefd=False) if path == "-" else open(path, "rb")  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode) and path != "-":
        return file
    with file:
        copy = tempfile.TemporaryFile()  # noqa: SIM115 (stays open)
        try:
            shutil.copyfileobj(file, copy)
        except BaseException:
            copy.close()
            raise
    return copy
