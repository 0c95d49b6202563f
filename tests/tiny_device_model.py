"""Whole tiny models on the CUDA backend against golden logits: on the fake driver, and on a real GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from cuda_cases.case import compare
from golden_values import tiny_cases, tiny_dir

from yakvrt import model
from yakvrt.config import rope_frequencies
from yakvrt.cuda.backend import CudaBackend
from yakvrt.cuda.device_matrix import PlaneStore
from yakvrt.cuda.recorder import CudaRecorder
from yakvrt.kvcache import full
from yakvrt.kvcache.contract import KvSetting
from yakvrt.model_source import open_model
from yakvrt.ops import Buffer
from yakvrt.weights import load_weights

if TYPE_CHECKING:
    from yakvrt.engine import Engine

CONTEXT = 32
WIDE_CONFIG = {  # of a model whose heads YAKV takes on a GPU; for random weights
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def slots_together(
    engine: Engine, prompt: list[int], copied: Sequence[int], batches: Sequence[int], tokens: list[list[int]]
) -> tuple[np.ndarray, Mapping[str, Any]]:
    """A prompt in one slot, `copied` tokens of it in each further one; then so many slots decode together,
    step by step, the tokens of `tokens`, or else, added there, the likeliest.

    Returns: the logits of all, in order, and the first slot's figures.
    """
    sessions = [engine.session() for _ in range(1 + len(copied))]
    found = [sessions[0].prefill(prompt)[None]]
    for n, session in zip(copied, sessions[1:], strict=True):
        session.copy_from(sessions[0], n)
    slots, held = [session.slot for session in sessions], [len(session.ids) for session in sessions]
    for i, n in enumerate(batches):
        if len(tokens) == i:
            tokens.append([5] * len(slots) if i == 0 else found[-1].argmax(axis=1).tolist())
        found.append(engine.runner.decode(slots[:n], held[:n], tokens[i][:n]).copy())
        held = [length + 1 for length in held]
    return np.concatenate(found), sessions[0].kv


class TinyModel:
    """A tiny model with `full` KV on a GPU, driven as Runner drives one on the CPU."""

    def __init__(self, backend: CudaBackend, family: str, kind: str) -> None:
        self.backend = backend
        with open_model(str(tiny_dir(family)), offline=True) as source:
            self.config = source.config
            store = PlaneStore(self.backend)
            self.weights = load_weights(
                self.config,
                source.tensors,
                store,
                interleaved_rope=source.interleaved_rope,
            )
            self.rope = rope_frequencies(self.config, source.rope_factors())
        setting = KvSetting(self.backend, self.config, self.weights, 2, CONTEXT, kind, *self.rope)
        self.kv = full.build(setting, full.Parameters())

    def recorder(self, capacity: int) -> CudaRecorder:
        config = self.config
        heads = (config.n_heads, config.n_kv_heads, config.head_dim)
        return self.backend.record(capacity, inv_freq=self.rope[0], rope_scale=self.rope[1], heads=heads)

    def run(
        self,
        recorder: CudaRecorder,
        out: Buffer,
        slots: Sequence[int],
        first: Sequence[int],
        ids: Sequence[int],
    ) -> np.ndarray:
        """Runs all parts of a step."""
        step, n = self.backend.finish(recorder), len(ids)
        batch = step.batch
        batch.slots[:n], batch.positions[:n], batch.tokens[:n], batch.n_rows[0] = slots, first, ids, n
        for part in range(len(recorder.parts)):
            step.run(part)
        return self.backend.read(out, 0, n)

    def prefill(self, slot: int, ids: list[int], capacity: int) -> np.ndarray:
        """Logits of all tokens of a prompt. Shapes: [len(ids), V]."""
        recorder = self.recorder(capacity)
        x, record_layer = model.prefill(recorder, self.config, self.weights, self.kv)
        for layer in range(self.config.n_layers):
            recorder.next_part()
            record_layer(layer)
        logits = model.head(recorder, self.config, self.weights, x)
        n = len(ids)
        return self.run(recorder, logits, [slot] * n, range(n), ids)

    def decode(self, slots: list[int], positions: list[int], ids: list[int]) -> np.ndarray:
        recorder = self.recorder(len(slots))
        logits = model.decode(recorder, self.config, self.weights, self.kv)
        return self.run(recorder, logits, slots, positions, ids)


def exact_steps(backend: CudaBackend, family: str) -> float:
    """float32 activations and KV: a prompt of 7 tokens, then both slots decode in one step.

    Returns the error as a part of what is allowed. Raises: Mismatch.
    """
    case, tiny = tiny_cases(family)[1], TinyModel(backend, family, "f32")
    logits = tiny.prefill(1, case.ids, 8)
    worst = compare("logits of the prompt", logits, case.logits, atol=1e-3)
    next_logits = tiny.decode([1, 0], [len(case.ids), 0], [case.greedy_ids[0], case.ids[0]])
    worst = max(worst, compare("logits of a first token", next_logits[1], case.logits[0], atol=1e-3))
    greedy = np.array([logits[-1].argmax(), next_logits[0].argmax()])
    return max(worst, compare("greedy tokens", greedy, np.array(case.greedy_ids[:2])))


def rounded_steps(backend: CudaBackend, family: str, capacity: int = 12) -> float:
    """A prompt in a step of more rows than decode kernels take: bfloat16 products and KV."""
    case, tiny = tiny_cases(family)[2], TinyModel(backend, family, "bf16")
    logits, expected = tiny.prefill(0, case.ids[:10], capacity), case.logits[:10]
    off = np.abs(logits - expected).mean(keepdims=True) / expected.std()
    return compare("mean error of logits", off, np.zeros(off.shape), atol=0.02)
