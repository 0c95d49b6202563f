"""Whole tiny models on the CUDA backend, over the fake driver and the emulator, against golden logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeGpu, write_fake_cubin
from golden_values import tiny_cases, tiny_dir

from yakvrt import model
from yakvrt.config import rope_frequencies
from yakvrt.cuda.backend import CudaBackend, CudaStep
from yakvrt.cuda.device_matrix import PlaneStore
from yakvrt.cuda.recorder import CudaRecorder, Launch
from yakvrt.kvcache import full
from yakvrt.kvcache.contract import KvSetting
from yakvrt.model_source import open_model
from yakvrt.ops import Buffer
from yakvrt.weights import load_weights

CONTEXT = 32


class TinyModel:
    """A tiny model with `full` KV on a GPU of the fake driver, driven as Runner drives one on the CPU."""

    def __init__(self, family: str, cubins: Path, kind: str) -> None:
        self._cubins = cubins
        (cubins / "sm_90a").mkdir()
        self.backend = CudaBackend(cubins)
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

    def finish(self, recorder: CudaRecorder) -> CudaStep:
        for part in recorder.parts:
            for piece in part:
                if isinstance(piece, Launch):
                    write_fake_cubin(self._cubins, piece.kernel)
        return self.backend.finish(recorder)

    def run(
        self,
        recorder: CudaRecorder,
        out: Buffer,
        slots: Sequence[int],
        first: Sequence[int],
        ids: Sequence[int],
    ) -> np.ndarray:
        """Runs all parts of a step."""
        step, n = self.finish(recorder), len(ids)
        batch = step.batch
        batch.slots[:n], batch.positions[:n], batch.tokens[:n], batch.n_rows[0] = slots, first, ids, n
        for part in range(len(recorder.parts)):
            step.run(part)
        return self.backend.fetch(out, n)

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


@contextmanager
def tiny_model(gpu: FakeGpu, family: str, cubins: Path, kind: str) -> Iterator[TinyModel]:
    tiny = TinyModel(family, cubins, kind)
    try:
        yield tiny
    finally:
        tiny.backend.close()
    assert not gpu.failures


@pytest.mark.parametrize("family", ["llama3", "qwen3-moe"])
def test_exact_steps_give_the_golden_logits(gpu: FakeGpu, tmp_path: Path, family: str) -> None:
    """float32 activations and KV: a prompt of 7 tokens, then both slots decode in one step."""
    case = tiny_cases(family)[1]
    with tiny_model(gpu, family, tmp_path, "f32") as tiny:
        logits = tiny.prefill(1, case.ids, 8)
        np.testing.assert_allclose(logits, case.logits, rtol=0, atol=1e-3)
        assert int(logits[-1].argmax()) == case.greedy_ids[0]
        next_logits = tiny.decode([1, 0], [len(case.ids), 0], [case.greedy_ids[0], case.ids[0]])
        assert int(next_logits[0].argmax()) == case.greedy_ids[1]
        np.testing.assert_allclose(next_logits[1], case.logits[0], rtol=0, atol=1e-3)


def test_tensor_cores_give_nearly_the_golden_logits(gpu: FakeGpu, tmp_path: Path) -> None:
    """A prompt of more rows than decode kernels take: bfloat16 products and KV."""
    case = tiny_cases("llama3")[2]
    ids = case.ids[:10]
    with tiny_model(gpu, "llama3", tmp_path, "bf16") as tiny:
        logits = tiny.prefill(0, ids, 12)
        spread = float(case.logits.std())
        assert np.abs(logits - case.logits[: len(ids)]).mean() < 0.02 * spread
