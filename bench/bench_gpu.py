"""Every CUDA kernel on a real GPU: against its truth at real sizes, then how near it is to ceilings that the
same run measures. Takes numpy, cuda-bindings and a directory of cubins; scripts/test-gpu starts it.

    scripts/test-gpu --cubins cubins -o bench/results/NAME.json
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import gpu_steps
import gpu_transfer
import result_file
from cuda_cases.case import PRODUCT

STALL_S = 120  # without a word from the process that asks the GPU


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser."""
    parser = argparse.ArgumentParser(
        prog="scripts/test-gpu", description="Every CUDA kernel on a GPU: right or wrong, then how fast."
    )
    parser.add_argument(
        "--cubins", type=Path, default=Path("cubins"), help="from python -m yakvrt kernels build (cubins)"
    )
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="cases and models whose names hold the text"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the steps and stop")
    parser.add_argument("--quick", action="store_true", help="right or wrong only: nothing is timed")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU (0)")
    parser.add_argument("--limit", type=float, metavar="S", default=450, help="seconds for all (450)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the results as JSON")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs it; 1 where a step failed, was not reached, or there is no GPU."""
    args = build_parser().parse_args(argv)
    names = [step.name for step in gpu_steps.chosen_steps(args.only, args.quick)]
    if args.list:
        print("\n".join(names))
        return 0
    if not names:
        print(f"test-gpu: no case or model holds {args.only!r}: --list prints them", file=sys.stderr)
        return 1
    options = ["--only", args.only, *(["--quick"] if args.quick else [])]
    command = [str(Path(gpu_steps.__file__)), str(args.cubins), str(args.device)]
    started, all_of_it = time.monotonic(), not args.only and not args.quick
    limit_s = args.limit - (gpu_transfer.RESERVED_S if all_of_it else 0)
    conducted = conduct([sys.executable, *command], options, len(names), limit_s)

    def transfers() -> dict[str, Any]:
        left = args.limit - (time.monotonic() - started)
        return gpu_transfer.examine_transfers(gpu_transfer.command(args.cubins, args.device), left)

    return report(conducted, names, args.output, transfers if all_of_it else None)


def conduct(command: list[str], options: list[str], n_steps: int, limit_s: float) -> Iterator[dict[str, Any]]:
    """The events of gpu_steps.py, which is started again behind a step that it did not survive."""
    started, first = time.monotonic(), 0
    while first < n_steps:
        child = subprocess.Popen(
            [*command, str(first), *options], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        lines: Queue[str] = Queue()
        Thread(target=_read, args=(child, lines), daemon=True).start()
        open_step, why, reached = None, "the process ended", False
        try:
            while True:
                left = limit_s - (time.monotonic() - started)
                line = lines.get(timeout=max(0.0, min(STALL_S, left)))
                if not line:
                    break
                if not line.startswith("{"):  # of a library
                    continue
                event = json.loads(line)
                if "refused" in event:
                    yield event
                    return
                if "step" in event:
                    done, reached = "facts" in event or "error" in event, True
                    open_step, first = (None if done else event["step"]), event["step"] + 1
                yield event
        except Empty:
            why = f"no answer for {STALL_S} s"
        finally:
            child.kill()
            child.wait()
        if time.monotonic() - started >= limit_s:
            return
        if open_step is not None:
            yield {"step": open_step, "error": why}
        elif not reached:
            yield {"refused": "the process that asks the GPU ended before its first step"}
            return


def _read(child: subprocess.Popen[str], lines: Queue[str]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line)
    lines.put("")


def report(
    events: Iterable[dict[str, Any]],
    names: list[str],
    output: Path | None,
    transfers: Callable[[], dict[str, Any]] | None = None,
) -> int:
    """Prints what comes as it comes, `transfers` behind it, then a table; the exit code."""
    started = time.monotonic()
    result: dict[str, Any] = {"device": {}, "ceilings": {}, "steps": []}
    for event in events:
        if "refused" in event:
            print(f"test-gpu: {event['refused']}", file=sys.stderr)
            if not result["steps"]:
                return 1
        if "device" in event:
            result["device"] = event["device"]
        if "facts" in event or "error" in event:
            row = {"name": names[event["step"]], "error": event.get("error"), **event.get("facts", {})}
            result["ceilings"] = row.get("ceilings") or result["ceilings"]
            rate(row, result["ceilings"])
            result["steps"].append(row)
            print("\n".join(step_lines(row)), flush=True)
    told = {row["name"] for row in result["steps"]}
    result["not_reached"] = [name for name in names if name not in told]
    if transfers and result["device"]:
        result["transfer"] = transfers()
        shown = {name: result["transfer"][name] for name in ("error", "link") if name in result["transfer"]}
        print(f"transfer: {len(result['transfer']['records'])} records, {json.dumps(shown)}")
    result["seconds"] = round(time.monotonic() - started, 1)
    if output:
        result_file.write(output, {"bench": "gpu", **result_file.facts(), **result})
    failed = [row["name"] for row in result["steps"] if row["error"] or row.get("not_loaded")]
    of_steps = len(failed)
    if result.get("transfer", {}).get("error"):
        failed.append("transfer")
    print("\n".join(table(result)))
    print(f"{len(told) - of_steps} of {len(names)} steps are right, {result['seconds']:.0f} s")
    for name in failed:
        print(f"FAILED {name}")
    if result["not_reached"]:
        print(f"not reached: {', '.join(result['not_reached'])}")
    return 1 if failed or result["not_reached"] else 0


def rate(row: dict[str, Any], ceilings: dict[str, float | None]) -> None:
    """Adds rates to the launches of a row, and their parts of the ceilings."""
    for launch in row.get("launches", []):
        of_product = launch["limit"] == PRODUCT
        reached = (
            launch["n_operations"] / launch["us"] / 1e6
            if of_product
            else launch["n_bytes"] / launch["us"] / 1e3
        )
        ceiling = ceilings.get(launch["limit"])
        launch["unit"], launch["rate"] = "TFLOP/s" if of_product else "GB/s", round(reached, 1)
        launch["of_limit"] = round(reached / ceiling, 3) if ceiling else None


def step_lines(row: dict[str, Any]) -> list[str]:
    """A step as it ended; a case has a line for each launch."""
    if row["error"]:
        return [f"FAILED {row['name']}: {row['error']}"]
    if "of_allowed" not in row:  # a question, or a model that cannot be read here
        facts = {key: value for key, value in row.items() if key not in ("name", "error")}
        return [f"{row['name']}: {json.dumps(facts)}"]
    lines = [f"{row['name']:<46} {row['of_allowed']:7.3f}"]
    for launch in row.get("launches", []):
        part = f"{launch['of_limit']:4.0%}" if launch["of_limit"] is not None else "   -"
        measured = (
            f"{launch['us']:10.1f} us {launch['rate']:8.1f} {launch['unit']:<7} {part} of {launch['limit']}"
        )
        lines.append(f"    {launch['kernel']:<50} {measured}")
    if "by_grid" in row:
        lines.append(f"    GB/s by blocks: {json.dumps(row['by_grid'])}")
    return lines


def table(result: dict[str, Any]) -> list[str]:
    """The device and its ceilings; then every launch, the one farthest from its ceiling first."""
    device = result["device"]
    lines = ["", f"{device.get('name', 'no device')}, cubins for {device.get('cubins')}"]
    for name, reached in result["ceilings"].items():
        unit = "TFLOP/s" if name == PRODUCT else "GB/s"
        lines.append(f"  {name}: " + (f"{reached:.0f} {unit}" if reached is not None else "no cuBLAS here"))
    launches = [launch for row in result["steps"] for launch in row.get("launches", [])]
    for launch in sorted(launches, key=lambda launch: launch["of_limit"] or 0):
        part = f"{launch['of_limit']:6.1%}" if launch["of_limit"] is not None else "     -"
        lines.append(f"{part}  {launch['us']:10.1f} us  {launch['limit']:<12}  {launch['kernel']}")
    return lines


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as `--list | head` expects
    raise SystemExit(main())
