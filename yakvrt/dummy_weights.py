"""Random weights of a model's shapes, for measuring speed and memory without a download."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from gguf_tools.quantize import quantize

from .config import ModelConfig
from .weight_shapes import tensor_shapes


@dataclass(frozen=True, slots=True)
class DummyTensor:
    """Seeded by its name: norms of 1, matrices of variance 1 / columns."""

    name: str
    shape: tuple[int, ...]

    @property
    def format(self) -> str:
        return "F32" if len(self.shape) == 1 else "BF16"

    def read(self) -> np.ndarray:
        if len(self.shape) == 1:
            value = 0.0 if self.name.endswith("bias") else 1.0
            return np.full(self.shape, value, np.float32).view(np.uint8)
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        rows = int(np.prod(self.shape[:-1]))
        # one random block of rows, repeated: drawing billions of numbers would take longer than any
        # measurement
        block = rng.standard_normal((min(rows, 512), self.shape[-1]), np.float32) / np.sqrt(self.shape[-1])
        stored = quantize(block, "BF16")
        return np.resize(stored, (rows, stored.shape[1])).reshape(*self.shape[:-1], -1)

    def release(self) -> None:
        """Nothing is held."""


def dummy_tensors(config: ModelConfig) -> dict[str, DummyTensor]:
    return {name: DummyTensor(name, shape) for name, shape in tensor_shapes(config)}
