"""What a model and its KV cache will take: `python -m yakvrt plan --model M --kv K -c N`."""

from __future__ import annotations

import argparse
import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from yakvrt import terminal
from yakvrt.cli_arguments import add_model_arguments, at_least, cache_type, chunk_of
from yakvrt.cli_parsing import Parser, parse
from yakvrt.plan_text import plan_text

if TYPE_CHECKING:
    from yakvrt.config import ModelConfig
    from yakvrt.device import Device
    from yakvrt.kvcache.contract import Pools, StepBytes
    from yakvrt.memory_plan import MemoryPlan, Wanted
    from yakvrt.model_source import ModelSource

MAX_SLOTS = 4096


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = Parser("plan", "Print what every pool will hold, what fits, and how long a step will take.")
    parser.add_argument(
        "--slots", type=at_least(1, MAX_SLOTS), default=1, metavar="N", help="sequences at a time (1)"
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="time steps of some layers of this model here first (about 15 s), and keep that for later",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return the exit code: 1 when the context asked for does not fit."""
    return terminal.run(lambda: _plan(parse(build_parser(), argv)))


def _plan(args: argparse.Namespace) -> int:
    from yakvrt.calibration import calibrate, setting_of, timed_for
    from yakvrt.device import gpu_number
    from yakvrt.device_arguments import chosen_device
    from yakvrt.kvcache import open_method
    from yakvrt.memory_plan import Wanted
    from yakvrt.prediction import predict
    from yakvrt.weights import check_tensors

    on_gpu = gpu_number(args.device) is not None
    method, parameters = open_method(args.kv, args.kv_args, on_gpu=on_gpu)
    kind = cache_type(args)
    with _model(args) as source:
        config = source.config
        check_tensors(config, source.tensors)
        pools = partial(method.pools, config, parameters, kind)
        wanted = Wanted(config, source.tensors, args.dtype, chunk_of(args), pools, args.slots, args.ctx_size)
        setting = setting_of(args, source, parameters, kind)
        device = chosen_device(args)
        try:
            n_tokens = args.ctx_size or device.plan(wanted).context(0)
            most_slots = _most_slots(device, wanted, n_tokens)
            plan = device.plan(wanted)
            if args.calibrate:
                plan.context(0)  # raises where the weights alone do not fit
                # slots of all depths are held at once, together up to 7/3 of the deepest
                depth, n_slots = min(n_tokens, plan.largest_context // 3), min(args.slots, max(1, most_slots))
                timed = timed_for(method, parameters, kind, args.dtype, depth, n_slots)
                with terminal.Bar("timing") as bar:
                    calibrate(args, setting, source, device, plan, timed, bar.loading)
        finally:
            device.close()
        read = method.step_bytes(config, parameters, kind, n_tokens)
        given = setting, source, args.dtype, read, n_tokens, args.slots
        record = {
            "model": source.name,
            **_record(plan, config, pools(n_tokens), read, args, n_tokens),
            "largest_slots": most_slots,
            "link_bytes_per_token": read.host if plan.host_rows else 0,
            "prediction": predict(*given, on_gpu=on_gpu, host_rows=plan.host_rows),
        }
    print(json.dumps(record) if args.json else plan_text(record))
    return 0 if record["fits"] else 1


@contextmanager
def _model(args: argparse.Namespace) -> Iterator[ModelSource]:
    """The model, or its configuration with random weights where it would have to be fetched."""
    from yakvrt.hub import config_alone
    from yakvrt.model_source import open_model

    config = config_alone(args.model, offline=args.offline) if args.load_format == "auto" else None
    if config is None:
        with open_model(
            args.model, load_format=args.load_format, offline=args.offline, progress=True
        ) as source:
            yield source
        return
    terminal.note(f"{args.model} is not on this machine: its config.json is planned, with weights as bf16")
    with open_model(str(config), load_format="dummy") as source:
        yield replace(source, name=args.model)


def _most_slots(device: Device, wanted: Wanted, n_tokens: int) -> int:
    """Slots of n_tokens tokens that fit."""

    def too_many(n_slots: int) -> bool:
        return device.plan(replace(wanted, n_slots=n_slots)).largest_context < n_tokens

    return bisect_left(range(1, MAX_SLOTS + 1), True, key=too_many)


def _record(
    plan: MemoryPlan,
    config: ModelConfig,
    pools: Pools,
    read: StepBytes,
    args: argparse.Namespace,
    n_tokens: int,
) -> dict[str, Any]:
    from yakvrt.device import gpu_number

    transient = {**pools.transient, "hidden states": 4 * config.hidden_dim * n_tokens}
    device, host, steps = dict(pools.device), dict(pools.host), 0
    if gpu_number(args.device) is not None:
        for held, name, n_bytes in (
            (device, "beside them on a GPU", pools.gpu.device),
            (host, "exact rows beside them", pools.gpu.host),
        ):
            held.update({name: n_bytes} if n_bytes else {})
        if pools.gpu.next_layer:
            transient["exact rows of the layer before"] = pools.gpu.next_layer
        if pools.gpu.step:
            from yakvrt.cuda_device import step_rows

            steps = step_rows(args.slots) * pools.gpu.step
    return {
        "kv": args.kv,
        "kv_args": args.kv_args,
        "n_tokens": n_tokens,
        "n_slots": args.slots,
        "weight_bytes": sum(place.weight_bytes for place in plan.places),
        "workspace_bytes": sum(place.work_bytes for place in plan.places),
        "slot_device_bytes": device,
        "slot_host_bytes": host,
        "prompt_bytes": transient,
        "step_scratch_bytes": steps,
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


if __name__ == "__main__":
    raise SystemExit(main())
