"""Writes a model in several files: which tensors go into which, their names and their split.* keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gguf_tools.meta_value import MetaValue, ValueType, scalar
from gguf_tools.split import MAX_PARTS, part_name
from gguf_tools.writer import GGUFWriter, TensorPlan, padded

SPLIT_NO: Final = "split.no"
SPLIT_COUNT: Final = "split.count"
SPLIT_TENSORS: Final = "split.tensors.count"


@dataclass(frozen=True, slots=True)
class PartLimits:
    """The most tensors and bytes of a part, 0 for no limit; the first part may be metadata alone."""

    max_tensors: int = 0
    max_bytes: int = 0
    no_tensor_first: bool = False


def divide(plans: Sequence[TensorPlan], alignment: int, limits: PartLimits) -> list[list[TensorPlan]]:
    """Tensors in their order, a new part when the next one would pass a limit.

    A tensor above max_bytes gets a part of its own.
    Raises: ValueError when there would be too many parts.
    """
    parts: list[list[TensorPlan]] = [[], []] if limits.no_tensor_first else [[]]
    n_bytes = 0
    for plan in plans:
        next_bytes = padded(plan.n_bytes, alignment)
        full = limits.max_tensors and len(parts[-1]) >= limits.max_tensors
        if full or (limits.max_bytes and parts[-1] and n_bytes + next_bytes > limits.max_bytes):
            parts.append([])
            n_bytes = 0
        parts[-1].append(plan)
        n_bytes += next_bytes
    if len(parts) > MAX_PARTS:
        raise ValueError(f"{len(parts)} parts are over the limit of {MAX_PARTS}; allow larger parts")
    return parts


def part_files(prefix: Path, count: int) -> list[Path]:
    """PREFIX-00001-of-0000N.gguf and so on; an ending .gguf of the prefix is dropped."""
    stem = prefix.name.removesuffix(".gguf")
    return [prefix.with_name(part_name(stem, i, count)) for i in range(count)]


def write_parts(
    paths: Sequence[Path],
    parts: Sequence[Sequence[TensorPlan]],
    metadata: Mapping[str, MetaValue],
    alignment: int | None,
    write: Callable[[GGUFWriter, TensorPlan], None],
) -> None:
    """Writes every part; `write` gives a writer the data of a tensor. No part stays when one fails."""
    done: list[Path] = []
    n_tensors = sum(map(len, parts))
    try:
        for i, (path, plans) in enumerate(zip(paths, parts, strict=True)):
            # The first part alone describes the model.
            values = dict(metadata) if i == 0 else {}
            values |= {
                SPLIT_NO: scalar(ValueType.UINT16, i),
                SPLIT_COUNT: scalar(ValueType.UINT16, len(parts)),
                SPLIT_TENSORS: scalar(ValueType.INT32, n_tensors),
            }
            with GGUFWriter(path, values, plans, alignment) as writer:
                for plan in plans:
                    write(writer, plan)
            done.append(writer.path)
    except BaseException:
        # Some parts without the others are of no use.
        for path in done:
            path.unlink(missing_ok=True)
        raise
