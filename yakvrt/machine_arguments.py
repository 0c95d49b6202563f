"""The flags of where a model runs on the machine, under llama.cpp's names."""

from __future__ import annotations

import argparse
from typing import Any

from yakvrt.cli_parsing import kind

MAX_CPUS = 1 << 16


def _mask(text: str) -> frozenset[int]:
    """The bits of a hexadecimal number, with or without 0x."""
    digits = text.lower().removeprefix("0x")
    if not digits or len(digits) > MAX_CPUS // 4 or digits.strip("0123456789abcdef"):
        raise ValueError(text)
    bits = int(digits, 16)
    if not bits:
        raise ValueError(text)
    return frozenset(i for i in range(bits.bit_length()) if bits >> i & 1)


def _range(text: str) -> frozenset[int]:
    low, high = text.split("-")
    first, last = int(low), int(high)
    if not 0 <= first <= last < MAX_CPUS:
        raise ValueError(text)
    return frozenset(range(first, last + 1))


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """CPUs, NUMA nodes and memory."""
    add = parser.add_argument_group("machine").add_argument
    add(
        *("-C", "--cpu-mask"),
        type=kind("a hexadecimal mask of CPUs like f or 0xff00", _mask),
        metavar="HEX",
        help="CPUs to run on (those the process may use)",
    )
    add(
        *("-Cr", "--cpu-range"),
        type=kind("a range of CPUs like 0-3", _range),
        metavar="LO-HI",
        help="the same as a range; adds to -C",
    )
    add("--cpu-strict", choices=("0", "1"), default="0", help="1: a CPU of its own for every thread (0)")
    add(
        "--numa",
        choices=("distribute", "isolate", "numactl"),
        help="threads on all nodes, on this one, or as numactl says",
    )
    add("--mlock", action="store_true", help="keep the weights in memory when it gets short")
    add("--tile-cache", action="store_true", help="keep the repacked weights on disk for a faster start")
    add("--no-mmap", action="store_false", dest="mmap", help="read the tile cache, do not map it")


def machine_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags mean to yakvrt.load()."""
    from yakvrt.cpu.affinity import Affinity

    cpus = sorted((args.cpu_mask or frozenset()) | (args.cpu_range or frozenset()))
    return {
        "affinity": Affinity(tuple(cpus), args.cpu_strict == "1", args.numa or ""),
        "mlock": args.mlock,
        "tile_cache": args.tile_cache,
        "mmap": args.mmap,
    }
