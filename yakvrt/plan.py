"""What a model and its KV cache will take: `python -m yakvrt plan --model M --kv K -c N`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from yakvrt import terminal
from yakvrt.cli_arguments import add_model_arguments, at_least, cache_type, chunk_of
from yakvrt.cli_parsing import Parser, parse

if TYPE_CHECKING:
    from yakvrt.config import ModelConfig
    from yakvrt.kvcache.contract import Pools, StepBytes
    from yakvrt.memory_plan import MemoryPlan


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = Parser("plan", "Print what every pool will hold and the context that fits; take nothing.")
    parser.add_argument(
        "--slots", type=at_least(1, 4096), default=1, metavar="N", help="sequences at a time (1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return the exit code: 1 when the context asked for does not fit."""
    return terminal.run(lambda: _plan(parse(build_parser(), argv)))


def _plan(args: argparse.Namespace) -> int:
    from yakvrt.device import gpu_number
    from yakvrt.device_arguments import chosen_device
    from yakvrt.kvcache import open_method
    from yakvrt.memory_plan import Wanted
    from yakvrt.model_source import open_model
    from yakvrt.weights import check_tensors

    on_gpu = gpu_number(args.device) is not None
    method, parameters = open_method(args.kv, args.kv_args, on_gpu=on_gpu)
    kind = cache_type(args)
    with open_model(args.model, load_format=args.load_format, offline=args.offline, progress=True) as source:
        config = source.config
        check_tensors(config, source.tensors)
        pools = partial(method.pools, config, parameters, kind)
        wanted = Wanted(config, source.tensors, args.dtype, chunk_of(args), pools, args.slots, args.ctx_size)
        device = chosen_device(args)
        plan = device.plan(wanted)
        device.close()
        n_tokens = args.ctx_size or plan.context(0)
        read = method.step_bytes(config, parameters, kind, n_tokens)
        record = _record(plan, config, pools(n_tokens), read, args, n_tokens)
        record = {"model": source.name, **record}
    print(json.dumps(record) if args.json else _text(record))
    return 0 if record["fits"] else 1


def _record(
    plan: MemoryPlan,
    config: ModelConfig,
    pools: Pools,
    read: StepBytes,
    args: argparse.Namespace,
    n_tokens: int,
) -> dict[str, Any]:
    transient = {**pools.transient, "hidden states": 4 * config.hidden_dim * n_tokens}
    return {
        "kv": args.kv,
        "kv_args": args.kv_args,
        "n_tokens": n_tokens,
        "n_slots": args.slots,
        "weight_bytes": sum(place.weight_bytes for place in plan.places),
        "workspace_bytes": sum(place.work_bytes for place in plan.places),
        "slot_device_bytes": dict(pools.device),
        "slot_host_bytes": dict(pools.host),
        "prompt_bytes": transient,
        "step_device_bytes": read.device,
        "step_host_bytes": read.host,
        "places": [
            {
                "name": place.name,
                "total_bytes": place.weight_bytes + place.work_bytes + place.kv_bytes(n_tokens),
                "available_bytes": place.available_bytes,
            }
            for place in plan.places
        ],
        "largest_context": plan.largest_context,
        "model_context": config.context_len,
        "fits": n_tokens <= plan.largest_context,
    }


def _text(record: dict[str, Any]) -> str:
    n_tokens, n_slots = record["n_tokens"], record["n_slots"]
    sequences = terminal.counted(n_slots, "slot")
    title = f"{record['model']} with --kv {record['kv']}: {sequences} of {n_tokens} tokens"

    def line(what: str, n_bytes: float, remark: str = "") -> str:
        return f"  {what:<48}{n_bytes / 1e6:>12.1f} MB{remark}"

    lines = [
        title,
        line("weights", record["weight_bytes"]),
        line("steps, program", record["workspace_bytes"]),
    ]
    for place in ("device", "host"):
        for what, n_bytes in record[f"slot_{place}_bytes"].items():
            remark = f"  {n_bytes / n_tokens:.0f} bytes a token"
            lines.append(line(f"{place}: {what}", n_slots * n_bytes, remark))
    lines += [line(f"while a prompt is read: {what}", n) for what, n in record["prompt_bytes"].items()]
    lines.append(line("in every step: read of device pools", n_slots * record["step_device_bytes"]))
    lines.append(line("in every step: rows from the host", n_slots * record["step_host_bytes"]))
    for place in record["places"]:
        remark = f"  of {place['available_bytes'] / 1e6:.1f} MB free"
        lines.append(line(f"total of {place['name']}", place["total_bytes"], remark))
    largest = f"the largest context that fits is {record['largest_context']} tokens"
    trained = f"the model was trained for {record['model_context']}"
    lines.append(f"{'fits' if record['fits'] else 'DOES NOT FIT'}; {largest}, {trained}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
