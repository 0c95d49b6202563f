"""llama.cpp behind its C interface, through llama-cpp-python's low-level calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

N_BATCH = 512

Logits = npt.NDArray[np.float32]


class LlamaCpp:
    """One model and one context of llama.cpp, for one sequence."""

    def __init__(self, path: Path, ctx_size: int, n_threads: int) -> None:
        import llama_cpp as c

        self._c = c
        self._quiet_log = c.llama_log_callback(lambda level, text, data: None)
        c.llama_log_set(self._quiet_log, None)
        c.llama_backend_init()
        self._model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}: give it a GGUF file of a family it knows")
        params = c.llama_context_default_params()
        params.n_ctx = -(-ctx_size // 256) * 256
        params.n_batch = params.n_ubatch = N_BATCH
        params.n_threads = params.n_threads_batch = n_threads
        self._context = c.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context of {ctx_size} tokens: lower --depths")
        self._memory = c.llama_get_memory(self._context)
        self.vocab_size = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model))

    def prefill(self, ids: Sequence[int]) -> Logits:
        for start in range(0, len(ids), N_BATCH):
            part = ids[start : start + N_BATCH]
            tokens = (self._c.llama_token * len(part))(*part)  # the batch only points to it
            batch = self._c.llama_batch_get_one(tokens, len(part))
            if status := self._c.llama_decode(self._context, batch):
                raise RuntimeError(f"llama_decode returned {status} on {len(part)} tokens")
        logits = self._c.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self.vocab_size,))

    def decode(self, token: int) -> Logits:
        return self.prefill((token,))

    def truncate(self, n: int) -> None:
        self._c.llama_memory_seq_rm(self._memory, 0, n, -1)

    def close(self) -> None:
        self._c.llama_free(self._context)
        self._c.llama_model_free(self._model)
