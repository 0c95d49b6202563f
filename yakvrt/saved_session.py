"""Restores sessions from files, which come from outside and are hostile until checked.

For a number of tokens there is only one header under which a slot of here would be saved, so a file's header
must be that one, entry by entry. Whole numbers must lie within their limits. All this is checked before
anything is taken over. Codes and floating-point numbers may have any value.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from .backend import SlotValues
from .kvcache.contract import StateArray
from .session_file import FORMAT_VERSION, PREFIX, TOKENS, header_entries

MAX_HEADER_BYTES = 1 << 20  # 1024 layers take a fifth of that
MAX_SHOWN = 200  # characters of a value
ANEW = "delete it to make it anew"
# What the metadata must say as it would be said here: what that is in a sentence, and the remedy.
_FACTS = {
    "yakvrt_version": ("another version of yakvrt", ANEW),
    "model": ("another model", "load that model or name another file"),
    "rope": ("another RoPE setting", ANEW),
    "kv": ("another KV method", "give it with --kv or name another file"),
    "kv_args": ("other KV parameters", "give them with --kv-args or name another file"),
    "cache_type": ("another KV cache type", "give it with -ctk or name another file"),
}


class SessionFileError(ValueError):
    """A file that cannot be restored; the message names it."""


@dataclass(frozen=True, slots=True)
class SavedSession:
    """An opened file whose tokens are checked. check() must have passed before copy_to()."""

    path: Path
    ids: list[int]
    _entries: Mapping[str, Any]
    _mapping: mmap.mmap
    _start: int  # of the data

    def check(self, state: Mapping[str, StateArray]) -> None:
        """Raises: SessionFileError unless the file holds these arrays, numbers within their limits."""
        entries, n_bytes = header_entries(self.ids, state)
        if json.dumps(entries, sort_keys=True) != json.dumps(self._entries, sort_keys=True):
            raise SessionFileError(f"{self.path} does not hold the arrays of {len(self.ids)} tokens; {ANEW}")
        held = len(self._mapping) - self._start
        if held != n_bytes:
            raise SessionFileError(
                f"{self.path} has {held} bytes of data and its header tells of {n_bytes}; {ANEW}"
            )
        for name, part in state.items():
            values = self._read(name, part.values)
            if part.limits and values.size:
                least, most = part.limits
                if values.min() < least or values.max() > most:
                    raise SessionFileError(
                        f"{self.path} has numbers in {name} that are not from {least} to {most}; {ANEW}"
                    )

    def copy_to(
        self, state: Mapping[str, StateArray], write: Callable[[SlotValues, np.ndarray], None]
    ) -> None:
        """Has the arrays written one by one, each from memory, so that nobody waits for a disk; the pages
        of the file that were read for one are let go.
        """
        for name, part in state.items():
            write(part.values, np.array(self._read(name, part.values)))
            if hasattr(mmap, "MADV_DONTNEED"):
                first, last = self._place(name)
                first = first // mmap.PAGESIZE * mmap.PAGESIZE
                self._mapping.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _read(self, name: str, like: SlotValues) -> np.ndarray:
        """A view of the file."""
        first, last = self._place(name)
        data: np.ndarray = np.frombuffer(self._mapping, np.uint8)[first:last]
        return data.view(like.dtype).reshape(like.shape)

    def _place(self, name: str) -> tuple[int, int]:
        first, last = self._entries[PREFIX + name]["data_offsets"]
        return self._start + first, self._start + last


@contextmanager
def open_session(
    path: str | Path, origin: Mapping[str, str], *, ctx_size: int, vocab_size: int
) -> Iterator[SavedSession]:
    """Opens a file in which a session of this origin was saved, of at most ctx_size tokens.

    Raises: SessionFileError for any other, OSError when it cannot be read.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise SessionFileError(f"{path} is no regular file; name one in which a session was saved")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = _header(path, file, size)
        start = file.tell()
        _check_origin(path, header["__metadata__"], origin)
        n_tokens = _token_count(path, header.pop("__metadata__"))
        if n_tokens > ctx_size:
            raise SessionFileError(
                f"{path} holds {n_tokens} tokens, the slot has room for {ctx_size}; raise --ctx-size"
            )
        mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    first, last = _tokens_place(path, header.get(TOKENS), n_tokens, size - start)
    ids = np.frombuffer(mapping, np.uint8)[start + first : start + last].view(np.int32)
    if n_tokens and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise SessionFileError(
            f"{path} holds token ids outside the vocabulary, which has ids 0 to {vocab_size - 1}; {ANEW}"
        )
    yield SavedSession(path, ids.tolist(), header, mapping, start)


def _header(path: Path, file: IO[bytes], size: int) -> dict[str, Any]:
    n_bytes = int.from_bytes(file.read(8), "little")
    remedy = "delete it or name another file"
    if not 2 <= n_bytes <= min(size - 8, MAX_HEADER_BYTES):
        raise SessionFileError(f"{path} is no saved session, or only its beginning; {remedy}")
    try:
        header = json.loads(file.read(n_bytes))
    except (ValueError, RecursionError):
        raise SessionFileError(f"{path} is no saved session, its header is not JSON; {remedy}") from None
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or "format_version" not in metadata:
        raise SessionFileError(f"{path} is no saved session, its header does not name it one; {remedy}")
    if metadata["format_version"] != FORMAT_VERSION:
        version = _shown(metadata["format_version"])
        raise SessionFileError(f"{path} has format version {version}, {FORMAT_VERSION} is read here; {ANEW}")
    return dict(header)


def _check_origin(path: Path, metadata: Mapping[str, Any], origin: Mapping[str, str]) -> None:
    for name, (what, remedy) in _FACTS.items():
        if metadata.get(name) != origin[name]:
            shown = "model_name" if name == "model" else name
            told, own = metadata.get(shown), origin[shown]
            if name == "kv_args" and isinstance(told, str):
                told, own = _only_here(told, own), _only_here(own, told)
            there, here = _shown(told), _shown(own)
            if name == "model" and there == here:
                raise SessionFileError(
                    f"{path} was saved with other weights of {here}, or another --dtype; load those or name "
                    "another file"
                )
            raise SessionFileError(f"{path} was saved with {what}, {there} there and {here} here; {remedy}")


def _only_here(parameters: str, others: str) -> str:
    """The parameters that the others do not have in this way."""
    known = set(others.split(","))
    return ",".join(one for one in parameters.split(",") if one not in known)


def _token_count(path: Path, metadata: Mapping[str, Any]) -> int:
    text = metadata.get("n_tokens")
    if not isinstance(text, str) or not text.isascii() or not text.isdecimal() or len(text) > 10:
        raise SessionFileError(f"{path} does not say how many tokens it holds but {_shown(text)}; {ANEW}")
    return int(text)


def _tokens_place(path: Path, entry: Any, n_tokens: int, n_bytes: int) -> tuple[int, int]:
    place = entry.get("data_offsets") if isinstance(entry, dict) else None
    if isinstance(place, list) and len(place) == 2 and all(type(at) is int for at in place):
        first, last = place
        if 0 <= first <= last <= n_bytes and last - first == 4 * n_tokens:
            return first, last
    raise SessionFileError(f"{path} does not hold the {n_tokens} tokens that it names; {ANEW}")


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else "nothing" if value is None else "no text"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
