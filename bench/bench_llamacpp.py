"""yakvrt, llama.cpp and, if asked for, transformers on the same model, in turn, in one process.

    pip install -e ".[bench]"
    python bench/bench_llamacpp.py --model smollm2-135m --depths 0,512,2048 --out bench/results/NAME.json
    python -m gguf_tools convert FILE.gguf --outfile DIR --outtype bf16    # for --transformers DIR

llama.cpp runs through llama-cpp-python's low-level calls as llama-bench would run it: the same number of
threads, batches of 512, f16 KV, its own default for flash attention, a mapped file with its repacking on,
logits of the last token only. transformers runs in bfloat16 on as many threads, a prompt in one go. Each side
waits until the other's threads have stopped spinning. Samples beside other work are marked and do not count
(quiet.py). --kv full,yakv lets yakvrt run once for every KV method.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import result_file
from llamacpp import LlamaCpp
from quiet import MAX_OTHER_CPUS
from taking_turns import Logits, Row, Side, in_own_thread, measure
from transformers_side import Transformers

SEED = 1234


def agreement(ours: Logits, theirs: Logits) -> dict[str, Any]:
    """How far the two sides' next-token distributions are apart: nothing is timed before it is compared."""
    p, q = (
        np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (ours.astype(float), theirs.astype(float))
    )
    divergence = float((q * np.log(np.maximum(q, 1e-30) / np.maximum(p, 1e-30))).sum())
    return {"same_argmax": bool(ours.argmax() == theirs.argmax()), "kl_divergence": round(divergence, 5)}


def parser() -> argparse.ArgumentParser:
    """The bench's flags."""

    def counts(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    p = argparse.ArgumentParser(
        description="yakvrt against llama.cpp and transformers on the same model, in turn, in one process."
    )
    p.add_argument(
        "--model", default="smollm2-135m", help="name or path of a GGUF model (default smollm2-135m)"
    )
    p.add_argument(
        "--llama-file",
        type=Path,
        action="append",
        default=[],
        metavar="GGUF",
        help="one more file for llama.cpp",
    )
    p.add_argument(
        "--transformers",
        type=Path,
        metavar="DIR",
        help="the same model as a Hugging Face directory, for transformers and torch",
    )
    p.add_argument(
        "--depths", type=counts, default=[0, 512, 2048], help="tokens in the context (default 0,512,2048)"
    )
    p.add_argument("--kv", default="full", help="KV methods of yakvrt; ratios are the first one's (full)")
    p.add_argument("--no-llamacpp", action="store_true", help="yakvrt's sides only")
    p.add_argument("--tests", default="tg,pp", help="tg, pp or both (default)")
    p.add_argument("--n-gen", type=int, default=64, help="tokens of a tg sample (default 64)")
    p.add_argument("--n-prompt", type=int, default=512, help="tokens of a pp sample (default 512)")
    p.add_argument("--reps", type=int, default=7, help="quiet samples of each side (default 7)")
    p.add_argument("--threads", type=int, help="threads of either side (default: what yakvrt takes)")
    p.add_argument("--out", type=Path, help="result file, for instance bench/results/NAME.json")
    return p


def main() -> int:
    """Runs the bench; the last line of stdout is one JSON object."""
    args = parser().parse_args()
    import yakvrt
    from yakvrt.hub import resolve

    path = resolve(args.model).weights[0]
    tests = {"tg": args.n_gen, "pp": args.n_prompt}
    tests = {name: tests[name] for name in args.tests.split(",")}
    ctx_size = max(args.depths) + max(tests.values())

    sides, engines, load_s = [], [], {}
    for kv in args.kv.split(","):
        began, name = time.perf_counter(), "yakvrt" if kv == "full" else f"yakvrt {kv}"
        load = functools.partial(
            yakvrt.load, str(path), ctx_size=ctx_size, threads=args.threads, cache_type="f16", kv=kv
        )
        engines.append(in_own_thread(load))
        sides.append(Side(name, engines[-1].session()))
        load_s[name] = time.perf_counter() - began
    engine = engines[0]
    for file in [] if args.no_llamacpp else [path, *args.llama_file]:
        began, name = time.perf_counter(), f"llama.cpp {file.name}"
        sides.append(Side(name, in_own_thread(LlamaCpp, file, ctx_size, engine.n_threads)))
        load_s[name] = time.perf_counter() - began
    if args.transformers:
        began, name = time.perf_counter(), f"transformers bf16 {args.transformers.name}"
        sides.append(Side(name, in_own_thread(Transformers, args.transformers, engine.n_threads)))
        load_s[name] = time.perf_counter() - began

    random_ids = random.Random(SEED)
    ids = [random_ids.randrange(engine.config.vocab_size) for _ in range(ctx_size + 1)]
    rows: list[Row] = []
    agreements: list[dict[str, Any]] = []
    for depth in sorted(args.depths):
        logits = [side.go_to(ids[: depth or 16]) for side in sides]
        agreements += [
            {"depth": depth, "side": side.name, **agreement(logits[0], other)}
            for side, other in zip(sides[1:], logits[1:], strict=True)
        ]
        for side in sides:
            side.depth = depth
        for test, n_tokens in tests.items():
            new = measure(sides, test, ids[depth : depth + n_tokens], args.reps)
            rows += new
            for row in new:
                ratio = new[0].median_tps / row.median_tps
                noisy = "" if row.counted else f"  (others never below {MAX_OTHER_CPUS} CPUs)"
                speed = f"{row.test:>6} @ d{depth:<6} {row.median_tps:10.1f} tok/s  {ratio:6.2f}x"
                print(f"{speed}  {row.side}{noisy}", flush=True)

    ratios = [
        {
            "test": ours.test,
            "depth": ours.depth,
            "against": row.side,
            "ratio": round(ours.median_tps / row.median_tps, 3),
        }
        for row in rows
        for ours in rows
        if ours.side == sides[0].name != row.side and (ours.test, ours.depth) == (row.test, row.depth)
    ]
    result = {
        "bench": "llamacpp",
        **result_file.facts(),
        "model": path.name,
        "threads": engine.n_threads,
        "load_s": {name: round(seconds, 3) for name, seconds in load_s.items()},
        "agreement": agreements,
        "ratios": ratios,
        "rows": [row.summary() for row in rows],
    }
    if args.out:
        samples = [[asdict(sample) for sample in row.samples] for row in rows]
        full = [{**row.summary(), "samples": taken} for row, taken in zip(rows, samples, strict=True)]
        result_file.write(args.out, {**result, "rows": full})
    for side in sides:
        side.close()
    for each in engines:
        in_own_thread(each.close)
    print(json.dumps(result, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
