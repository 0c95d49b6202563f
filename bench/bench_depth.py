"""Decode speed against depth, KV methods in turn on one model and one team of threads.

    python bench/bench_depth.py --model qwen2.5-coder-1.5b --depths 2000,8000,16000,32000 \\
        --out bench/results/NAME.json --plot bench/results/NAME
    python bench/bench_depth.py --model bench/shapes/llama3.2-1b --dtype q4_0 --load-format dummy \\
        --depths 8000,32000,128000 --out ...

The rows held are random, the same in every layer, and handed to each method as a prefill would: a step of no
method here takes longer or shorter by what the rows say, and 128,000 real ones would take half an hour.
A method is a name of `--kv`, with parameters as in yakv:recent=128. The first is what the others are compared
with, by the median ratio of samples that follow each other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import depth_plot
import numpy as np
import result_file
from kernel_clock import KernelClock, shown
from prompt_capture import PromptRows, feed, input_widths
from quiet import Meter, wait_for_quiet

import yakvrt
from yakvrt.engine import Engine
from yakvrt.kvcache import open_method
from yakvrt.kvcache.contract import KvSetting
from yakvrt.kvcache.method_label import name_and_args
from yakvrt.ops import element_type


def random_rows(setting: KvSetting, n: int) -> PromptRows:
    """Rows of one layer, seen as those of all."""
    random, widths = np.random.default_rng(1), input_widths(setting)

    def rows(name: str, dtype: Any) -> np.ndarray:
        one = np.empty((n, widths[name]), dtype)
        for first in range(0, n, 4096):
            part = one[first : first + 4096]
            part[:] = random.standard_normal(part.shape, np.float32)
        return np.broadcast_to(one, (setting.config.n_layers, *one.shape))

    dtype = element_type(setting.kind)
    return PromptRows(rows("q", np.float32), rows("k", dtype), rows("v", dtype))


class Side:
    """One method holding `depth` tokens."""

    def __init__(self, engine: Engine, setting: KvSetting, label: str, rows: PromptRows) -> None:
        module, parameters = open_method(*name_and_args(label))
        self.label, self.method = label, module.build(setting, parameters)
        self.slot = self.method.open(setting.ctx_size)
        feed(setting, self.method, self.slot, rows)
        self.held_bytes = self.method.stats()["bytes"]
        self._runner = engine.runner.over(self.method)
        self._backend, self._position = engine._backend, rows.n_tokens
        self.step()

    def step(self) -> None:
        self._runner.decode([self.slot], [self._position], [100])
        self._position += 1

    def kernels(self, reps: int) -> list[dict[str, Any]]:
        """Where a step's time goes."""
        clock = KernelClock(self._backend, self._runner._step("decode", 1)[0])
        for _ in range(reps):
            clock.run()
        return clock.rows()

    def seconds(self, n: int) -> tuple[float, bool]:
        """Of one of n steps, and whether the machine was quiet."""
        with Meter() as meter:
            for _ in range(n):
                self.step()
        return meter.wall_s / n, meter.quiet


def measure(engine: Engine, depth: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one depth."""
    ctx_size = -(-(depth + 1 + args.reps * args.n_gen) // 64) * 64
    setting = engine.runner.setting(1, ctx_size, "f16")
    held = random_rows(setting, depth)
    sides = [Side(engine, setting, label, held) for label in args.kv]
    wait_for_quiet()
    samples = [[side.seconds(args.n_gen) for side in sides] for _ in range(args.reps)]
    rows = []
    for i, side in enumerate(sides):
        rows.append(
            {
                "kv": side.label,
                "depth": depth,
                "tokens_per_s": round(1 / statistics.median(sample[i][0] for sample in samples), 2),
                "ratio": round(statistics.median(sample[0][0] / sample[i][0] for sample in samples), 3),
                "quiet_samples": sum(sample[i][1] for sample in samples),
                "kv_bytes": side.held_bytes,
                **({"kernels": side.kernels(args.reps)} if args.profile else {}),
            }
        )
        print(
            "{depth:7d}  {kv:16} {tokens_per_s:8.2f} tok/s  {ratio:5.2f}x  ".format(**rows[-1])
            + f"{side.held_bytes / 1e6:8.1f} MB of KV cache",
            flush=True,
        )
        for row in rows[-1].get("kernels", []):
            print(shown(row), flush=True)
    return rows


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="Decode speed against depth, KV methods in turn.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--load-format", default="auto", choices=("auto", "dummy"))
    parser.add_argument("--kv", type=lambda text: text.split(","), default=["full", "yakv"])
    parser.add_argument("--depths", type=lambda text: [int(x) for x in text.split(",")], default=[2000, 8000])
    parser.add_argument("--n-gen", type=int, default=8, help="steps of a sample (8)")
    parser.add_argument("--reps", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="also how long every kernel takes")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plot", type=Path, metavar="NAME", help="writes NAME.png and NAME.svg")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    loading = {"threads": args.threads, "dtype": args.dtype, "load_format": args.load_format}
    with yakvrt.load(args.model, ctx_size=64, **loading) as engine:
        for depth in args.depths:
            rows += measure(engine, depth, args)
        result = {
            "bench": "depth",
            **result_file.facts(),
            "model": engine.name,
            "weight_bytes": engine.weight_bytes,
            "threads": engine.n_threads,
            "n_gen": args.n_gen,
            "reps": args.reps,
            "rows": rows,
        }
    if args.out:
        result_file.write(args.out, result)
    if args.plot:
        depth_plot.plot(result, args.plot)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
