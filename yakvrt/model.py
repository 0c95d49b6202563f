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


def prefill(ops: Ops, config: ModelConfig, weights: Weights, kv: KvMethod) -> Buffer:
    """Records one chunk of one slot's prompt; returns the logits [n_logits, V]."""

    def attend(layer: int, attention: AttentionInput, out: Buffer) -> None:
        rows = kv.prefill(ops, layer, attention)
        ops.attend_prefill(out, attention.q, rows)

    return _transformer(ops, config, weights, attend)


def decode(ops: Ops, config: ModelConfig, weights: Weights, kv: KvMethod) -> Buffer:
    """Records one token of every slot in the batch; returns the logits [n_logits, V]."""

    def attend(layer: int, attention: AttentionInput, out: Buffer) -> None:
        kv.decode(ops, layer, attention, out)

    return _transformer(ops, config, weights, attend)


def _transformer(ops: Ops, config: ModelConfig, weights: Weights, attend: Attend) -> Buffer:
    eps = config.norm_eps
    q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    x, h, out = ops.buffer(config.hidden_dim), ops.buffer(config.hidden_dim), ops.buffer(q_dim)
    q_plain, q = ops.buffer(q_dim), ops.buffer(q_dim)
    k_plain, k, v = ops.buffer(kv_dim), ops.buffer(kv_dim), ops.buffer(kv_dim)
    q_proj, k_proj = (ops.buffer(q_dim), ops.buffer(kv_dim)) if config.qk_norm else (q_plain, k_plain)
    attention = AttentionInput(h, q_plain, k_plain, q, k, v)
    feed_forward = _make_feed_forward(ops, config)

    ops.embed(x, weights.token_embd)
    for layer, w in enumerate(weights.layers):
        ops.rms_norm(h, x, w.attn_norm, eps)
        ops.matmul((q_proj, k_proj, v), (w.attn_q, w.attn_k, w.attn_v), h)
        if config.qk_norm:
            ops.head_norm(q_plain, q_proj, w.attn_q_norm, eps)
            ops.head_norm(k_plain, k_proj, w.attn_k_norm, eps)
        ops.rope(q, q_plain)
        ops.rope(k, k_plain)
        attend(layer, attention, out)
        ops.matmul((x,), (w.attn_output,), out, add=True)
        ops.rms_norm(h, x, w.ffn_norm, eps)
        feed_forward(x, h, w)
    last = ops.buffer(config.hidden_dim, for_logits=True)
    logits = ops.buffer(config.vocab_size, for_logits=True)
    ops.take_logit_rows(last, x)
    ops.rms_norm(last, last, weights.output_norm, eps)
    ops.matmul((logits,), (weights.output,), last)
    return logits


def _make_feed_forward(ops: Ops, config: ModelConfig) -> Callable[[Buffer, Buffer, LayerWeights], None]:
    """x += the feed-forward of h, dense or routed."""
    if config.n_experts:

        def routed(x: Buffer, h: Buffer, w: LayerWeights) -> None:
            experts = (w.ffn_gate_inp, w.ffn_gate, w.ffn_up, w.ffn_down)
            ops.moe(x, h, *experts, config.n_experts_used, config.norm_topk_prob)

        return routed
    gate, up = ops.buffer(config.ffn_dim), ops.buffer(config.ffn_dim)

    def dense(x: Buffer, h: Buffer, w: LayerWeights) -> None:
        ops.matmul((gate, up), (w.ffn_gate, w.ffn_up), h)
        ops.silu_mul(gate, gate, up)
        ops.matmul((x,), (w.ffn_down,), gate, add=True)

    return dense
