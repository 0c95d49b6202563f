"""Ratios of two result files of `yakvrt bench` or `yakvrt transfer` (-o json or jsonl), with their spread.

    python bench/compare.py before.json after.json
    python bench/compare.py full.json yakv.json --ignore kv_method

Records of the same test are one row, whose samples are taken together where a file has several of them, of
turns. A ratio is that of B's median time to A's, so below 1 B is faster; the spread is the middle half of the
ratios of every sample of B to every sample of A.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MOST_BYTES = 1 << 30
# what makes two records the same test, where they have it
TEST_FIELDS = (
    *(
        "model_filename",
        "model_type",
        "n_prompt",
        "n_gen",
        "n_depth",
        "kv_method",
        "dtype",
        "type_k",
        "type_v",
    ),
    *("test", "kind", "n_rows", "row_bytes", "row_order", "row_offset", "pages", "pool_bytes"),
    *("method", "direction", "memory", "grid", "loads", "beside", "node", "gathered_by"),
    *("link_gbps", "link_latency_us", "n_batch", "n_ubatch", "n_threads", "backends", "gpu_info"),
)

Test = tuple[tuple[str, Any], ...]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Raises: OSError, ValueError for what holds no records with samples."""
    if not path.is_file():
        raise ValueError(f"{path} is no file: name two that bench or transfer -o json wrote")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is larger than {MOST_BYTES >> 20} MiB")
    text = path.read_text(encoding="utf-8")
    try:
        records = (
            json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        )
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    for record in records:
        samples = record.get("samples_ns") if isinstance(record, dict) else None
        if not isinstance(samples, list) or not samples or not all(_is_time(ns) for ns in samples):
            raise ValueError(
                f"{path} holds no records with samples_ns: make it with bench or transfer -o json"
            )
    return list(records)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def by_test(records: Sequence[Mapping[str, Any]], ignored: Sequence[str]) -> dict[Test, list[float]]:
    """The samples of every test, in the order of the file."""
    found: dict[Test, list[float]] = {}
    for record in records:
        test = tuple((name, record[name]) for name in TEST_FIELDS if name in record and name not in ignored)
        found.setdefault(test, []).extend(map(float, record["samples_ns"]))
    return found


def compared(a: Mapping[Test, Sequence[float]], b: Mapping[Test, Sequence[float]]) -> list[dict[str, Any]]:
    """A row for every test that both have."""
    rows = []
    for test in a:
        if test in b:
            ratios = np.divide.outer(np.array(b[test]), np.array(a[test]))
            low, high = np.quantile(ratios, (0.25, 0.75))
            medians = statistics.median(a[test]), statistics.median(b[test])
            times = {"a_ns": medians[0], "b_ns": medians[1], "ratio": medians[1] / medians[0]}
            rows.append({"test": dict(test), **times, "low": float(low), "high": float(high)})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; of what names a test only that in which tests differ."""
    tests = [row["test"] for row in rows]
    names = [name for name in tests[0] if len({json.dumps(test.get(name)) for test in tests}) > 1]
    names = names or ["test" if "test" in tests[0] else "n_prompt"]
    lines = [[*names, "A ms", "B ms", "B / A", "middle half"], ["---"] * (len(names) + 4)]
    for row in rows:
        named = [str(row["test"].get(name, "")) for name in names]
        times = [f"{row[side] / 1e6:.4g}" for side in ("a_ns", "b_ns")]
        lines.append([*named, *times, f"{row['ratio']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; 1 where there is nothing to compare."""
    parser = argparse.ArgumentParser(description="Ratios of two result files of bench or transfer.")
    parser.add_argument("a", type=Path, metavar="A")
    parser.add_argument("b", type=Path, metavar="B")
    parser.add_argument("--ignore", metavar="FIELD,...", default="", help="fields in which tests may differ")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    args = parser.parse_args(argv)
    ignored = [name for name in args.ignore.split(",") if name]
    try:
        if unknown := [name for name in ignored if name not in TEST_FIELDS]:
            raise ValueError(f"--ignore {unknown[0]}: tests are told apart by {', '.join(TEST_FIELDS)}")
        a, b = (by_test(read_records(path), ignored) for path in (args.a, args.b))
        rows = compared(a, b)
        if not rows:
            raise ValueError("the files have no test in common: --ignore FIELD leaves out what differs")
    except (OSError, ValueError) as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(rows) if args.json else table(rows))
    if alone := len(a) + len(b) - 2 * len(rows):
        print(f"compare: {alone} tests are in one file alone", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
