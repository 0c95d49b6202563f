"""Decode steps on a GPU, modelled from what they read: nothing is run. By KV method, context and batch.

    python bench/model_decode.py --out bench/results/NAME.json

The model is yakvrt.modelled_step, with parts of the rates that data sheets give: a step is the slower of
device and link. in_turns_ms hides the link behind no more than the attention of other turns of the batch (see
yakvrt/cuda/record_yakv.py), and counts the launches of turns; in_one_turn_ms hides nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import result_file

from yakvrt.cuda.kernel_choice import TURN_NS, fetch_turns
from yakvrt.cuda.resource_report import H200
from yakvrt.kvcache import open_method
from yakvrt.kvcache.method_label import name_and_args
from yakvrt.model_source import open_model
from yakvrt.modelled_step import WeightReads, modelled_step, weight_reads

SHAPES = Path(__file__).parent / "shapes"
MODELS = ("llama3.1-8b", "qwen3-30b-a3b")
METHODS = ("full", "yakv", "yakv:slot_cache=2")
GPU_GB = 141.0  # H200 data sheet
LINK_GBPS = 55.4  # pinned copies to an H100 on PCIe Gen5 x16, nvbandwidth 0.10 (published)
RESERVED_GB = 3.0  # kernels, graphs, activations
COLUMNS = (
    *("context", "method", "batch", "device ms", "link ms", "one turn ms", "turns: ms", "tok/s"),
    *("GPU GB", "host GB", "fits"),
)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def weights_of(shape: Path) -> WeightReads:
    with open_model(str(shape), load_format="dummy", offline=True, progress=False) as source:
        return weight_reads(source.config, source.tensors, "auto")


def in_turns_ms(weights_ms: float, attention_ms: float, link_ms: float, n_turns: int, n_layers: int) -> float:
    """Rows of the first turn come once it is scored; while they come, the next is."""
    first, last = attention_ms / n_turns, link_ms / n_turns
    launches_ms = n_layers * (n_turns - 1) * TURN_NS / 1e6
    return weights_ms + max(first + link_ms, attention_ms + last) + launches_ms


def row(
    weights: WeightReads, label: str, n_tokens: int, batch: int, args: argparse.Namespace
) -> dict[str, Any]:
    """A step of `batch` slots of n_tokens tokens each."""
    method, parameters = open_method(*name_and_args(label))
    given = weights.config, parameters, "bf16", n_tokens
    pools, read = method.pools(*given), method.step_bytes(*given)
    missing = 1 - (args.hit_rate if "cache of rows" in pools.device else 0)
    moved = read._replace(host=round(read.host * missing))
    device_gbps, link_gbps = args.device_gbps * args.device_part, args.link_gbps * args.link_part
    device_ms, link_ms = step = modelled_step(weights, moved, batch, device_gbps, link_gbps)
    n_layers, selectors = weights.config.n_layers, pools.device.get("selectors", 0)
    n_turns = fetch_turns(batch, selectors // n_layers) if link_ms else 1
    attention_ms = batch * read.device / device_gbps / 1e6
    sides = device_ms - attention_ms, attention_ms, link_ms
    gpu_gb = (weights.held + batch * sum(pools.device.values()) + sum(pools.transient.values())) / 1e9
    return {
        "kv_method": label,
        "n_tokens": n_tokens,
        "batch": batch,
        "device_read_gb": round((weights.of_step(batch) + batch * read.device) / 1e9, 3),
        "link_gb": round(batch * moved.host / 1e9, 3),
        "device_ms": round(device_ms, 2),
        "link_ms": round(link_ms, 2),
        "step_ms": round(step.step_ms, 2),
        "turns": n_turns,
        "in_one_turn_ms": round(in_turns_ms(*sides, 1, n_layers), 2),
        "in_turns_ms": round(in_turns_ms(*sides, n_turns, n_layers), 2),
        "tok_per_s": round(batch / step.step_ms * 1e3, 1),
        "gpu_gb": round(gpu_gb + RESERVED_GB, 1),
        "host_gb": round(batch * sum(pools.host.values()) / 1e9, 1),
        "fits": gpu_gb + RESERVED_GB <= args.gpu_gb,
    }


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="Decode steps on a GPU, modelled.")
    parser.add_argument("--contexts", default="65536,131072")
    parser.add_argument("--device-gbps", type=float, default=H200.bytes_per_ns, help="of memory (H200's)")
    parser.add_argument(
        "--device-part", type=float, default=0.85, help="of it that is reached (0.85, the goal)"
    )
    parser.add_argument("--link-gbps", type=float, default=LINK_GBPS, help="of the link (PCIe Gen5 x16's)")
    parser.add_argument("--link-part", type=float, default=0.9, help="of it that is reached (0.9, the goal)")
    parser.add_argument("--gpu-gb", type=float, default=GPU_GB, help="memory of the GPU (H200's)")
    parser.add_argument("--hit-rate", type=float, default=0.75, help="of rows with a cache (0.75)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for model in MODELS:
        weights = weights_of(SHAPES / model)
        print(f"{model}, bfloat16: {weights.held / 1e9:.1f} GB of weights; MODELLED, not measured")
        print("| " + " | ".join(COLUMNS) + " |")
        print("|" + "---|" * len(COLUMNS))
        for n_tokens in map(int, args.contexts.split(",")):
            for label in METHODS:
                for batch in BATCHES:
                    made = row(weights, label, n_tokens, batch, args)
                    rows.append({"model": model, **made})
                    cells = [n_tokens, label, batch, made["device_ms"], made["link_ms"]]
                    cells += [made["in_one_turn_ms"], f"{made['turns']}: {made['in_turns_ms']}"]
                    cells += [made["tok_per_s"], made["gpu_gb"], made["host_gb"]]
                    cells += ["yes" if made["fits"] else "no"]
                    print("| " + " | ".join(map(str, cells)) + " |")
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    result = {"bench": "decode", "modelled": True, **result_file.facts(), "settings": settings, "rows": rows}
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
