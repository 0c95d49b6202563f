"""Looks for what a reader lets pass and a loader stumbles over: text, counts, names and padding.

Bounds, alignment, overlaps and duplicates are checked by the reader itself, which refuses such files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np

from gguf_tools.listing import data_start
from gguf_tools.meta_value import ValueType, item_type
from gguf_tools.reader import GGUFFile
from gguf_tools.terminal import shown

# llama.cpp keeps tensor names in 64 bytes, the ending zero included.
MAX_LLAMA_NAME: Final = 63
_REPLACEMENT: Final = "\ufffd"
_LAYER: Final = re.compile(r"blk\.(\d{1,6})\.")


def check_structure(file: GGUFFile) -> Iterator[tuple[bool, str]]:
    """Yields (is an error, what) for everything found in one file."""
    if "general.architecture" not in file.metadata and file.metadata.get("split.no", 0) == 0:
        yield True, "general.architecture is missing: no program can tell what model this is"
    for key in file.metadata:
        yield from _value(file, key)
    yield from _vocabulary(file)
    yield from _layers(file)
    for name in file.tensors:
        if len(name.encode()) > MAX_LLAMA_NAME:
            yield (
                False,
                f"{shown(name[:80])}: llama.cpp reads tensor names of up to {MAX_LLAMA_NAME} bytes only",
            )
    yield from _gaps(file)


def _value(file: GGUFFile, key: str) -> Iterator[tuple[bool, str]]:
    value_type = ValueType(file.metadata.place(key)[0])
    stored = file.metadata.stored(key)
    is_array = value_type is ValueType.ARRAY
    if is_array:
        # The item type and the count come first.
        value_type, stored = item_type(file.metadata, key), stored[12:]
    if value_type is ValueType.BOOL and len(stored) and np.frombuffer(stored, np.uint8).max() > 1:
        yield True, f"{shown(key)}: a truth value is stored as neither 0 nor 1"
    if value_type is ValueType.STRING:
        value: Any = file.metadata[key]
        # Bytes that are no UTF-8 decode to replacement characters that the file does not hold.
        n_decoded = sum(item.count(_REPLACEMENT) for item in (value if is_array else [value]))
        if n_decoded > bytes(stored).count(_REPLACEMENT.encode()):
            yield True, f"{shown(key)}: holds text that is not UTF-8"


def _vocabulary(file: GGUFFile) -> Iterator[tuple[bool, str]]:
    metadata = file.metadata
    counts = {}
    for name in ("tokens", "scores", "token_type"):
        key = f"tokenizer.ggml.{name}"
        if key in metadata and metadata.place(key)[0] == ValueType.ARRAY:
            counts[key] = metadata.first(key, 0)[1]
    n_tokens = counts.get("tokenizer.ggml.tokens")
    if n_tokens is None:
        return
    for key, count in counts.items():
        if count != n_tokens:
            yield True, f"{key}: {count} entries for {n_tokens} tokens"
    for key in metadata:
        if re.fullmatch(r"tokenizer\.ggml\.\w+_token_id", key):
            value = metadata[key]
            if not isinstance(value, int) or not 0 <= value < n_tokens:
                yield True, f"{shown(key)}: {str(value)[:20]} is not the id of one of the {n_tokens} tokens"
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and embedding.shape[0] < n_tokens:
        yield True, f"token_embd.weight: {embedding.shape[0]} rows for {n_tokens} tokens"


def _layers(file: GGUFFile) -> Iterator[tuple[bool, str]]:
    architecture = file.metadata.get("general.architecture")
    announced = file.metadata.get(f"{architecture}.block_count")
    found = [int(match[1]) for match in map(_LAYER.match, file.tensors) if match]
    if not isinstance(announced, int) or not found or "split.count" in file.metadata:
        return
    if max(found) + 1 != announced:
        yield (
            False,
            f"{shown(str(architecture))}.block_count is {announced}, but there are tensors of "
            f"layers 0 to {max(found)}",
        )


def _gaps(file: GGUFFile) -> Iterator[tuple[bool, str]]:
    """Bytes that belong to no tensor: more than alignment asks for, or not zero."""
    ordered = sorted(file.tensors.values(), key=lambda tensor: tensor.offset)
    size = file.path.stat().st_size
    start = min(data_start(file), size)
    ends = [start, *(tensor.offset + tensor.data.nbytes for tensor in ordered)]
    begins = [*(tensor.offset for tensor in ordered), size]
    with file.path.open("rb") as raw:
        for end, begin in zip(ends, begins, strict=True):
            if begin - end >= file.alignment:
                yield False, f"{begin - end} bytes from byte {end} belong to no tensor"
            elif begin > end:
                raw.seek(end)
                if raw.read(begin - end).strip(b"\0"):
                    yield False, f"the padding from byte {end} is not zero"
    if any(a.offset > b.offset for a, b in pairwise(file.tensors.values())):
        yield False, "the tensors' data are in another order than their descriptions"
