"""Writes safetensors files of bounded size and their index, one tensor at a time.

Source: the safetensors format description; the names of parts are the hub's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats import Format

MAX_SHARD_BYTES: Final = 5_000_000_000


@dataclass(frozen=True, slots=True)
class HubPlan:
    """A tensor that will be written.

    Shapes: shape in numpy order.
    """

    name: str
    shape: tuple[int, ...]
    format: Format

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * self.format.block_bytes


def sharded(plans: Sequence[HubPlan], max_bytes: int = MAX_SHARD_BYTES) -> list[tuple[str, list[HubPlan]]]:
    """The files to write as (name, tensors): one, or several of at most max_bytes each."""
    shards: list[list[HubPlan]] = [[]]
    size = 0
    for plan in plans:
        if shards[-1] and size + plan.n_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(plan)
        size += plan.n_bytes
    if len(shards) == 1:
        return [("model.safetensors", shards[0])]
    count = len(shards)
    return [(f"model-{i:05d}-of-{count:05d}.safetensors", shard) for i, shard in enumerate(shards, 1)]


def write_shard(path: Path, plans: Sequence[HubPlan], data: Iterable[Iterable[NDArray[np.uint8]]]) -> None:
    """Writes one file: the pieces of each tensor, in the order of the plans.

    Raises: ValueError when a tensor's pieces are not of its size.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for plan in plans:
        start, end = end, end + plan.n_bytes
        header[plan.name] = {
            "dtype": plan.format.name,
            "shape": list(plan.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for plan, pieces in zip(plans, data, strict=True):
            written = 0
            for piece in pieces:
                written += piece.nbytes
                file.write(np.ascontiguousarray(piece).reshape(-1).data)
            if written != plan.n_bytes:
                raise ValueError(f"tensor {plan.name[:80]!r} got {written} bytes, not {plan.n_bytes}")


def index_json(shards: Sequence[tuple[str, Sequence[HubPlan]]]) -> dict[str, Any]:
    """The content of model.safetensors.index.json."""
    total = sum(plan.n_bytes for _, plans in shards for plan in plans)
    weight_map = {plan.name: name for name, plans in shards for plan in plans}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}
