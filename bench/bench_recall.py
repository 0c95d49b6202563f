"""KV methods under teacher forcing: how far attention and next-token logits move from full attention's,
against bytes.

    python bench/bench_recall.py --model smollm2-135m -f TEXT --depth 8000 --out bench/results/NAME.json \\
        --plot bench/results/NAME
    python bench/bench_recall.py --model qwen2.5-coder-1.5b -f PROMPT --gold ANSWER --out ...

One exact prefill serves all methods and budgets: its rows and queries are kept, and fed to each. Then, for
every method and budget,

- attention alone: the inputs of every layer on full attention's trajectory are given to the method's decode.
  attention_error is ||o - o_full|| / ||o_full|| over the query heads of a KV head, mean over layers, KV heads
  and steps. mass_covered is the true probability of the rows that attention read one by one, mean over query
  heads; recall the share of the budget's number of most probable rows that are among them, by KV head (the
  sum over its query heads), or by query head for a method that chooses for each (of its share of the budget
  where that is split). A window, sinks and all else that is read counts as read. null: the method's rows
  cannot be told.
- the whole model: KL divergence of next-token logits from full attention's (mean, 99th percentile), how often
  the best token is the same, NLL of the continuation, bytes a token asked of the host (gross) and moved.

A method is a name of `--kv`, with parameters as in yakv:tail=0;recent=128. Rows are written as they are
measured, and a further run with the same --out measures those that are missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import recall_plot
import result_file
from attention_scores import Study
from decode_replay import RecordInputs, StepInputs
from kept_rows import KeptRows, key_of
from prompt_capture import CapturePrompt, PromptRows, feed
from teacher_tokens import TeacherTokens, of_gold, of_text

import yakvrt
from yakvrt.engine import Engine
from yakvrt.eval.fidelity import logit_scores
from yakvrt.eval.time_left import TimeLeft
from yakvrt.kl_divergence import log_softmax
from yakvrt.kvcache import open_method
from yakvrt.kvcache.budget import budget_tokens
from yakvrt.kvcache.contract import KvMethod
from yakvrt.kvcache.method_label import name_and_args

METHODS = (
    "oracle,yakv,yakv:tail=0,yakv-1.5bit,yakv-paper,shadowkv,arkvale-equal,quest-equal,lrqk-equal,"
    "infinigen-equal"
)
BUDGETS = "0.0078125,0.015625,0.03125,0.0625,0.125"
Spec = tuple[str, str, Mapping[str, str]]  # label, method, parameters
Progress = Callable[[float], None]


def specs_of(methods: str, budgets: list[str]) -> list[Spec]:
    """Every method at every budget. Raises: ValueError for one that is not known."""
    specs = []
    for label in methods.split(","):
        name, extra = name_and_args(label)
        specs += [(label, name, {"sparse_budget": budget, **extra}) for budget in budgets]
    for _, name, parameters in specs:
        open_method(name, parameters)
    return specs


class Recall:
    """One model, one prompt, one continuation: rows of results, method by method."""

    def __init__(self, engine: Engine, tokens: TeacherTokens, kind: str) -> None:
        self._engine, self._tokens = engine, tokens
        ctx_size = -(-(tokens.n_tokens + 1) // 64) * 64
        self._setting = engine.runner.setting(1, ctx_size, kind)
        self._full: list[np.ndarray] | None = None

    def prefill(self) -> None:
        """Takes the prompt in, once for all."""
        module, parameters = open_method("full", {})
        method = module.build(self._setting, parameters)
        self._prompt = PromptRows.empty(self._setting, len(self._tokens.prompt))
        slot = method.open(self._setting.ctx_size)
        self._engine.runner.over(CapturePrompt(method, self._prompt)).prefill(slot, 0, self._tokens.prompt)

    @property
    def kept_bytes(self) -> int:
        return sum(rows.nbytes for rows in (self._prompt.q, self._prompt.k, self._prompt.v))

    def full(self) -> dict[str, Any]:
        """Full attention's row; its trajectory and logits are what the others are compared with."""
        inputs = StepInputs.empty(self._setting, len(self._tokens.prompt), len(self._tokens.fed))
        scores = self._decode("full", {}, lambda method: RecordInputs(method, inputs), lambda _: None)
        self._study = Study.of(self._setting, self._prompt, inputs)
        return {"method": "full", "parameters": {}, **scores}

    def row(self, spec: Spec, progress: Callable[[str, float], None]) -> dict[str, Any]:
        label, name, parameters = spec
        k = budget_tokens(float(parameters["sparse_budget"]), len(self._tokens.prompt))
        started = time.monotonic()
        attention = self._study.scores(name, parameters, k, lambda x: progress("attention", x / 2))
        logits = self._decode(
            name, parameters, lambda method: method, lambda x: progress("logits", (1 + x) / 2)
        )
        seconds = round(time.monotonic() - started, 1)
        row = {"method": label, "parameters": dict(parameters), "budget_tokens": k}
        return {**row, **attention, **logits, "seconds": seconds}

    def _decode(
        self,
        name: str,
        parameters: Mapping[str, str],
        observed: Callable[[KvMethod], Any],
        progress: Progress,
    ) -> dict[str, Any]:
        """The model over a method: scores of its logits, and bytes."""
        tokens, setting = self._tokens, self._setting
        module, values = open_method(name, parameters)
        method = module.build(setting, values)
        slot = method.open(setting.ctx_size)
        feed(setting, method, slot, self._prompt)
        runner = self._engine.runner.over(observed(method))
        found = []
        for i, token in enumerate(tokens.fed):
            logits = runner.decode([slot], [len(tokens.prompt) + i], [token])[0]
            found.append(log_softmax(logits.astype(np.float64)))
            progress((i + 1) / len(tokens.fed))
        self._full = found if self._full is None else self._full
        stats = method.stats()
        held = {"device_bytes_per_token": stats["bytes"] / setting.ctx_size, "host_bytes_per_token": 0}
        return {
            **logit_scores(found, self._full, tokens.targets),
            "gross_bytes": stats.get("gross_bytes", 0) / len(tokens.fed),
            "moved_bytes": stats.get("moved_bytes", 0) / len(tokens.fed),
            **{key: stats.get(key, value) for key, value in held.items()},
            "hit_rate": round(stats.get("hit_rate", 0.0), 4),
        }


def budget_name(parameters: Mapping[str, str]) -> str:
    budget = float(parameters.get("sparse_budget", 1))
    return f"{budget:.2%}" if budget <= 1 else f"{budget:.0f}"


def shown(row: dict[str, Any]) -> str:
    def share(key: str) -> str:
        return "   -" if row.get(key) is None else f"{row[key]:.3f}"

    return (
        f"{row['method']:16} {budget_name(row['parameters']):>7}  "
        f"error {row.get('attention_error', 0):.4f}  mass {share('mass_covered')}  recall {share('recall')}  "
        f"KL {row['kl_mean']:.4f} (p99 {row['kl_p99']:.3f})  same top-1 {row['same_top1']:.3f}  "
        f"NLL {row['nll']:.4f}  {row['gross_bytes'] / 1e6:.2f} MB gross, {row['moved_bytes'] / 1e6:.2f} moved"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="KV methods under teacher forcing, error against bytes.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("-f", "--file", type=Path, required=True, help="a text; with --gold, the prompt")
    parser.add_argument(
        "--gold", type=Path, metavar="FILE", help="the answer to the prompt, fed as continuation"
    )
    parser.add_argument("--raw", action="store_true", help="with --gold: no chat template around the prompt")
    parser.add_argument("--skip", type=int, default=0, help="characters of the text to leave out first")
    parser.add_argument("--depth", type=int, help="without --gold: tokens of the text read before (8000)")
    parser.add_argument("--new", type=int, default=64, help="most tokens scored (64)")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--budgets", default=BUDGETS)
    parser.add_argument("--cache-type", default="f16", choices=("f16", "bf16", "f32"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plot", type=Path, metavar="NAME", help="writes NAME.png and NAME.svg")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.gold and (args.depth is not None or args.skip):
        parser.error("with --gold the whole file is the prompt; leave out --depth and --skip")
    args.depth = 8000 if args.depth is None else args.depth
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The result, with the rows of an earlier run."""
    specs = specs_of(args.methods, args.budgets.split(","))
    with yakvrt.load(args.model, threads=args.threads, cache_type=args.cache_type) as engine:
        if args.gold:
            tokens = of_gold(engine, args.file, args.gold, args.new, raw=args.raw)
        else:
            tokens = of_text(engine, args.file, args.skip, args.depth, args.new)
        if tokens.n_tokens > engine.config.context_len:
            raise ValueError(
                f"{tokens.n_tokens} tokens asked for, {engine.name} takes {engine.config.context_len}; "
                "give a shorter text"
            )
        study = {
            "model": engine.name,
            "text": args.file.name,
            "gold": args.gold and args.gold.name,
            "raw": args.raw,
            "skip": args.skip,
            "depth": len(tokens.prompt),
            "new": len(tokens.fed),
            "cache_type": args.cache_type,
        }
        kept = KeptRows(args.out, study)
        missing = [spec for spec in specs if key_of({"method": spec[0], "parameters": spec[2]}) not in kept]
        if not missing:
            return kept.result()
        recall = Recall(engine, tokens, args.cache_type)
        started = time.monotonic()
        recall.prefill()
        print(
            f"prefill of {len(tokens.prompt)} tokens: {time.monotonic() - started:.1f} s; "
            f"{recall.kept_bytes / 1e9:.2f} GB of rows and queries kept",
            flush=True,
        )
        full = recall.full()
        kept.add({**full, "commit": result_file.facts()["commit"]})
        print(shown(full), flush=True)
        left = TimeLeft(len(missing))
        for spec in missing:
            title = f"{spec[0]} at {budget_name(spec[2])}:"
            row = recall.row(spec, lambda what, share, title=title: left.show(f"{title} {what}", share))
            left.finish()
            kept.add({**row, "commit": result_file.facts()["commit"]})
            print(f"{shown(row)}  {row['seconds']:.0f} s", flush=True)
        return kept.result()


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    args = arguments()
    try:
        result = measure(args)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    if args.plot:
        recall_plot.plot(result, args.plot)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
