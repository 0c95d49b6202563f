"""What a trace of `yakvrt generate` or `bench` (--trace FILE) says of every stage, as a table.

    python bench/trace_report.py trace.json

A row is a stage in one kind of step. "mean" is that of its slices on all tracks; "total" and "share" are
those of the track on which most of a step happens (the host's thread, a GPU's first stream); "stall" is the
part of the slices in which threads waited for each other. GB/s: the bytes that the stage reads at least
(weights; keys and values where a token is decoded) by its time on the track that spent most on it.
"(between)" is what no stage covers: Python between the parts of a step.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 31
STEPS = ("decode", "prefill", "store", "restore", "head")  # spans that hold stages


@dataclass(slots=True)
class Stage:
    """Slices of one stage in one kind of step."""

    n: int = 0
    wait_us: float = 0.0
    n_bytes: float = 0.0
    us: dict[int, float] = field(default_factory=dict)  # by track

    def add(self, event: Mapping[str, Any]) -> None:
        self.n += 1
        self.wait_us += event["args"].get("wait_us", 0.0)
        self.n_bytes += event["args"].get("bytes", 0)
        self.us[event["tid"]] = self.us.get(event["tid"], 0.0) + event["dur"]


def read_events(path: Path) -> list[dict[str, Any]]:
    """Raises: OSError, ValueError for what is no trace of yakvrt."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is larger than {MOST_BYTES >> 30} GiB: trace fewer tokens")
    try:
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        slices = [event for event in events if event["ph"] == "X"]
        for event in slices:
            _ = event["pid"], event["tid"], event["cat"], event["args"].items(), event["ts"] + event["dur"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no trace of yakvrt: make it with --trace FILE ({error})") from None
    if not slices:
        raise ValueError(f"{path} holds no slices: nothing ran while it was made")
    return list(events)


def rows_of(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for every process, kind of step and stage; stages come in the order of the file."""
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    slices = [event for event in events if event["ph"] == "X"]
    rows = []
    for process, name in names.items():
        own = [event for event in slices if event["pid"] == process]
        for kind in STEPS:
            steps_us = [e["dur"] for e in own if e["name"] == kind and e["cat"] != kind]
            stages: dict[str, Stage] = {}
            for event in own:
                if event["cat"] == kind:
                    stages.setdefault(event["name"], Stage()).add(event)
            all_us = sum(steps_us)
            if stages and all_us:
                named = {"process": name, "step": kind}
                track = _leading(list(stages.values()))
                rows += [
                    {**named, "stage": title, **_numbers(stage, track, all_us)}
                    for title, stage in stages.items()
                ]
                rest_us = all_us - sum(stage.us.get(track, 0.0) for stage in stages.values())
                rows.append({**named, **_between(rest_us, all_us, len(steps_us))})
    return rows


def _leading(stages: Sequence[Stage]) -> int:
    """The track on which most of the steps happens."""
    tracks = {track for stage in stages for track in stage.us}
    return max(sorted(tracks), key=lambda track: sum(stage.us.get(track, 0.0) for stage in stages))


def _numbers(stage: Stage, track: int, all_us: float) -> dict[str, Any]:
    all_tracks_us, most_us = sum(stage.us.values()), max(stage.us.values())
    return {
        "slices": stage.n,
        "mean_us": all_tracks_us / stage.n,
        "total_ms": stage.us.get(track, 0.0) / 1e3,
        "share": stage.us.get(track, 0.0) / all_us,
        "stall": stage.wait_us / all_tracks_us if all_tracks_us else 0.0,
        "gb_per_s": stage.n_bytes / most_us / 1e3 if most_us and stage.n_bytes else None,
    }


def _between(rest_us: float, all_us: float, n_steps: int) -> dict[str, Any]:
    times = {"mean_us": rest_us / n_steps, "total_ms": rest_us / 1e3, "share": rest_us / all_us}
    return {"stage": "(between)", "slices": n_steps, **times, "stall": 0.0, "gb_per_s": None}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a table for each process."""
    lines = []
    for process in dict.fromkeys(row["process"] for row in rows):
        lines += ["", process, ""] if lines else [process, ""]
        cells = [["step", "stage", "slices", "mean us", "total ms", "share", "stall", "GB/s"], ["---"] * 8]
        for row in rows:
            if row["process"] == process:
                rate = "" if row["gb_per_s"] is None else f"{row['gb_per_s']:.1f}"
                times = [f"{row['mean_us']:.1f}", f"{row['total_ms']:.2f}"]
                shares = [f"{row['share']:.1%}", f"{row['stall']:.1%}"]
                cells.append([row["step"], row["stage"], str(row["slices"]), *times, *shares, rate])
        lines += [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="What a trace says of every stage.")
    parser.add_argument("trace", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    args = parser.parse_args(argv)
    try:
        rows = rows_of(read_events(args.trace))
        if not rows:
            raise ValueError(f"{args.trace} holds no whole step")
    except (OSError, ValueError) as error:
        print(f"trace_report: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(rows) if args.json else table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
