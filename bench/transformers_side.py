"""transformers on torch, in bfloat16 on the CPU, as `model(ids, cache=cache)` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


class Transformers:
    """One model and one cache of transformers, for one sequence.

    Raises: RuntimeError where torch or transformers is not installed, or the directory holds no model.
    """

    def __init__(self, directory: Path, n_threads: int) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise RuntimeError(
                f"--transformers needs {error.name}: pip install torch transformers"
            ) from error
        self._torch = torch
        torch.set_num_threads(n_threads)
        transformers.utils.logging.disable_progress_bar()
        try:
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.bfloat16, local_files_only=True
            ).eval()
        except (OSError, ValueError) as error:
            raise RuntimeError(f"transformers cannot load {directory}: {error}") from error
        self._cache = transformers.DynamicCache()

    def prefill(self, ids: Sequence[int]) -> Logits:
        with self._torch.inference_mode():
            tokens = self._torch.tensor([ids])
            logits = self._model(tokens, cache=self._cache, logits_to_keep=1).logits
            return logits[0, -1].float().numpy()

    def decode(self, token: int) -> Logits:
        return self.prefill((token,))

    def truncate(self, n: int) -> None:
        self._cache.crop(min(0, n - self._cache.get_seq_length()))  # how many tokens go, as a negative number

    def close(self) -> None:
        del self._model, self._cache
