"""Decode speed by KV method, tokens held and slots, beside what `plan` predicts: how far a context can go.

    python bench/bench_decode.py --model bench/shapes/llama3.2-1b --load-format dummy --dtype q4_0 \\
        --contexts 2k,8k,32k,128k --slots 1,2,4,8 --out bench/results/NAME.json --plot bench/results/NAME

A slot takes in random rows as it would a prompt's; further slots are copies of it. What memory does not take
is left out and said. The prediction comes from times of some layers, as `plan --calibrate` takes them
(yakvrt.step_timing), in turn with the steps of every context: the speed of a machine may change from one
minute to the next. Ctrl-C keeps the contexts that were measured. Methods as in yakv:recent=128.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import decode_plot
import result_file
from quiet import Meter, settle

from yakvrt import terminal
from yakvrt.backend import Backend
from yakvrt.bench import moved
from yakvrt.calibration import least_bytes
from yakvrt.cli_parsing import kind
from yakvrt.config import ModelConfig
from yakvrt.cpu_device import CpuDevice
from yakvrt.device import Device, gpu_number, open_gpu
from yakvrt.free_memory import available_memory
from yakvrt.kvcache import open_method
from yakvrt.kvcache.method_label import name_and_args
from yakvrt.machine_facts import machine_facts
from yakvrt.memory_plan import Wanted
from yakvrt.model_source import open_model
from yakvrt.session_file import check_writable
from yakvrt.step_timing import (
    FilledSlots,
    Steps,
    StepTiming,
    Timed,
    batches_up_to,
    depths_up_to,
    layers_to_time,
    some_layers,
    time_upkeep,
)
from yakvrt.weights import Weights

MARGIN_BYTES = 1 << 30  # of memory, left for what a prompt needs while it is taken in
CHUNK = 256
LAYER_ROUNDS = 3  # for a round of steps: how a layer grows with its depth is multiplied by layers and slots


@dataclass(frozen=True)
class Model:
    """A loaded model, and its name."""

    name: str
    config: ModelConfig
    backend: Backend
    weights: Weights


def counts(text: str) -> list[int]:
    """Of a list as 1,2,8k."""
    found = [
        int(word.removesuffix("k")) * (1024 if word.endswith("k") else 1) for word in text.lower().split(",")
    ]
    if min(found) < 1:
        raise ValueError(text)
    return found


def open_device(args: argparse.Namespace) -> Device:
    number = gpu_number(args.device)
    return CpuDevice(args.threads) if number is None else open_gpu(number, args.cubins)


def timed_as(label: str, args: argparse.Namespace, depths: tuple[int, ...]) -> Timed:
    on_gpu = gpu_number(args.device) is not None
    method, parameters = open_method(*name_and_args(label), on_gpu=on_gpu)
    return Timed(method, parameters, args.kind, args.dtype, depths, batches_up_to(max(args.slots)))


def planned(device: Device, source: Any, timed: Timed, n_slots: int, n_tokens: int) -> int:
    """The context that fits; the device then knows where pools go."""
    config = source.config

    def pools(n: int) -> Any:
        return timed.method.pools(config, timed.parameters, timed.kind, n)

    wanted = Wanted(config, source.tensors, timed.dtype, CHUNK, pools, n_slots, n_tokens)
    return device.plan(wanted).largest_context


@contextmanager
def timing(label: str, weight_bytes: int, args: argparse.Namespace) -> Iterator[StepTiming]:
    """Of some layers, as `plan --calibrate` times them."""
    device = open_device(args)
    timed = timed_as(label, args, depths_up_to(min(max(args.contexts), args.timed)))
    try:
        with open_model(args.model, load_format=args.load_format, offline=True) as source:
            planned(device, source, timed, 1, max(args.contexts))
            some = some_layers(source, layers_to_time(source.config, weight_bytes, least_bytes()))
            yield StepTiming(some, device, timed)
    finally:
        device.close()


def slots_that_fit(model: Model, timed: Timed, n_tokens: int, most: int) -> int:
    """By the method's own count of bytes, beside the weights that are loaded."""
    pools = timed.method.pools(model.config, timed.parameters, timed.kind, n_tokens + 64)
    left = available_memory() - MARGIN_BYTES - sum(pools.transient.values())
    return max(0, min(most, left // pools.slot_bytes))


def rows_of(
    model: Model, label: str, layers: StepTiming, args: argparse.Namespace, deadline: float
) -> Iterator[dict[str, Any]]:
    """The rows of one method, from short contexts to long ones, until memory or time ends."""
    timed, upkeep_ms = timed_as(label, args, ()), None
    for n_tokens in args.contexts:
        n_fit = slots_that_fit(model, timed, n_tokens, max(args.slots))
        for n_slots in (n for n in args.slots if n > n_fit):
            print(f"| {n_tokens} | {label} | {n_slots} | does not fit in memory |")
        if not n_fit or time.monotonic() > deadline:
            print(f"{label} ends before {n_tokens} tokens: {'memory' if not n_fit else 'time'} is used up")
            break
        held = FilledSlots(model.backend, model.config, model.weights, timed, n_fit, n_tokens)
        if upkeep_ms is None:
            upkeep_ms = time_upkeep(held, model.config.n_layers, time.perf_counter)
        batches = {n: Steps(held, model.config.n_layers, n) for n in args.slots if n <= n_fit}
        quiet_rounds, before = dict.fromkeys(batches, 0), held.method.stats()
        for _ in range(args.rounds):  # in turn, since the machine's speed drifts
            settle()
            for _ in range(LAYER_ROUNDS):
                layers.round()
            settle()
            for n_slots, steps in batches.items():
                with Meter() as meter:
                    steps.run(time.perf_counter)
                quiet_rounds[n_slots] += meter.quiet
        times = layers.times()
        moved_bytes, hit_rate = moved(before, held.method.stats())
        for n_slots, steps in batches.items():
            step_ms = steps.step_ms + n_slots * upkeep_ms
            row = {
                "kv": label,
                "depth": n_tokens,
                "slots": n_slots,
                "step_ms": round(step_ms, 3),
                "predicted_ms": round(times.step_ms(model.config.n_layers, n_tokens, n_slots) or 0.0, 3),
                "tokens_per_s": round(n_slots * 1e3 / step_ms, 2),
                "kv_bytes": int(float(held.method.stats()["bytes"]) * n_slots / n_fit),
                "kv_moved_bytes": moved_bytes,
                "kv_hit_rate": round(hit_rate, 4),
                "upkeep_ms": round(n_slots * upkeep_ms, 3),
                "quiet_rounds": quiet_rounds[n_slots],
                "samples_ms": [[round(ms, 3) for ms in taken] for taken in steps.taken_ms],
            }
            cells = [row[name] for name in ("depth", "kv", "slots", "step_ms", "predicted_ms")]
            cells += [row["tokens_per_s"], round(row["kv_bytes"] / 1e6)]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
            yield row
        del held, batches, steps


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """The result; where it is interrupted, of what was measured, and it says so."""
    for label in args.kv:
        open_method(*name_and_args(label))
    if args.out:
        check_writable(args.out)
    device = open_device(args)
    rows: list[dict[str, Any]] = []
    interrupted = False
    try:
        with open_model(args.model, load_format=args.load_format, offline=True) as source:
            planned(device, source, timed_as(args.kv[0], args, ()), max(args.slots), max(args.contexts))
            backend = device.open(None)
            weights = device.load(source, args.dtype, None)
            model = Model(source.name, source.config, backend, weights)
        print("| tokens held | method | slots | step ms | predicted ms | tokens/s | KV MB |")
        print("|---|---|---|---|---|---|---|", flush=True)
        try:
            for label in args.kv:
                with timing(label, weights.n_bytes, args) as layers:
                    rows.extend(rows_of(model, label, layers, args, time.monotonic() + args.most_s))
        except KeyboardInterrupt:
            if not rows:
                raise
            interrupted = True
            terminal.note("interrupted: what was measured is kept")
        return {
            "bench": "decode",
            **result_file.facts(),
            "model": model.name,
            "dtype": args.dtype,
            "weight_bytes": weights.n_bytes,
            "threads": backend.n_threads,
            "rounds": args.rounds,
            "machine": asdict(machine_facts()),
            "interrupted": interrupted,
            "rows": rows,
        }
    finally:
        device.close()


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="Decode speed by KV method, tokens held and slots.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--load-format", default="auto", choices=("auto", "dummy"))
    parser.add_argument("--kv", type=lambda text: text.split(","), default=["full", "yakv"])
    parser.add_argument("--kind", default="f16", help="type of exact rows (f16)")
    listed = kind("a list of numbers from 1 on, as 1,8,32k", counts)
    parser.add_argument("--contexts", type=listed, default=counts("2k,8k,32k,128k"))
    parser.add_argument("--slots", type=listed, default=[1, 2, 4, 8])
    parser.add_argument("--timed", type=int, default=32768, help="deepest that a prediction times (32768)")
    parser.add_argument("--rounds", type=int, default=4, help="of four steps each, at least 2 (4)")
    parser.add_argument("--most-s", type=float, default=300, help="of a method, no new context after (300)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cubins")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plot", type=Path, metavar="NAME", help="writes NAME.png and NAME.svg")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f"--rounds {args.rounds} is too few for a median: give at least 2")
    result = measured(args)
    if args.out:
        result_file.write(args.out, result)
    if args.plot:
        decode_plot.plot(result, args.plot)
    print(json.dumps(result))
    return terminal.INTERRUPTED if result["interrupted"] else 0


if __name__ == "__main__":
    raise SystemExit(terminal.run(main))
