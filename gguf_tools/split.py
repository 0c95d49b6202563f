"""GGUF models in several files named STEM-00001-of-0000N.gguf, presented as one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from gguf_tools.metadata import GGUFError, Metadata
from gguf_tools.reader import GGUFFile, Tensor

MAX_PARTS: Final = 4096
_PART_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class SplitFile:
    """All parts of one model: the metadata of the first and the tensors of every part.

    Raises: GGUFError when parts are missing, out of order or of different models.
    """

    __slots__ = ("metadata", "parts", "tensors")

    metadata: Metadata
    parts: tuple[GGUFFile, ...]
    tensors: dict[str, Tensor]

    def __init__(self, paths: Sequence[str | Path]) -> None:
        if not 1 <= len(paths) <= MAX_PARTS:
            raise GGUFError(f"a model has 1 to {MAX_PARTS} parts, not {len(paths)}; name its .gguf files")
        self.parts = ()
        self.tensors = {}
        try:
            for path in paths:
                self.parts = (*self.parts, GGUFFile(path))
            self._join()
        except (GGUFError, OSError):
            self.close()
            raise
        self.metadata = self.parts[0].metadata

    def close(self) -> None:
        """Closes every part; tensor data already taken stays valid."""
        self.tensors = {}
        for part in self.parts:
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _join(self) -> None:
        n_parts = len(self.parts)
        for index, part in enumerate(self.parts):
            no, count = part.metadata.get("split.no", 0), part.metadata.get("split.count", 0) or 1
            if count != n_parts:
                raise GGUFError(
                    f"{part.path}: one of {count} parts, but {n_parts} are here; put all parts in one folder"
                )
            if no != index:
                raise GGUFError(f"{part.path}: holds part {no}, expected part {index}; rename the parts")
            for name, tensor in part.tensors.items():
                if name in self.tensors:
                    raise GGUFError(f"{part.path}: the tensor {name[:80]!r} is in an earlier part too")
                self.tensors[name] = tensor
        announced = self.parts[0].metadata.get("split.tensors.count", len(self.tensors))
        if announced != len(self.tensors):
            raise GGUFError(
                f"{self.parts[0].path}: {announced} tensors announced, the parts hold {len(self.tensors)}"
            )


def open_split(paths: Sequence[str | Path]) -> GGUFFile | SplitFile:
    """Opens a model given all its files, in order; a single file is allowed.

    Raises: GGUFError, also when the one file given is only a part.
    """
    split = SplitFile(paths)
    return split.parts[0] if len(split.parts) == 1 else split


def part_name(stem: str, index: int, count: int) -> str:
    """The file name of part `index` (from 0) of `count`."""
    return f"{stem}-{index + 1:05d}-of-{count:05d}.gguf"


def part_paths(path: str | Path) -> tuple[Path, ...]:
    """Every part of the model that `path` belongs to, in order; (path,) when its name is not a part's.

    Raises: GGUFError when a part is not on disk.
    """
    path = Path(path)
    match = _PART_NAME.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    if not 1 <= int(match["part"]) <= count <= MAX_PARTS:
        raise GGUFError(f"{path}: the name says part {int(match['part'])} of {count}; rename the file")
    paths = tuple(path.with_name(part_name(match["stem"], i, count)) for i in range(count))
    for part in paths:
        if not part.exists():
            raise GGUFError(f"{part}: this part of the model is missing; put all {count} parts in one folder")
    return paths
