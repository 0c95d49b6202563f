"""The weights of a Hugging Face model under GGUF names and in GGUF's row order, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_tools.convert_config import HubConfig, read_config
from gguf_tools.formats import Format
from gguf_tools.name_map import IGNORED, INTERLEAVED, gguf_name, is_query_or_key
from gguf_tools.rope_rows import interleave
from gguf_tools.safetensors_file import SafetensorsError, StoredTensor, read_safetensors

INDEX: Final = "model.safetensors.index.json"
MAX_INDEX_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class HubTensor:
    """One tensor as GGUF would hold it; reading stacks experts and reorders Q and K.

    Shapes: shape in numpy order, (rows, cols), experts (n_experts, rows, cols).
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    parts: tuple[StoredTensor, ...]
    interleaved_heads: int = 0

    def read(self) -> NDArray[np.uint8]:
        """The rows: a view of the file where nothing has to move.

        Shapes: uint8, shape[:-1] + (row_bytes,).
        """
        if len(self.parts) > 1:
            return np.stack([part.data for part in self.parts])
        data = self.parts[0].data
        if not self.interleaved_heads:
            return data.reshape(*self.shape[:-1], -1)
        if len(self.shape) > 1:
            return interleave(data, self.interleaved_heads)
        values = data.reshape(self.shape[0], -1)
        return interleave(values, self.interleaved_heads).reshape(-1)

    @property
    def source_bytes(self) -> int:
        """Bytes of the tensor in its files."""
        return sum(part.data.nbytes for part in self.parts)

    @property
    def data(self) -> NDArray[np.uint8]:
        """What read() gives."""
        return self.read()

    def release(self) -> None:
        """Lets the kernel drop this tensor's pages from memory."""
        for part in self.parts:
            part.release()


def open_safetensors(path: str | Path) -> Mapping[str, HubTensor]:
    """The tensors of a model: its directory, its index or one of its files, with config.json beside it.

    Raises: ValueError for damaged or missing files and for tensors of an unknown architecture.
    """
    path = Path(path)
    directory = path if path.is_dir() else path.parent
    return hub_tensors(weight_files(path), read_config(directory))


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model, by its index where there is one.

    Raises: ValueError when there is none or one of them is missing.
    """
    if path.suffix == ".safetensors":
        return [path]
    index = path if path.name.endswith(".index.json") else path / INDEX
    if not index.exists():
        single = path / "model.safetensors"
        files = [single] if single.exists() else sorted(path.glob("*.safetensors"))
        if not files:
            raise SafetensorsError(f"{path}: no .safetensors file in this directory; name the model's own")
        return files
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise SafetensorsError(f"{index}: over {MAX_INDEX_BYTES} bytes; fetch it again")
    try:
        weight_map: Any = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SafetensorsError(f"{index}: not a safetensors index; fetch it again") from None
    for name in names:
        # A name with a directory in it could reach outside the model.
        if not isinstance(name, str) or name != Path(name).name or not name.endswith(".safetensors"):
            raise SafetensorsError(f"{index}: names the file {str(name)[:80]!r}, which cannot be")
        if not (index.parent / name).exists():
            raise SafetensorsError(f"{index.parent / name}: missing, but the index names it; fetch it")
    return [index.parent / name for name in names]


def hub_tensors(files: list[Path], config: HubConfig) -> dict[str, HubTensor]:
    """All tensors of the files in their order.

    Raises: ValueError for duplicates, missing experts and unknown tensors.
    """
    found: dict[str, dict[int, StoredTensor]] = {}
    expert_stacks: set[str] = set()
    for file in files:
        for hub_name, stored in read_safetensors(file).items():
            named = gguf_name(hub_name)
            if named is None:
                if IGNORED.fullmatch(hub_name):
                    continue
                raise SafetensorsError(
                    f"{file}: tensor {hub_name[:80]!r} belongs to no architecture that is converted here"
                )
            name, expert = named
            if name == "output.weight" and config.tied:
                continue
            if expert is not None:
                expert_stacks.add(name)
            parts = found.setdefault(name, {})
            if (expert or 0) in parts:
                raise SafetensorsError(f"{file}: tensor {hub_name[:80]!r} occurs twice")
            parts[expert or 0] = stored
    return {
        name: _stacked(name, parts, config) if name in expert_stacks else _single(name, parts[0], config)
        for name, parts in found.items()
    }


def _single(name: str, stored: StoredTensor, config: HubConfig) -> HubTensor:
    kind = is_query_or_key(name) if config.arch in INTERLEAVED else None
    heads = 0 if kind is None else config.n_heads if kind == "q" else config.n_kv_heads
    return HubTensor(name, stored.shape, stored.format, (stored,), heads)


def _stacked(name: str, parts: dict[int, StoredTensor], config: HubConfig) -> HubTensor:
    if sorted(parts) != list(range(config.n_experts)):
        raise SafetensorsError(
            f"{name}: {len(parts)} experts found, config.json says {config.n_experts}; fetch the model again"
        )
    ordered = tuple(parts[index] for index in range(len(parts)))
    first = ordered[0]
    if any(part.shape != first.shape or part.format is not first.format for part in ordered):
        raise SafetensorsError(f"the experts of {name} differ in shape or type; fetch the model again")
    return HubTensor(name, (len(ordered), *first.shape), first.format, ordered)
