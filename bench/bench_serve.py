"""A server under load: throughput of concurrent clients against one, and latencies against the arrival rate.

    python bench/bench_serve.py --model FILE.gguf --rates 1,2,4 --peer --out bench/results/NAME.json

Starts `yakvrt serve` and, with --peer, llama-cpp-python's server on the same file, and loads them in turn
with the same prompts, which begin differently. Clients send streaming completions. Closed loop: 1 and
--clients clients, each with its next request when the last is answered. Open loop: requests come at random,
--rates a second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import result_file
from load_client import Answer, Load, quantiles
from server_process import free_port, llama_cpp, ours, serving


def main() -> int:
    """Runs it and writes the result."""

    def numbers(text: str) -> list[float]:
        return [float(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description="A server under load.")
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--peer", action="store_true", help="llama-cpp-python's server too")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=24, help="of a closed-loop run (24)")
    parser.add_argument("--rates", type=numbers, default=[], help="requests a second, open loop")
    parser.add_argument("--open-requests", type=int, default=40, help="of an open-loop run (40)")
    parser.add_argument("--words", type=int, default=60, help="of a prompt (60)")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = {"yakvrt": free_port()}
        command = ours(args.model, ports["yakvrt"], args.clients, 1024, args.threads)
        stack.enter_context(serving(command, ports["yakvrt"], logs / "yakvrt"))
        if args.peer:
            ports["llama-cpp-python"] = port = free_port()
            command = llama_cpp(args.model, port, 1024, args.threads)
            stack.enter_context(serving(command, port, logs / "llama-cpp-python"))
        loads = {
            name: Load(f"http://127.0.0.1:{port}", Path(args.model).name, args.words, args.max_tokens)
            for name, port in ports.items()
        }
        for load in loads.values():
            load.concurrent(args.clients, args.clients, seed=0)  # compiles, and is not counted
        for turn in range(args.reps):
            for n in (1, args.clients):
                for name, load in loads.items():
                    n_requests = args.requests if n > 1 else max(2, args.requests // args.clients)
                    found = load.concurrent(n, n_requests, seed=1 + turn)
                    rows.append(row(name, *found, clients=n, turn=turn))
        for rate in args.rates:
            for name, load in loads.items():
                found = load.open_loop(rate, args.open_requests, seed=100)
                rows.append(row(name, *found, rate=rate))
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "model", "peer")}
    result = {
        "bench": "serve",
        **result_file.facts(),
        "model": Path(args.model).name,
        **settings,
        "rows": rows,
        "ratios": ratios(rows, args.clients),
    }
    print(result["ratios"])
    if args.out:
        result_file.write(args.out, result)
    return 0


def row(name: str, answers: Sequence[Answer], seconds: float, **what: float) -> dict[str, Any]:
    good = [answer for answer in answers if answer.pieces and not answer.error]
    found = {
        "server": name,
        **what,
        "requests": len(answers),
        "failed": len(answers) - len(good),
        "errors": sorted({answer.error for answer in answers if answer.error})[:3],
        "tokens_per_s": round(sum(len(answer.pieces) for answer in good) / seconds, 1),
        "ttft_ms": {k: round(1e3 * v, 1) for k, v in quantiles([each.ttft_s for each in good]).items()},
        "tpot_ms": {k: round(1e3 * v, 2) for k, v in quantiles([each.tpot_s for each in good]).items()},
    }
    print(found, flush=True)
    return found


def ratios(rows: Sequence[dict[str, Any]], clients: int) -> dict[str, float]:
    """Medians over the turns: many clients against one, and against the peer."""

    def rate(name: str, n: int) -> list[float]:
        return [row["tokens_per_s"] for row in rows if row["server"] == name and row.get("clients") == n]

    def median(above: list[float], below: list[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 2)

    found = {"many_to_one": median(rate("yakvrt", clients), rate("yakvrt", 1))}
    if peer := rate("llama-cpp-python", clients):
        found["to_peer"] = median(rate("yakvrt", clients), peer)
        found["to_peer_one"] = median(rate("yakvrt", 1), rate("llama-cpp-python", 1))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
