"""The transformer, written once over `ops`: Llama, Mistral, Qwen2, Qwen3 and Qwen3-MoE."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .kvcache.contract import AttentionInput, KvMethod
from .ops import Buffer, Ops

if TYPE_CHECKING:
    from .config import ModelConfig
    from .weights import LayerWeights, Weights

Attend = Callable[[int, AttentionInput, Buffer], None]
Layer = Callable[[int], None]


def decode(ops: Ops, config: ModelConfig, weights: Weights, kv: KvMethod) -> Buffer:
    """Records one token of every slot in the batch; returns the logits [B, V]."""

    def attend(layer: int, attention: AttentionInput, out: Buffer) -> None:
        kv.decode(ops, layer, attention, out)

    x = ops.buffer(config.hidden_dim)
    record_layer = _make_layer(ops, config, weights, x, attend)
    ops.stage("embed")
    ops.embed(x, weights.token_embd)
    for layer in range(config.n_layers):
        record_layer(layer)
    return head(ops, config, weights, x)


def prefill(ops: Ops, config: ModelConfig, weights: Weights, kv: KvMethod) -> tuple[Buffer, Layer]:
    """Records the embedding of one chunk of a prompt into the hidden states x [B, E].

    Returns: x, and a function that records one layer: x becomes the layer's output.
    """

    def attend(layer: int, attention: AttentionInput, out: Buffer) -> None:
        rows = kv.prefill(ops, layer, attention)
        ops.attend_prefill(out, attention.q, rows)

    x = ops.buffer(config.hidden_dim)
    ops.stage("embed")
    ops.embed(x, weights.token_embd)
    return x, _make_layer(ops, config, weights, x, attend)


def head(ops: Ops, config: ModelConfig, weights: Weights, x: Buffer) -> Buffer:
    """Records the logits [B, V] of the last layer's hidden states."""
    h, logits = ops.buffer(config.hidden_dim), ops.buffer(config.vocab_size)
    ops.stage("logits")
    ops.rms_norm(h, x, weights.output_norm, config.norm_eps)
    ops.matmul((logits,), (weights.output,), h)
    return logits


def _make_layer(ops: Ops, config: ModelConfig, weights: Weights, x: Buffer, attend: Attend) -> Layer:
    """The function that records a layer; all layers share their buffers."""
    eps = config.norm_eps
    q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    h, out = ops.buffer(config.hidden_dim), ops.buffer(q_dim)
    q_plain, q = ops.buffer(q_dim), ops.buffer(q_dim)
    k_plain, k, v = ops.buffer(kv_dim), ops.buffer(kv_dim), ops.buffer(kv_dim)
    q_proj, k_proj = (ops.buffer(q_dim), ops.buffer(kv_dim)) if config.qk_norm else (q_plain, k_plain)
    attention = AttentionInput(h, q_plain, k_plain, q, k, v)
    feed_forward = _make_feed_forward(ops, config)

    def record_layer(layer: int) -> None:
        w = weights.layers[layer]
        ops.stage("qkv", layer)
        ops.rms_norm(h, x, w.attn_norm, eps)
        ops.matmul((q_proj, k_proj, v), (w.attn_q, w.attn_k, w.attn_v), h)
        if config.qk_norm:
            ops.head_norm(q_plain, q_proj, w.attn_q_norm, eps)
            ops.head_norm(k_plain, k_proj, w.attn_k_norm, eps)
        ops.rope(q, q_plain)
        ops.rope(k, k_plain)
        ops.stage("attend", layer)  # a method may tell parts of it apart: select, fetch, attend
        attend(layer, attention, out)
        ops.stage("attn_output", layer)
        ops.matmul((x,), (w.attn_output,), out, add=True)
        ops.stage("mlp", layer)
        ops.rms_norm(h, x, w.ffn_norm, eps)
        feed_forward(x, h, w)

    return record_layer


def _make_feed_forward(ops: Ops, config: ModelConfig) -> Callable[[Buffer, Buffer, LayerWeights], None]:
    """x += the feed-forward of h, dense or routed."""
    if config.n_experts:

        def routed(x: Buffer, h: Buffer, w: LayerWeights) -> None:
            experts = (w.ffn_gate_inp, w.ffn_gate, w.ffn_up, w.ffn_down)
            ops.moe(x, h, *experts, config.n_experts_used, config.norm_topk_prob)

        return routed
    inner = ops.buffer(config.ffn_dim)

    def dense(x: Buffer, h: Buffer, w: LayerWeights) -> None:
        ops.gated_matmul(inner, w.ffn_gate, w.ffn_up, h)
        ops.matmul((x,), (w.ffn_down,), inner, add=True)

    return dense
