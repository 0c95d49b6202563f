"""Tensors from files -> weight records on a backend: checked, reordered, converted where asked, repacked.

Formats computed natively (repacked without loss of the stored values): F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0
Q2_K Q3_K Q4_K Q5_K Q6_K. Every other type is decoded to float32 and stored as BF16, by the `gguf` library
where that extra is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gguf_tools.dequantize import dequantize

from .config import ModelConfig
from .ops import Matrix
from .weight_shapes import FormatLayout, target_format, target_matrices, tensor_shapes

MATRIX_MULTIPLE = 16  # columns; kernels work in vectors of 16

Progress = Callable[[int, int], None]


class WeightsError(ValueError):
    """Weights that are missing, misshapen or not numbers; the message names the tensor."""


class SourceTensor(Protocol):
    """A tensor in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def format(self) -> str: ...

    def read(self) -> np.ndarray: ...

    def release(self) -> None: ...


class WeightStore(Protocol):
    """Where a backend keeps a model's weights, and how."""

    @property
    def layouts(self) -> Mapping[str, FormatLayout]:
        """The formats that it multiplies."""

    def prepare(self, formats: Iterable[str]) -> None:
        """Makes ready to take matrices of these formats."""

    def vector(self, values: np.ndarray) -> Any: ...

    def matrix(
        self, kind: str, shape: tuple[int, ...], rows: Callable[[], np.ndarray], order: np.ndarray, bias: Any
    ) -> Matrix:
        """rows() are GGUF rows, uint8 [rows, row bytes] or [experts, rows, row bytes]; row i of the matrix is
        row order[i] of them. Raises: ValueError when a scale or weight is NaN or infinite.
        """


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. With experts, ffn_gate, ffn_up and ffn_down are stacks and ffn_gate_inp is the router."""

    attn_norm: Any
    attn_q: Matrix
    attn_k: Matrix
    attn_v: Matrix
    attn_output: Matrix
    attn_q_norm: Any
    attn_k_norm: Any
    ffn_norm: Any
    ffn_gate_inp: Matrix
    ffn_gate: Matrix
    ffn_up: Matrix
    ffn_down: Matrix


@dataclass(frozen=True, slots=True)
class Weights:
    token_embd: Matrix
    layers: tuple[LayerWeights, ...]
    output_norm: Any
    output: Matrix

    @property
    def n_bytes(self) -> int:
        """Bytes of all matrices, a shared one counted once."""
        held = [self.token_embd, self.output]
        for layer in self.layers:
            held += [getattr(layer, name) for name in layer.__slots__ if not name.endswith("_norm")]
        return sum({id(matrix): matrix.n_bytes for matrix in held if matrix}.values())


def check_tensors(config: ModelConfig, tensors: Mapping[str, SourceTensor]) -> None:
    """Raises: WeightsError for the first tensor that is missing, has another shape, is too narrow for the
    kernels, or has a format that cannot be decoded here.
    """
    decodable: set[str] = set()
    for name, shape in tensor_shapes(config):
        held = tensors.get(name)
        if held is None:
            raise WeightsError(f"the model file has no tensor {name}; it is incomplete, fetch it again")
        if tuple(held.shape) != shape:
            raise WeightsError(
                f"tensor {name} has shape {tuple(held.shape)}, the configuration needs {shape}; "
                "fetch the model again"
            )
        if len(shape) > 1 and shape[-1] % MATRIX_MULTIPLE:
            raise WeightsError(f"tensor {name} has {shape[-1]} columns; yakvrt needs a multiple of 16")
        if held.format not in decodable:
            try:
                dequantize(np.empty((0, 0), np.uint8), held.format)  # no rows: asks for the decoder alone
            except ValueError as error:
                raise WeightsError(f"tensor {name}: {error}") from error
            decodable.add(held.format)


def load_weights(
    config: ModelConfig,
    tensors: Mapping[str, SourceTensor],
    store: WeightStore,
    *,
    dtype: str = "auto",
    interleaved_rope: bool = False,
    progress: Progress | None = None,
) -> Weights:
    """Hands all weights to the store.

    interleaved_rope: Q and K rows come in pairs (2i, 2i+1) and are reordered to halves.

    Raises: WeightsError.
    """
    n_tensors = len(dict(tensor_shapes(config)))
    store.prepare(kind for kind, _ in target_matrices(config, tensors, dtype, store.layouts))
    done = 0

    def finished() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, n_tensors)

    def values_of(name: str) -> np.ndarray:
        tensor = tensors[name]
        values = dequantize(tensor.read(), tensor.format)
        if not np.isfinite(values).all():
            raise WeightsError(f"tensor {name} holds NaN or infinite values; fetch the model again")
        finished()
        return values

    def vector(name: str) -> Any:
        return store.vector(values_of(name))

    def matrix(stem: str) -> Matrix:
        name = stem + ".weight"
        tensor = tensors[name]
        n_rows, n_cols = tensor.shape[-2:]
        order = _row_order(config, stem, n_rows) if interleaved_rope else np.arange(n_rows)
        bias = None
        if config.qkv_bias and stem.rpartition(".")[2] in ("attn_q", "attn_k", "attn_v"):
            bias = store.vector(values_of(stem + ".bias")[order])
        kind = target_format(name, tensor.format, n_cols, dtype, store.layouts)
        try:
            result = store.matrix(kind, tuple(tensor.shape), lambda: _convert(tensor, kind), order, bias)
        except ValueError as error:
            raise WeightsError(f"tensor {name}: {error}") from error
        tensor.release()
        finished()
        return result

    def layer(i: int) -> LayerWeights:
        blk, suffix = f"blk.{i}.", "_exps" if config.n_experts else ""
        return LayerWeights(
            attn_norm=vector(blk + "attn_norm.weight"),
            attn_q=matrix(blk + "attn_q"),
            attn_k=matrix(blk + "attn_k"),
            attn_v=matrix(blk + "attn_v"),
            attn_output=matrix(blk + "attn_output"),
            attn_q_norm=vector(blk + "attn_q_norm.weight") if config.qk_norm else None,
            attn_k_norm=vector(blk + "attn_k_norm.weight") if config.qk_norm else None,
            ffn_norm=vector(blk + "ffn_norm.weight"),
            ffn_gate_inp=matrix(blk + "ffn_gate_inp") if config.n_experts else None,
            ffn_gate=matrix(blk + "ffn_gate" + suffix),
            ffn_up=matrix(blk + "ffn_up" + suffix),
            ffn_down=matrix(blk + "ffn_down" + suffix),
        )

    token_embd = matrix("token_embd")
    layers = tuple(layer(i) for i in range(config.n_layers))
    output_norm = vector("output_norm.weight")
    return Weights(token_embd, layers, output_norm, token_embd if config.tied else matrix("output"))


def _row_order(config: ModelConfig, stem: str, n_rows: int) -> np.ndarray:
    """Where each row lies in a file that pairs RoPE dimensions (2i, 2i+1) instead of (i, i + D/2)."""
    rows = np.arange(n_rows)
    if stem.rpartition(".")[2] not in ("attn_q", "attn_k"):
        return rows
    return rows.reshape(-1, config.head_dim // 2, 2).transpose(0, 2, 1).reshape(-1)


def _convert(tensor: SourceTensor, kind: str) -> np.ndarray:
    data = tensor.read()
    if tensor.format == kind:
        return data
    from gguf_tools.quantize import quantize

    if data.ndim == 3:  # one expert at a time bounds the float32 copy
        return np.stack([quantize(dequantize(part, tensor.format), kind) for part in data])
    return _convert_rows(data, tensor.format, kind)


def _convert_rows(data: np.ndarray, source: str, kind: str) -> np.ndarray:
    """Piece by piece, so that the float32 values of a large matrix are never all there."""
    from gguf_tools.quantize import quantize

    step = max(1, (64 << 20) // max(1, data.shape[1] * 8))
    first = quantize(dequantize(data[:step], source), kind)
    out = np.empty((len(data), first.shape[1]), np.uint8)
    out[: len(first)] = first
    for start in range(step, len(data), step):
        out[start : start + step] = quantize(dequantize(data[start : start + step], source), kind)
    return out
