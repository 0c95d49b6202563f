"""Tensors from files -> weight records on a backend: checked, reordered, converted where asked, repacked.

Formats computed natively (repacked without loss of the stored values): F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0
Q2_K Q3_K Q4_K Q5_K Q6_K. Every other type is decoded to float32 and stored as BF16, by the `gguf` library
where that extra is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gguf_tools.dequantize import dequantize

from .config import ModelConfig
from .cpu.backend import CpuBackend
from .cpu.memory import ALIGNMENT, padded
from .cpu.tile_memory import TileMemory
from .cpu.tiled_matrix import TiledMatrix, tiled_bytes
from .kernels.tile_layout import LAYOUTS

DTYPES = {"f32": "F32", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
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


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. With experts, ffn_gate, ffn_up and ffn_down are stacks and ffn_gate_inp is the router."""

    attn_norm: np.ndarray
    attn_q: TiledMatrix
    attn_k: TiledMatrix
    attn_v: TiledMatrix
    attn_output: TiledMatrix
    attn_q_norm: np.ndarray | None
    attn_k_norm: np.ndarray | None
    ffn_norm: np.ndarray
    ffn_gate_inp: TiledMatrix | None
    ffn_gate: TiledMatrix
    ffn_up: TiledMatrix
    ffn_down: TiledMatrix


@dataclass(frozen=True, slots=True)
class Weights:
    token_embd: TiledMatrix
    layers: tuple[LayerWeights, ...]
    output_norm: np.ndarray
    output: TiledMatrix

    @property
    def n_bytes(self) -> int:
        """Bytes of all matrices, a shared one counted once."""
        matrices = {id(m): m.n_bytes for m in (self.token_embd, self.output)}
        for layer in self.layers:
            for name in layer.__slots__:
                value = getattr(layer, name)
                if isinstance(value, TiledMatrix):
                    matrices[id(value)] = value.n_bytes
        return sum(matrices.values())


def tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor a model of this configuration needs, with its shape."""
    hidden, q, kv = config.hidden_dim, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    yield "token_embd.weight", (config.vocab_size, hidden)
    for i in range(config.n_layers):
        blk = f"blk.{i}."
        yield blk + "attn_norm.weight", (hidden,)
        for name, rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
            yield blk + name + ".weight", (rows, hidden)
            if config.qkv_bias:
                yield blk + name + ".bias", (rows,)
        yield blk + "attn_output.weight", (hidden, q)
        if config.qk_norm:
            yield blk + "attn_q_norm.weight", (config.head_dim,)
            yield blk + "attn_k_norm.weight", (config.head_dim,)
        yield blk + "ffn_norm.weight", (hidden,)
        if config.n_experts:
            n, ffn = config.n_experts, config.expert_ffn_dim
            yield blk + "ffn_gate_inp.weight", (n, hidden)
            yield blk + "ffn_gate_exps.weight", (n, ffn, hidden)
            yield blk + "ffn_up_exps.weight", (n, ffn, hidden)
            yield blk + "ffn_down_exps.weight", (n, hidden, ffn)
        else:
            yield blk + "ffn_gate.weight", (config.ffn_dim, hidden)
            yield blk + "ffn_up.weight", (config.ffn_dim, hidden)
            yield blk + "ffn_down.weight", (hidden, config.ffn_dim)
    yield "output_norm.weight", (hidden,)
    if not config.tied:
        yield "output.weight", (config.vocab_size, hidden)


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


def target_format(name: str, stored: str, n_cols: int, dtype: str) -> str:
    """The format a matrix gets on the backend. `dtype` "auto" keeps what is stored.

    The router stays float32: its choice must not change. q4_0 keeps embeddings and output at q8_0, as
    llama.cpp keeps them finer.
    """
    if "ffn_gate_inp" in name:
        return "F32"
    wanted = stored if dtype == "auto" else DTYPES[dtype]
    if wanted == "Q4_0" and dtype != "auto" and name in ("token_embd.weight", "output.weight"):
        wanted = "Q8_0"
    if wanted not in LAYOUTS or n_cols % LAYOUTS[wanted].column_multiple:
        wanted = "BF16"
    return wanted


def tile_bytes(config: ModelConfig, tensors: Mapping[str, SourceTensor], dtype: str) -> int:
    """Bytes all matrices take in a TileMemory."""
    return sum(
        padded(
            tiled_bytes(
                target_format(name, tensors[name].format, shape[-1], dtype),
                shape[-2],
                shape[-1],
                shape[0] if len(shape) == 3 else 1,
            ),
            ALIGNMENT,
        )
        for name, shape in tensor_shapes(config)
        if len(shape) > 1
    )


def weight_bytes(config: ModelConfig, tensors: Mapping[str, SourceTensor], dtype: str) -> int:
    """Bytes the weights take on the backend."""
    vectors = sum(4 * shape[0] for _, shape in tensor_shapes(config) if len(shape) == 1)
    return tile_bytes(config, tensors, dtype) + vectors


def load_weights(
    backend: CpuBackend,
    config: ModelConfig,
    tensors: Mapping[str, SourceTensor],
    memory: TileMemory,
    *,
    dtype: str = "auto",
    interleaved_rope: bool = False,
    progress: Progress | None = None,
) -> Weights:
    """Repacks all matrices into `memory`, of tile_bytes(), unless it holds them already.

    interleaved_rope: Q and K rows come in pairs (2i, 2i+1) and are reordered to halves.

    Raises: WeightsError.
    """
    shapes = dict(tensor_shapes(config))
    if not memory.filled:
        backend.prepare_formats(
            target_format(name, tensors[name].format, shape[-1], dtype)
            for name, shape in shapes.items()
            if len(shape) > 1
        )
    done = 0

    def finished() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, len(shapes))

    def vector(name: str) -> np.ndarray:
        tensor = tensors[name]
        values = dequantize(tensor.read(), tensor.format)
        if not np.isfinite(values).all():
            raise WeightsError(f"tensor {name} holds NaN or infinite values; fetch the model again")
        finished()
        return values

    def matrix(stem: str) -> TiledMatrix:
        name = stem + ".weight"
        tensor = tensors[name]
        n_rows, n_cols = tensor.shape[-2:]
        n_experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
        order = _row_order(config, stem, n_rows) if interleaved_rope else np.arange(n_rows)
        bias = None
        if config.qkv_bias and stem.rpartition(".")[2] in ("attn_q", "attn_k", "attn_v"):
            bias = backend.vector(vector(stem + ".bias")[order])
        kind = target_format(name, tensor.format, n_cols, dtype)
        tiles = memory.take(tiled_bytes(kind, n_rows, n_cols, n_experts))
        result = TiledMatrix(kind, n_rows, n_cols, n_experts, tiles, bias)
        if not memory.filled:
            try:
                backend.repack(result, _convert(tensor, kind), order)
            except ValueError as error:
                raise WeightsError(f"tensor {name}: {error}") from error
            tensor.release()
        finished()
        return result

    def layer(i: int) -> LayerWeights:
        blk, suffix = f"blk.{i}.", "_exps" if config.n_experts else ""
        return LayerWeights(
            attn_norm=backend.vector(vector(blk + "attn_norm.weight")),
            attn_q=matrix(blk + "attn_q"),
            attn_k=matrix(blk + "attn_k"),
            attn_v=matrix(blk + "attn_v"),
            attn_output=matrix(blk + "attn_output"),
            attn_q_norm=backend.vector(vector(blk + "attn_q_norm.weight")) if config.qk_norm else None,
            attn_k_norm=backend.vector(vector(blk + "attn_k_norm.weight")) if config.qk_norm else None,
            ffn_norm=backend.vector(vector(blk + "ffn_norm.weight")),
            ffn_gate_inp=matrix(blk + "ffn_gate_inp") if config.n_experts else None,
            ffn_gate=matrix(blk + "ffn_gate" + suffix),
            ffn_up=matrix(blk + "ffn_up" + suffix),
            ffn_down=matrix(blk + "ffn_down" + suffix),
        )

    token_embd = matrix("token_embd")
    layers = tuple(layer(i) for i in range(config.n_layers))
    output_norm = backend.vector(vector("output_norm.weight"))
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
