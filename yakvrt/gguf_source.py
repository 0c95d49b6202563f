"""Tensors of a GGUF file as weights.py reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gguf_tools.reader import GGUFFile, Tensor
    from gguf_tools.split import SplitFile


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """A tensor of the mapped file; read() is a view of it."""

    _tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self._tensor.shape

    @property
    def format(self) -> str:
        return self._tensor.format.name

    def read(self) -> np.ndarray:
        return self._tensor.data

    def release(self) -> None:
        self._tensor.release()


def gguf_tensors(file: GGUFFile | SplitFile) -> dict[str, MappedTensor]:
    return {name: MappedTensor(tensor) for name, tensor in file.tensors.items()}
