"""Decode steps that `plan` predicts against steps of the whole model, by KV method and depth.

    python bench/bench_plan.py --model qwen2.5-coder-1.5b --depths 512,1500,4000,12000,24000,32000 \\
        --out bench/results/NAME.json

A pass times some layers of the model, as `plan --calibrate` does, then the whole model at every depth, since
the machine's speed drifts. Depths beside those that are timed (512, 2048, 8192, ...) show what lies
between. Both sides hold random rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import result_file
from bench_depth import Side, random_rows
from quiet import settle, wait_for_quiet

import yakvrt
from yakvrt.calibration import least_bytes
from yakvrt.cpu_device import CpuDevice
from yakvrt.engine import Engine
from yakvrt.kvcache import open_method
from yakvrt.kvcache.method_label import name_and_args
from yakvrt.model_source import open_model
from yakvrt.step_times import StepTimes
from yakvrt.step_timing import Timed, depths_up_to, layers_to_time, some_layers, time_steps


def calibrated(engine: Engine, label: str, deepest: int, args: argparse.Namespace) -> StepTimes:
    """As `plan --calibrate -c deepest`."""
    device = CpuDevice(args.threads)
    try:
        with open_model(args.model, load_format=args.load_format, offline=True) as source:
            some = some_layers(source, layers_to_time(source.config, engine.weight_bytes, least_bytes()))
            timed = Timed(*open_method(*name_and_args(label)), "f16", args.dtype, depths_up_to(deepest), (1,))
            return time_steps(some, device, timed)
    finally:
        device.close()


def sides(engine: Engine, label: str, args: argparse.Namespace) -> dict[int, Side]:
    """The whole model, holding rows of every depth."""
    held = {}
    for depth in args.depths:
        steps = args.passes * args.reps * args.n_gen + 1
        ctx_size = -(-(depth + steps) // 64) * 64
        setting = engine.runner.setting(1, ctx_size, "f16")
        held[depth] = Side(engine, setting, label, random_rows(setting, depth))
    return held


def rows_of(engine: Engine, label: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one method."""
    whole, deepest = sides(engine, label, args), -(-max(args.depths) // 1024) * 1024
    found: dict[int, list[tuple[float, float, bool]]] = {depth: [] for depth in args.depths}
    for _ in range(args.passes):
        settle()
        wait_for_quiet()
        times = calibrated(engine, label, deepest, args)
        settle()
        taken: dict[int, list[tuple[float, bool]]] = {depth: [] for depth in args.depths}
        for _ in range(args.reps):
            for depth, side in whole.items():
                taken[depth].append(side.seconds(args.n_gen))
        for depth, samples in taken.items():
            measured_ms = statistics.median(seconds for seconds, _ in samples) * 1e3
            predicted_ms = times.step_ms(engine.config.n_layers, depth) or 0.0
            found[depth].append((predicted_ms, measured_ms, all(quiet for _, quiet in samples)))
    rows = []
    for depth, passes in found.items():
        ratios = [predicted / measured for predicted, measured, _ in passes]
        row = {
            "kv": label,
            "depth": depth,
            "predicted_ms": round(statistics.median(each[0] for each in passes), 3),
            "measured_ms": round(statistics.median(each[1] for each in passes), 3),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "quiet_passes": sum(each[2] for each in passes),
            "n_timed_layers": times.n_layers,
        }
        rows.append(row)
        cells = [label, depth, row["predicted_ms"], row["measured_ms"], row["ratio"]]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print("| " + " | ".join(map(str, [*cells, spread])) + " |", flush=True)
    return rows


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="Predicted decode steps against measured ones.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--load-format", default="auto", choices=("auto", "dummy"))
    parser.add_argument("--kv", type=lambda text: text.split(","), default=["full", "yakv"])
    parser.add_argument(
        "--depths", type=lambda text: [int(x) for x in text.split(",")], default=[512, 1000, 3000, 6000, 8000]
    )
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--n-gen", type=int, default=8, help="steps of a sample (8)")
    parser.add_argument("--reps", type=int, default=5, help="samples of a depth in a pass (5)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    loading = {"threads": args.threads, "dtype": args.dtype, "load_format": args.load_format}
    print("| method | tokens held | predicted ms | measured ms | ratio | passes |")
    print("|---|---|---|---|---|---|")
    with yakvrt.load(args.model, ctx_size=64, offline=True, **loading) as engine:
        rows = [row for label in args.kv for row in rows_of(engine, label, args)]
        result = {
            "bench": "plan",
            **result_file.facts(),
            "model": engine.name,
            "weight_bytes": engine.weight_bytes,
            "threads": engine.n_threads,
            "passes": args.passes,
            "n_gen": args.n_gen,
            "reps": args.reps,
            "worst_ratio": max((row["ratio"] for row in rows), key=lambda ratio: abs(ratio - 1)),
            "rows": rows,
        }
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
