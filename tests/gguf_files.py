"""Writes small GGUF files byte by byte, right or wrong on purpose; for tests only."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gguf_tools.formats import FORMATS
from gguf_tools.quantize import quantize


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(v: object) -> tuple[int, bytes]:
    """The GGUF value type and the bytes of a Python value."""
    match v:
        case bool():
            return 7, struct.pack("<?", v)
        case int():
            return (4, struct.pack("<I", v)) if 0 <= v < 1 << 32 else (11, struct.pack("<q", v))
        case float():
            return 6, struct.pack("<f", v)
        case str() | bytes():
            return 8, string(v)
        case list():
            items = [value(item) for item in v]
            item_type = items[0][0] if items else 4
            return 9, struct.pack("<IQ", item_type, len(items)) + b"".join(raw for _, raw in items)
    raise TypeError(type(v))


def pair(key: str | bytes, v: object) -> bytes:
    value_type, raw = value(v)
    return string(key) + struct.pack("<I", value_type) + raw


@dataclass(frozen=True, slots=True)
class Info:
    """One tensor description, with dimensions in file order."""

    name: str | bytes
    dims: tuple[int, ...]
    ggml_id: int
    offset: int

    def encode(self) -> bytes:
        head = string(self.name) + struct.pack("<I", len(self.dims))
        return head + struct.pack(f"<{len(self.dims)}QIQ", *self.dims, self.ggml_id, self.offset)


def assemble(
    pairs: Sequence[bytes],
    infos: Sequence[Info] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file from its parts; counts may be made to lie."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(infos) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    head += b"".join(pairs) + b"".join(info.encode() for info in infos)
    return head + bytes(-len(head) % alignment) + data


def model_bytes(
    metadata: Mapping[str, object],
    tensors: Mapping[str, tuple[str, np.ndarray]],
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A valid file; tensors map a name to a type and an array of floats."""
    infos, data = [], b""
    for name, (kind, x) in tensors.items():
        data += bytes(-len(data) % alignment)
        infos.append(Info(name, x.shape[::-1], FORMATS[kind].ggml_id, len(data)))
        data += quantize(x, kind).tobytes()
    pairs = [pair(k, v) for k, v in metadata.items()]
    return assemble(pairs, infos, data, version=version, alignment=alignment)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
