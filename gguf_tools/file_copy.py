"""Copies tensors between GGUF files, byte for byte and piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.chunks import stored_chunks
from gguf_tools.reader import Tensor
from gguf_tools.terminal import Progress, UsageError
from gguf_tools.writer import GGUFWriter, TensorPlan


def plans(tensors: Iterable[Tensor]) -> list[TensorPlan]:
    """The same tensors as a plan for a writer."""
    return [TensorPlan(tensor.name, tensor.shape, tensor.format) for tensor in tensors]


def copy_tensor(tensor: Tensor, writer: GGUFWriter, progress: Progress) -> None:
    """Writes a tensor's data, counting bytes as they go."""

    def counted() -> Iterator[NDArray[np.uint8]]:
        for chunk in stored_chunks(tensor):
            yield chunk
            progress.add(chunk.nbytes)

    writer.write_tensor(tensor.name, counted())


def check_free(outputs: Iterable[Path], force: bool) -> None:
    """Refuses to replace files unless told so.

    Raises: UsageError naming the first file that is there.
    """
    for path in outputs:
        if path.exists() and not force:
            raise UsageError(f"{path} exists; choose another name or replace it with --force")
