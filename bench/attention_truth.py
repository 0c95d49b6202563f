"""True probabilities of recorded decode steps, and how much of them a method reads."""

from __future__ import annotations

import numpy as np
from decode_replay import StepInputs
from prompt_capture import PromptRows

from yakvrt.kernels.chosen_rows import softmax
from yakvrt.kvcache.contract import KvSetting
from yakvrt.ops import element_type


class AttentionTruth:
    """Softmax over the exact keys so far, summed over the query heads that choose rows together.

    n_choosers is the number of heads that choose: KV heads, or query heads where a method chooses for each.
    Bytes: 4 * L * steps * n_choosers per token, for every n_choosers asked for; kept.
    """

    def __init__(self, setting: KvSetting, prompt: PromptRows, inputs: StepInputs) -> None:
        self._setting, self._prompt, self._inputs = setting, prompt, inputs
        self._weights: dict[tuple[int, int], np.ndarray] = {}
        self._least: dict[tuple[int, int, int], np.ndarray] = {}

    def weights(self, layer: int, n_choosers: int) -> np.ndarray:
        """Shapes: float32 [steps, n_choosers, tokens]; a chooser's weights add up to its query heads."""
        key = layer, n_choosers
        if key not in self._weights:
            self._weights[key] = self._compute(layer, n_choosers)
        return self._weights[key]

    def _compute(self, layer: int, n_choosers: int) -> np.ndarray:
        config, inputs, dtype = self._setting.config, self._inputs, element_type(self._setting.kind)
        heads, dim, first = config.n_kv_heads, config.head_dim, inputs.first
        keys = np.concatenate(
            [self._prompt.k[layer].astype(np.float32), inputs.arrays["k"][layer].astype(dtype)],
            dtype=np.float32,
        ).reshape(-1, heads, dim)
        q = inputs.arrays["q"][layer].reshape(inputs.n_steps, heads, -1, dim)
        q = q * np.float32(dim**-0.5)
        out = np.zeros((inputs.n_steps, n_choosers, len(keys)), np.float32)
        columns = keys.transpose(1, 2, 0)
        for step in range(inputs.n_steps):
            n = first + step + 1
            shares = softmax(q[step] @ columns[..., :n])  # [Hk, G, n]
            out[step, :, :n] = shares.reshape(n_choosers, -1, n).sum(axis=1)
        return out

    def mass_covered(self, layer: int, step: int, read: np.ndarray) -> float:
        """The probability of the rows that are read, mean over query heads. Shapes: read [n_choosers, n]."""
        weights = self.weights(layer, len(read))[step, :, : read.shape[1]]
        return float((weights * read).sum() / self._setting.config.n_heads)

    def recall(self, layer: int, step: int, read: np.ndarray, k: int) -> float:
        """The share of a chooser's k most probable rows that are read, mean over choosers.

        Shapes: read [n_choosers, n].
        """
        n = read.shape[1]
        k = min(k, n)
        weights = self.weights(layer, len(read))
        key = layer, len(read), k
        if key not in self._least:
            self._least[key] = np.partition(weights, weights.shape[2] - k, axis=2)[..., -k]
        found = (read & (weights[step, :, :n] >= self._least[key][step, :, None])).sum(axis=1)
        return float((np.minimum(found, k) / k).mean())  # equal ones may be more than k


def output_error(found: np.ndarray, exact: np.ndarray, n_kv_heads: int) -> float:
    """||o - o_full|| / ||o_full|| over the query heads of a KV head, mean over KV heads. Shapes: [Hq * D]."""
    lengths = np.linalg.norm(exact.reshape(n_kv_heads, -1), axis=1)
    distances = np.linalg.norm((found - exact).reshape(n_kv_heads, -1), axis=1)
    return float((distances / lengths).mean())
