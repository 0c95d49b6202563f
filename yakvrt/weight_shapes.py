"""Which tensors a model needs: their names and shapes, and the format each matrix gets on a backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from .config import ModelConfig

DTYPES = {"f32": "F32", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}


class FormatLayout(Protocol):
    """How a backend lays out weights of one format."""

    @property
    def column_multiple(self) -> int: ...


class Stored(Protocol):
    """A tensor as it lies in a file."""

    @property
    def format(self) -> str: ...


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


def target_format(
    name: str, stored: str, n_cols: int, dtype: str, layouts: Mapping[str, FormatLayout]
) -> str:
    """The format a matrix gets on the backend. `dtype` "auto" keeps what is stored.

    The router stays float32: its choice must not change. q4_0 keeps embeddings and output at q8_0, as
    llama.cpp keeps them finer.
    """
    if "ffn_gate_inp" in name:
        return "F32"
    wanted = stored if dtype == "auto" else DTYPES[dtype]
    if wanted == "Q4_0" and dtype != "auto" and name in ("token_embd.weight", "output.weight"):
        wanted = "Q8_0"
    if wanted not in layouts or n_cols % layouts[wanted].column_multiple:
        wanted = "BF16"
    return wanted


def target_matrices(
    config: ModelConfig,
    tensors: Mapping[str, Stored],
    dtype: str,
    layouts: Mapping[str, FormatLayout],
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The format and shape of every matrix on the backend, in the order in which they are loaded."""
    for name, shape in tensor_shapes(config):
        if len(shape) > 1:
            yield target_format(name, tensors[name].format, shape[-1], dtype, layouts), shape


def vector_bytes(config: ModelConfig) -> int:
    """Bytes of what is no matrix, in float32."""
    return sum(4 * shape[0] for _, shape in tensor_shapes(config) if len(shape) == 1)
