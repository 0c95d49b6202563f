"""The flags of `yakvrt transfer`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from yakvrt.cli_parsing import Parser, kind
from yakvrt.device import gpu_number
from yakvrt.machine_facts import UNITS
from yakvrt.record_formats import FORMAT_NAMES
from yakvrt.transfer.gpu_case import DIRECTIONS, GPU_TESTS, METHODS
from yakvrt.transfer.plan import MAX_BYTES, TESTS
from yakvrt.value_lists import argument, numbers, words


def byte_counts(text: str) -> list[int]:
    """Reads lists and ranges of numbers that may end in K, M or G.

    Raises: ValueError.
    """
    plain = re.sub(r"(\d{1,13})([KMG])\b", lambda m: str(int(m[1]) * UNITS[m[2]]), text.upper())
    return numbers(plain, MAX_BYTES)


def _device(text: str) -> str:
    gpu_number(text)
    return text.lower()


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    p = Parser(
        "transfer",
        "Time copies and gathers of host memory and what a link to a GPU adds: modelled, or measured on one.",
    )
    listed = "; ".join(f"{name}: {text}" for name, text in TESTS.items())
    sweep = p.add_argument_group(
        "tests",
        f"{listed}. Values are lists (a,b) or ranges (first-last*mult), bytes may end in K, M or G. "
        "All sizes, row sizes and numbers of rows are combined, at the first value of every other flag; "
        "then the further values of each of those flags alone.",
    )
    add = sweep.add_argument
    counts, names = argument(byte_counts), argument(words)
    add("--test", type=names, action="append", metavar="NAME", help="names of tests (all)")
    add("--size", type=counts, metavar="N", help="bytes of a copy (4K-1G*2)")
    add("--row-bytes", type=counts, metavar="N", help="bytes of a row (32-64K*2)")
    add("--rows", type=counts, metavar="N", help="rows of a gather (64-64K*4)")
    add("--order", type=names, metavar="NAME", help="how rows follow (random,sorted)")
    add("--offset", type=counts, metavar="N", help="bytes before the first row (0,16)")
    add("--pages", type=names, metavar="NAME", help="pages of the memory (huge,small)")
    add(
        "-t",
        "--threads",
        type=argument(numbers),
        metavar="N",
        help="threads (physical cores, halved down to 1)",
    )
    add(
        "--pool",
        type=counts,
        metavar="N",
        help="bytes that rows are spread over (1G, or 4 last caches; GPU: 1G-64G*2)",
    )
    add("--quick", action="store_true", help="fewer sizes, a smaller pool, shorter samples")

    on_gpu = "; ".join(f"{name}: {text}" for name, text in GPU_TESTS.items())
    gpu = p.add_argument_group(
        "GPU",
        f"With --device cuda the tests are {on_gpu}. Rows come from the first --pool. What a whole run "
        "finds is kept for the runtime (tuning/ in the cache directory).",
    )
    gpu.add_argument(
        "-dev",
        "--device",
        type=kind("cpu, cuda or cuda:N", _device),
        default="cpu",
        metavar="DEV",
        help="cpu, cuda or cuda:N (cpu)",
    )
    gpu.add_argument(
        "--cubins",
        metavar="DIR",
        type=Path,
        help="kernels that `kernels build` made (else they are compiled)",
    )
    gpu.add_argument(
        "--memory",
        type=names,
        metavar="NAME",
        help="kinds of host memory (pinned,pageable,registered,registered-huge,write-combined)",
    )
    gpu.add_argument("--direction", type=names, metavar="NAME", help=f"of copies ({','.join(DIRECTIONS)})")
    gpu.add_argument("--method", type=names, metavar="NAME", help=f"of taking rows ({','.join(METHODS)})")
    gpu.add_argument(
        "--grid", type=counts, metavar="N", help="blocks of the kernel that reads rows (16,1-132)"
    )

    link = p.add_argument_group(
        "link", "Adds modelled records: a gather and one copy, a copy a row, reads of rows by the GPU itself."
    )
    link.add_argument("--link-gbps", type=float, metavar="GB/S", help="rate of the link, 10^9 bytes a second")
    link.add_argument("--latency-us", type=float, metavar="US", help="what starting a transfer takes")

    p.add_argument("-r", "--repetitions", type=int, default=9, metavar="N", help="samples, at least 5 (9)")
    p.add_argument("-o", "--output", choices=FORMAT_NAMES, default="md", help="format on stdout (md)")
    p.add_argument("--plot", type=Path, metavar="DIR", help="draws PNG and SVG files into the directory")
    p.add_argument(
        "--html", type=Path, metavar="FILE", help="writes a report with tables and plots, in one file"
    )
    return p
