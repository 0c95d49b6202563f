"""How well the rows that a layer will select are foretold from the layer before: what fetching them early, to
be completed later, would hide of a link's time, and move in vain.

    python bench/bench_prefetch.py -f TEXT --prompt 6000 --new 48 --out bench/results/NAME.json

The guess is InfiniGen's (arXiv 2406.19707): the next layer's query matrix times this layer's input. Both
queries score the same 2-bit selector codes, exact rows in the normaliser, and take k rows; of these a cache
of those used last holds some already. "covered": the part of the missing rows that was foretold. "in vain":
rows that were foretold, neither selected nor in the cache, for each missing one. Nothing depends on a link or
a GPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import result_file
from decode_replay import RecordInputs, StepInputs
from prompt_capture import CapturePrompt, PromptRows
from teacher_tokens import TeacherTokens, of_text

import yakvrt
from yakvrt.engine import Engine
from yakvrt.higgs_grids import load_grid
from yakvrt.kernels.higgs_layout import BLOCK_TOKENS, SELECTORS
from yakvrt.kernels.higgs_residual import estimate_ref
from yakvrt.kernels.higgs_selector import encode_selector_ref
from yakvrt.kernels.rotate import rotation
from yakvrt.kernels.yakv_layout import indexed_end
from yakvrt.kvcache import open_method

SINKS, WINDOW = 4, 64


class Counted(NamedTuple):
    """Rows: selected, foretold rightly, missing in the cache, of these foretold, foretold in vain."""

    selected: int = 0
    right: int = 0
    missing: int = 0
    covered: int = 0
    in_vain: int = 0

    def plus(self, other: Counted) -> Counted:
        return Counted(*(a + b for a, b in zip(self, other, strict=True)))


def trajectory(engine: Engine, tokens: TeacherTokens) -> tuple[PromptRows, StepInputs]:
    """Exact keys of the prompt, and what attention was given in every layer of the steps behind it."""
    setting = engine.runner.setting(1, -(-(tokens.n_tokens + 1) // BLOCK_TOKENS) * BLOCK_TOKENS, "f16")
    module, parameters = open_method("full", {})
    full = module.build(setting, parameters)
    slot, prompt = full.open(setting.ctx_size), PromptRows.empty(setting, len(tokens.prompt))
    engine.runner.over(CapturePrompt(full, prompt)).prefill(slot, 0, tokens.prompt)
    inputs = StepInputs.empty(setting, len(tokens.prompt), len(tokens.fed))
    runner = engine.runner.over(RecordInputs(full, inputs))
    for i, token in enumerate(tokens.fed):
        runner.decode([slot], [len(tokens.prompt) + i], [token])
    return prompt, inputs


def guesses(engine: Engine, inputs: StepInputs) -> np.ndarray:
    """The queries of all layers but the first, from the input of the one before: [L - 1, steps, Hq * D]."""
    runner, config, n = engine.runner, engine.config, inputs.n_steps
    setting, weights = runner.setting(1, BLOCK_TOKENS, "f16"), runner._weights.layers
    heads = config.n_heads, config.n_kv_heads, config.head_dim
    recorder = setting.backend.record(
        n, inv_freq=setting.inv_freq, rope_scale=setting.rope_scale, heads=heads
    )
    h, plain, q = (recorder.buffer(x) for x in (config.hidden_dim, *[config.n_heads * config.head_dim] * 2))
    for layer in weights[1:]:
        recorder.matmul((plain,), (layer.attn_q,), h)
        if config.qk_norm:
            recorder.head_norm(plain, plain, layer.attn_q_norm, config.norm_eps)
        recorder.rope(q, plain)
        recorder.next_part()
    step, found = setting.backend.finish(recorder), []
    step.batch.n_rows[0], step.batch.positions[:] = n, inputs.first + np.arange(n)
    for i, layer in enumerate(weights[1:]):
        own, before = (np.asarray(each.attn_norm)[: config.hidden_dim] for each in (layer, weights[i]))
        setting.backend.write(h, inputs.arrays["h"][i] / before * own)
        step.run(i)
        found.append(setting.backend.read(q, 0, n).copy())
    return np.array(found)


class Head:
    """A KV head's keys as a selector knows them."""

    def __init__(self, keys: np.ndarray, n_prompt: int) -> None:
        """Shapes: keys float32 [n, D], of the prompt and the steps."""
        self.end = indexed_end(n_prompt, SINKS, WINDOW)
        indexed, grid = keys[SINKS : self.end], load_grid(SELECTORS["2bit"].grid)
        self._mean = keys[SINKS:n_prompt].mean(axis=0)
        codes = encode_selector_ref("2bit", indexed, grid, None, self._mean, "norm")
        rotated = estimate_ref("2bit", codes, *indexed.shape, grid, None)
        self._estimates = rotated @ rotation(keys.shape[1]) + self._mean
        self._keys = keys

    def selected(self, q: np.ndarray, position: int, k: int) -> frozenset[int]:
        """Shapes: q [G, D]. The k rows of largest probability, summed over the group."""
        scale = q.shape[1] ** -0.5
        exact = np.concatenate([self._keys[:SINKS], self._keys[self.end : position + 1]])
        logits, others = q @ self._estimates.T * scale, q @ exact.T * scale
        largest = np.maximum(logits.max(axis=1), others.max(axis=1))[:, None]
        shares = np.exp(logits - largest)
        shares /= shares.sum(axis=1, keepdims=True) + np.exp(others - largest).sum(axis=1, keepdims=True)
        return frozenset(np.argpartition(-shares.sum(axis=0), k)[:k].tolist())


def count(truth: list[frozenset[int]], guessed: list[frozenset[int]], places: int) -> Counted:
    """Of one head over the steps; the first fills the cache."""
    held = dict.fromkeys(sorted(truth[0])[:places])  # the least recently used one first
    total = Counted()
    for own, guess in zip(truth[1:], guessed[1:], strict=True):
        missing = own - held.keys()
        vain = len(guess - own - held.keys())
        total = total.plus(Counted(len(own), len(own & guess), len(missing), len(missing & guess), vain))
        for row in own:
            held.pop(row, None)
            held[row] = None
        while len(held) > places:
            del held[next(iter(held))]
    return total


def study(
    engine: Engine, tokens: TeacherTokens, ratios: list[float], caches: list[float]
) -> list[dict[str, Any]]:
    config, n_prompt = engine.config, len(tokens.prompt)
    prompt, inputs = trajectory(engine, tokens)
    guessed, group, dim = guesses(engine, inputs), config.n_heads // config.n_kv_heads, config.head_dim
    totals: dict[tuple[float, float], list[Counted]] = {}
    for layer in range(1, config.n_layers):
        keys = np.concatenate([prompt.k[layer].astype(np.float32), inputs.arrays["k"][layer]])
        for head in range(config.n_kv_heads):
            known = Head(keys.reshape(len(keys), -1, dim)[:, head], n_prompt)
            queries = [
                each.reshape(len(each), config.n_kv_heads, group, dim)[:, head]
                for each in (inputs.arrays["q"][layer], guessed[layer - 1])
            ]
            for ratio in ratios:
                k = max(1, round(ratio * n_prompt))
                sets = [[known.selected(q, n_prompt + i, k) for i, q in enumerate(each)] for each in queries]
                for cache in caches:
                    found = count(*sets, round(cache * k))
                    totals.setdefault((ratio, cache), []).append(found)
    rows = []
    for (ratio, cache), each in totals.items():
        total = Counted()
        for one in each:
            total = total.plus(one)
        row = {
            "sparse_budget": ratio,
            "slot_cache": cache,
            "hit_rate": round(1 - total.missing / total.selected, 4),
            "foretold": round(total.right / total.selected, 4),
            "covered": round(total.covered / total.missing, 4),
            "in_vain": round(total.in_vain / total.missing, 4),
        }
        rows.append(row)
        print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
    return rows


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="Rows foretold from the layer before.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("--prompt", type=int, default=6000, help="tokens of the prompt (6000)")
    parser.add_argument("--new", type=int, default=32, help="steps behind it (32)")
    parser.add_argument("--budgets", type=lambda text: [float(x) for x in text.split(",")], default=[0.03125])
    parser.add_argument("--caches", type=lambda text: [float(x) for x in text.split(",")], default=[0.0, 2.0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    print("| budget | cache | hit rate | foretold | covered | in vain |\n|---|---|---|---|---|---|")
    with yakvrt.load(args.model, ctx_size=64, offline=True, threads=args.threads) as engine:
        tokens = of_text(engine, args.file, 0, args.prompt, args.new)
        result = {
            "bench": "prefetch",
            **result_file.facts(),
            "model": engine.name,
            "text": args.file.name,
            "n_prompt": len(tokens.prompt),
            "n_steps": len(tokens.fed),
            "rows": study(engine, tokens, args.budgets, args.caches),
        }
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
