"""Copies of the tiny models of tests/data that a test may damage, and their safetensors header apart."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

from golden_values import tiny_dir

Header = dict[str, Any]


def tiny_copy(family: str, directory: Path) -> Path:
    """The model's own files, without its golden values."""
    directory.mkdir()
    for path in tiny_dir(family).iterdir():
        if not path.name.startswith("golden"):
            shutil.copyfile(path, directory / path.name)
    return directory


def byte_copy(family: str, directory: Path) -> Path:
    """A tiny model whose tokens are bytes."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    tiny_copy(family, directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def split_header(content: bytes) -> tuple[Header, bytes]:
    """(header, data) of a safetensors file's bytes."""
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: Header | bytes, data: bytes) -> bytes:
    """A safetensors file of a header, given as an object or as its text, and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
