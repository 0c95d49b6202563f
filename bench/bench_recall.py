"""KV methods under teacher forcing: how far next-token logits move from full attention's, against bytes.

    python bench/bench_recall.py --model smollm2-135m -f TEXT --depth 8000 --budgets 0.008,0.016,0.031 \\
        --plot bench/results/NAME --out bench/results/NAME.json

One exact prefill of the text's first `--depth` tokens serves all methods; each then decodes the next `--new`
tokens of the text. Reported per method and budget: KL divergence from full attention (mean, 99th percentile),
how often the best token is the same, NLL of the text, and the bytes a step asks of the host and moves.
A method is a name of `--kv`, with parameters as in yakv:tail=off.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import result_file

import yakvrt
from yakvrt.config import rope_frequencies
from yakvrt.kvcache import open_method
from yakvrt.kvcache.contract import AttentionInput, KvMethod, KvSetting
from yakvrt.ops import KvRows, Ops
from yakvrt.runner import Runner

METHODS = "oracle,yakv,yakv:tail=off,yakv-1.5bit,yakv-paper,shadowkv,arkvale,quest,lrqk,infinigen"


class Tee:
    """Takes a prompt into several methods at once; the first one's rows are attended to."""

    def __init__(self, methods: list[KvMethod]) -> None:
        self._methods = methods

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        for method in self._methods:
            method.restore(layer, slot, n_held)

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        rows = [method.prefill(ops, layer, attention) for method in self._methods]  # every one records
        return rows[0]

    def store(self, layer: int, slot: int, n_held: int, n_new: int) -> None:
        for method in self._methods:
            method.store(layer, slot, n_held, n_new)


def log_probs(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def decode(runner: Runner, slot: int, depth: int, ids: list[int]) -> np.ndarray:
    """Log-probabilities after each of the ids. Shapes: [len(ids), V]."""
    return np.array(
        [log_probs(runner.decode([slot], [depth + i], [token])[0]) for i, token in enumerate(ids)]
    )


def scores(found: np.ndarray, full: np.ndarray, targets: list[int]) -> dict[str, float]:
    kl = (np.exp(full) * (full - found)).sum(axis=1)
    return {
        "kl_mean": float(kl.mean()),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "same_top1": float((found.argmax(axis=1) == full.argmax(axis=1)).mean()),
        "nll": float(-found[np.arange(len(targets)), targets].mean()),
    }


def specs_of(methods: str, budgets: list[str]) -> list[tuple[str, str, Mapping[str, str]]]:
    """(label, method, parameters) of every method at every budget."""
    specs = []
    for method in methods.split(","):
        name, _, rest = method.partition(":")
        extra = dict(pair.split("=") for pair in rest.split(";") if pair)
        specs += [(method, name, {"sparse_budget": budget, **extra}) for budget in budgets]
    return specs


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True)
    for axis, key in zip(axes, ("gross_bytes", "moved_bytes"), strict=True):
        for label in dict.fromkeys(row["method"] for row in rows):
            line = [row for row in rows if row["method"] == label]
            axis.loglog([row[key] / 1e6 for row in line], [row["kl_mean"] for row in line], "o-", label=label)
        axis.set_xlabel(f"MB {key.removesuffix('_bytes')} per token")
    axes[0].set_ylabel("mean KL divergence from full attention (nats)")
    axes[1].legend(fontsize="small")
    figure.tight_layout()
    for ending in ("png", "svg"):
        figure.savefig(f"{path}.{ending}")


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="KV methods under teacher forcing, error against bytes.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "-f", "--file", type=Path, required=True, help="a text longer than depth + new tokens"
    )
    parser.add_argument("--skip", type=int, default=0, help="characters of the text to leave out first")
    parser.add_argument("--depth", type=int, default=8000, help="tokens read before (8000)")
    parser.add_argument("--new", type=int, default=128, help="tokens scored (128)")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--budgets", default="0.008,0.016,0.031,0.0625,0.125")
    parser.add_argument("--cache-type", default="f16", choices=("f16", "bf16", "f32"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plot", type=Path, metavar="NAME", help="writes NAME.png and NAME.svg")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ctx_size = args.depth + args.new + 64
    rows: list[dict[str, Any]] = []
    kind, threads = args.cache_type, args.threads
    with yakvrt.load(args.model, ctx_size=ctx_size, threads=threads, cache_type=kind) as engine:
        ids = engine.tokenizer.encode(args.file.read_text(encoding="utf-8")[args.skip :])
        if len(ids) <= args.depth + args.new:
            raise SystemExit(f"{args.file} has {len(ids)} tokens, {args.depth + args.new + 1} are needed")
        prompt, new = ids[: args.depth], ids[args.depth : args.depth + args.new]
        targets = ids[args.depth + 1 : args.depth + args.new + 1]
        backend, weights = engine._backend, engine.runner._weights
        rope = rope_frequencies(engine.config, None)
        setting = KvSetting(backend, engine.config, weights, 1, ctx_size, kind, *rope)
        specs = [("full", "full", {}), *specs_of(args.methods, args.budgets.split(","))]
        by_method: dict[str, list[tuple[str, str, Mapping[str, str]]]] = {}
        for spec in specs:
            by_method.setdefault(spec[0], []).append(spec)
        full: np.ndarray | None = None
        for group in by_method.values():
            built = []
            for _, name, parameters in group:
                module, values = open_method(name, parameters)
                built.append(module.build(setting, values))
            slots = [method.open(ctx_size) for method in built]
            Runner(backend, engine.config, weights, Tee(built), chunk=240).prefill(slots[0], 0, prompt)
            for (label, _, parameters), method, slot in zip(group, built, slots, strict=True):
                runner = Runner(backend, engine.config, weights, method, chunk=240)
                found = decode(runner, slot, args.depth, new)
                full = found if full is None else full
                stats = method.stats()
                row = {"method": label, "parameters": dict(parameters), **scores(found, full, targets)}
                for key in ("gross_bytes", "moved_bytes"):
                    row[key] = float(stats.get(key, 0)) / args.new
                row |= {key: stats.get(key, 0) for key in ("device_bytes_per_token", "host_bytes_per_token")}
                row["hit_rate"] = round(float(stats.get("hit_rate", 0)), 3)
                rows.append(row)
                print(
                    f"{label:16} {parameters.get('sparse_budget', ''):>6}  KL {row['kl_mean']:.4f} "
                    f"(p99 {row['kl_p99']:.3f})  same top-1 {row['same_top1']:.3f}  NLL {row['nll']:.4f}  "
                    f"{row['gross_bytes'] / 1e6:7.2f} MB gross {row['moved_bytes'] / 1e6:7.2f} moved",
                    flush=True,
                )
                method.release(slot)
        result = {
            "bench": "recall",
            **result_file.facts(),
            "model": engine.name,
            "text": args.file.name,
            "skip": args.skip,
            "depth": args.depth,
            "new": args.new,
            "cache_type": kind,
            "rows": rows,
        }
    if args.plot:
        plot(rows[1:], args.plot)
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
