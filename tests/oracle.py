"""The transformer in plain numpy, one whole sequence at a time: what yakvrt's model is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from yakvrt.config import ModelConfig, rope_frequencies

Array = npt.NDArray[np.floating[Any]]


def forward(
    config: ModelConfig,
    weights: Mapping[str, npt.NDArray[np.float32]],
    ids: Sequence[int],
    dtype: type[np.floating[Any]] = np.float64,
) -> Array:
    """Logits of every position of ids, attention over the whole triangle, computed in dtype.

    Shapes: weights under GGUF names with rows in the hub's order; result [T, V].
    """
    w = {name: array.astype(dtype) for name, array in weights.items()}
    cos, sin = rope_tables(config, w.get("rope_freqs.weight"), len(ids), dtype)
    x = w["token_embd.weight"][np.asarray(ids)]
    for layer in range(config.n_layers):
        blk = f"blk.{layer}"
        x = x + attention(
            config, w, blk, rms_norm(x, w[f"{blk}.attn_norm.weight"], config.norm_eps), cos, sin
        )
        h = rms_norm(x, w[f"{blk}.ffn_norm.weight"], config.norm_eps)
        x = x + (experts(config, w, blk, h) if config.n_experts else swiglu(h, *ffn_weights(w, blk)))
    x = rms_norm(x, w["output_norm.weight"], config.norm_eps)
    output = w["token_embd.weight"] if config.tied else w["output.weight"]
    logits: Array = x @ output.T
    return logits


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x over its root mean square along the last axis, times weight."""
    normed: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight
    return normed


def rope_tables(
    config: ModelConfig, factors: Array | None, n_tokens: int, dtype: type[np.floating[Any]]
) -> tuple[Array, Array]:
    """Cosine and sine of every position and rope pair, times yarn's attention factor.

    Shapes: both [T, D/2].
    """
    frequencies, attention_factor = rope_frequencies(config, factors)
    angles = np.arange(n_tokens)[:, None] * frequencies
    return (attention_factor * np.cos(angles)).astype(dtype), (attention_factor * np.sin(angles)).astype(
        dtype
    )


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rope with the pairs (i, i + D/2), as the hub's row order has it.

    Shapes: x [T, H, D].
    """
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(
    config: ModelConfig, w: Mapping[str, Array], blk: str, h: Array, cos: Array, sin: Array
) -> Array:
    """Causal grouped-query attention of one layer.

    Shapes: h and the result [T, E].
    """
    n_tokens, head_dim = len(h), config.head_dim
    q = project(w, f"{blk}.attn_q", h).reshape(n_tokens, config.n_heads, head_dim)
    k = project(w, f"{blk}.attn_k", h).reshape(n_tokens, config.n_kv_heads, head_dim)
    v = project(w, f"{blk}.attn_v", h).reshape(n_tokens, config.n_kv_heads, head_dim)
    if config.qk_norm:
        q = rms_norm(q, w[f"{blk}.attn_q_norm.weight"], config.norm_eps)
        k = rms_norm(k, w[f"{blk}.attn_k_norm.weight"], config.norm_eps)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    group = config.n_heads // config.n_kv_heads
    future = np.triu(np.ones((n_tokens, n_tokens), bool), 1)
    heads = np.empty_like(q)
    for head in range(config.n_heads):
        scores = q[:, head] @ k[:, head // group].T / np.sqrt(head_dim)
        heads[:, head] = softmax(np.where(future, -np.inf, scores)) @ v[:, head // group]
    return project(w, f"{blk}.attn_output", heads.reshape(n_tokens, -1))


def project(w: Mapping[str, Array], name: str, x: Array) -> Array:
    """A linear layer, with its bias where the model has one."""
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def softmax(x: Array) -> Array:
    """Softmax along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    share: Array = e / e.sum(axis=-1, keepdims=True)
    return share


def ffn_weights(w: Mapping[str, Array], blk: str) -> tuple[Array, Array, Array]:
    """Gate, up and down of a dense layer."""
    return w[f"{blk}.ffn_gate.weight"], w[f"{blk}.ffn_up.weight"], w[f"{blk}.ffn_down.weight"]


def swiglu(h: Array, gate: Array, up: Array, down: Array) -> Array:
    """The gated feed-forward part: down(silu(gate(h)) * up(h))."""
    g = h @ gate.T
    out: Array = (g / (1 + np.exp(-g)) * (h @ up.T)) @ down.T
    return out


def experts(config: ModelConfig, w: Mapping[str, Array], blk: str, h: Array) -> Array:
    """Mixture of experts: softmax over all of them, the best n_experts_used, renormalised where asked.

    Shapes: h and the result [T, E].
    """
    share = softmax(h @ w[f"{blk}.ffn_gate_inp.weight"].T)
    chosen = np.argsort(-share, axis=-1, kind="stable")[:, : config.n_experts_used]
    kept = np.take_along_axis(share, chosen, axis=-1)
    if config.norm_topk_prob:
        kept = kept / kept.sum(axis=-1, keepdims=True)
    out = np.zeros_like(h)
    for expert in range(config.n_experts):
        token, place = np.nonzero(chosen == expert)
        matrices = (w[f"{blk}.ffn_{name}_exps.weight"][expert] for name in ("gate", "up", "down"))
        out[token] += kept[token, place, None] * swiglu(h[token], *matrices)
    return out
