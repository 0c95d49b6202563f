"""A session in one file: its tokens and the arrays of its KV slot, in the safetensors format.

Source: the safetensors format description (8 bytes of length, a JSON header, the data).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from gguf_tools.output_path import output_path

from .backend import SlotValues
from .kvcache.contract import StateArray

FORMAT_VERSION = "1"  # of names, order and meaning of what is in the file
TOKENS, PREFIX = "tokens", "kv."
_TYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint8": "U8",
    "uint32": "U32",
    "int32": "I32",
    "int64": "I64",
}


def header_entries(ids: Sequence[int], state: Mapping[str, StateArray]) -> tuple[dict[str, Any], int]:
    """What the header says of every array, in the order of the data: wide numbers first, so that all are
    aligned. Returns also the bytes of all.
    """
    arrays = _arrays(ids, state)
    entries, end = {}, 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):
        start, end = end, end + arrays[name].nbytes
        dtype, shape = _TYPES[arrays[name].dtype.name], list(arrays[name].shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return entries, end


def _arrays(ids: Sequence[int], state: Mapping[str, StateArray]) -> dict[str, SlotValues]:
    arrays: dict[str, SlotValues] = {PREFIX + name: part.values for name, part in state.items()}
    return {**arrays, TOKENS: np.array(ids, np.int32)}


def _header(origin: Mapping[str, str], ids: Sequence[int], entries: Mapping[str, Any]) -> bytes:
    metadata = {**origin, "format_version": FORMAT_VERSION, "n_tokens": str(len(ids))}
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def session_bytes(origin: Mapping[str, str], ids: Sequence[int], state: Mapping[str, StateArray]) -> int:
    """Bytes of the file that save_session() would write."""
    entries, n_bytes = header_entries(ids, state)
    return len(_header(origin, ids, entries)) + n_bytes


def save_session(
    path: str | Path,
    origin: Mapping[str, str],
    ids: Sequence[int],
    state: Mapping[str, StateArray],
    read: Callable[[SlotValues], np.ndarray],
) -> None:
    """Writes the file under a temporary name beside it; it gets its own when it is whole and on the disk.
    Only its owner may read it, as it holds a conversation. Arrays are read one by one.

    Raises: ValueError or OSError, naming the file, when it cannot be written.
    """
    arrays = _arrays(ids, state)
    entries, _ = header_entries(ids, state)
    with _temporary(path) as (file, target):
        file.write(_header(origin, ids, entries))
        for name in entries:
            for run in _runs(read(arrays[name])):
                file.write(run.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, target)


def check_writable(path: str | Path) -> None:
    """Raises: ValueError or OSError, naming the file, when nothing can be saved there."""
    with _temporary(path):
        pass


@contextmanager
def _temporary(path: str | Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A file beside the target, gone at the end unless it has been renamed."""
    target = output_path(path)
    if target.exists() and not target.is_file():
        raise ValueError(f"{path} is no regular file, a session cannot be saved there; name another file")
    name = None
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".part", delete=False) as file:
            name = Path(file.name)
            yield file, target
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        if name:
            name.unlink(missing_ok=True)


def _runs(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array in pieces without gaps, so that nothing is copied."""
    if array.flags.c_contiguous:
        yield array
        return
    for part in array:
        yield from _runs(part)
