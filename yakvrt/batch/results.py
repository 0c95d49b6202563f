"""The output: a result a line in the order in which they come, which is also what a run goes on from."""

from __future__ import annotations

import os
import stat
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec

from yakvrt.batch.requests import MAX_ID_CHARS, BatchRequest

MAX_LINE_BYTES = 1 << 30
SYNC_S = 5.0
BEGINNING = b'{"id":"batch_req_'


class Body(msgspec.Struct):
    """What is looked at of an answer."""

    model: str | None = None


class Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: Body


class Result(msgspec.Struct):
    """A line that there is."""

    id: str
    custom_id: str
    response: Response | None
    error: dict[str, Any] | None


class ResultFile:
    """Results, to be added to; `held` are the ids of those there are, by custom_id. What a killed run left
    half written at the end is dropped. What is no regular file is only written (- is stdout).

    Raises: ValueError for a file that holds something else, or that another run writes; OSError.
    """

    def __init__(self, path: str) -> None:
        self.path = "stdout" if path == "-" else path
        self.held: dict[str, str] = {}
        self.torn_bytes = 0
        self._models: set[str] = set()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        self._file = os.dup(sys.stdout.fileno()) if path == "-" else os.open(path, flags, 0o644)
        self._synced = time.monotonic()
        try:
            self.is_regular = path != "-" and stat.S_ISREG(os.fstat(self._file).st_mode)
            if self.is_regular:
                self._lock()
                self._read()
        except BaseException:
            os.close(self._file)
            raise

    def same_file(self, path: str) -> bool:
        """Whether this is the file of that name."""
        if not self.is_regular or path == "-" or not os.path.exists(path):
            return False
        return os.path.samestat(os.stat(path), os.fstat(self._file))

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run writes {self.path}; wait for it or give another output") from None

    def _read(self) -> None:
        whole = 0
        for number, line in self._lines():
            if not line.endswith(b"\n"):
                if not line.startswith(BEGINNING[: len(line)]):  # nothing of ours is cut off
                    raise ValueError(f"{self.path} holds no results (line {number}); give another output")
                self.torn_bytes = len(line)
                break
            self._take(number, line)
            whole += len(line)
        if self.torn_bytes:
            os.ftruncate(self._file, whole)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        with open(self._file, "rb", closefd=False) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                yield number, line

    def _take(self, number: int, line: bytes) -> None:
        try:
            result = msgspec.json.decode(line, type=Result)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            result = None
        if result is None or len(result.custom_id) > MAX_ID_CHARS:
            raise ValueError(f"{self.path} holds no results (line {number}); give another output")
        if result.custom_id in self.held:
            raise ValueError(
                f"{self.path} holds two results for {result.custom_id!r} (line {number}); remove one"
            )
        self.held[result.custom_id] = result.id
        if result.response and result.response.body.model:
            self._models.add(result.response.body.model)

    def check_model(self, name: str) -> None:
        """Raises: ValueError when results there are come from another model."""
        if others := self._models - {name}:
            raise ValueError(
                f"{self.path} holds answers of {min(others)}, not of {name}; give another output, or the "
                "model or --alias of before"
            )

    def add(self, request: BatchRequest, status: int, body: bytes) -> None:
        """The server's answer, whatever its status."""
        response = {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": msgspec.Raw(body)}
        self._write(request, response, None)

    def add_lost(self, request: BatchRequest, code: str, message: str) -> None:
        """There is no answer."""
        self._write(request, None, {"code": code, "message": message})

    def _write(self, request: BatchRequest, response: object, error: object) -> None:
        line = {"id": request.id, "custom_id": request.custom_id, "response": response, "error": error}
        data = memoryview(msgspec.json.encode(line) + b"\n")
        try:
            while data:
                data = data[os.write(self._file, data) :]
            if self.is_regular and time.monotonic() - self._synced > SYNC_S:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except BrokenPipeError:
            raise
        except OSError as failed:
            failed.filename = self.path
            raise

    def close(self) -> None:
        """Returns when all is on the disk."""
        try:
            if self.is_regular:
                os.fsync(self._file)
        finally:
            os.close(self._file)

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
