"""The flags of `yakvrt bench` and the runs they ask for."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from yakvrt.bench_records import FORMATS, test_name

MAX_VALUES = 1000
MAX_TOKENS = 1 << 24
RANGE = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?")
Values = TypeVar("Values")


@dataclass(frozen=True, slots=True)
class Test:
    """One thing to time: n_prompt tokens in, n_gen tokens out, on top of n_depth tokens of context."""

    n_prompt: int
    n_gen: int
    n_depth: int

    @property
    def name(self) -> str:
        return test_name(self.n_prompt, self.n_gen, self.n_depth)

    @property
    def n_tokens(self) -> int:
        return self.n_prompt + self.n_gen + self.n_depth


@dataclass(frozen=True, slots=True)
class Setup:
    """One engine to load; None leaves the choice to the engine."""

    model: str
    kv: str
    cache_type: str
    threads: int | None
    n_batch: int
    n_ubatch: int | None


def numbers(text: str) -> list[int]:
    """Reads `a,b`, `first-last`, `first-last+step` and `first-last*mult` in any mixture.

    Raises: ValueError.
    """
    values: list[int] = []
    for part in text.split(","):
        match = RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(
                f"{part!r} is no number or range: write 512, 128-1024, 128-1024+128 or 128-1024*2"
            )
        first = int(match[1])
        last = int(match[2] or first)
        factor = int(match[4] or 1)
        if match[3] == "*" and (first < 1 or factor < 2):
            raise ValueError(f"the range {part!r} never ends: start at 1 or more and multiply by 2 or more")
        if factor < 1 or last < first or last > MAX_TOKENS:
            raise ValueError(f"the range {part!r} must rise by 1 or more and stay at or below {MAX_TOKENS}")
        value = first
        while value <= last:
            values.append(value)
            value = value * factor if match[3] == "*" else value + factor
            if len(values) > MAX_VALUES:
                raise ValueError(f"{text!r} holds more than {MAX_VALUES} values: take larger steps")
    return values


def prompt_and_gen(text: str) -> tuple[int, int]:
    """Reads the `pp,tg` pair of -pg.

    Raises: ValueError.
    """
    match = re.fullmatch(r"(\d{1,8}),(\d{1,8})", text)
    if match is None:
        raise ValueError(f"-pg {text!r} is no pair: write prompt and generated tokens as 512,128")
    return int(match[1]), int(match[2])


def words(text: str) -> list[str]:
    """Reads a list of names.

    Raises: ValueError.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"{text!r} has an empty name: write the names as a,b")
    return names


def _argument(read: Callable[[str], Values]) -> Callable[[str], Values]:
    """The reader with its sentence kept, which argparse shows for this exception only."""

    def checked(text: str) -> Values:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    p = argparse.ArgumentParser(
        prog="yakvrt bench",
        description="Times prompt processing (pp) and text generation (tg), without tokenizing or sampling.",
        epilog="Values may be lists (a,b) and ranges (first-last, first-last+step, first-last*mult), and "
        "flags may be repeated: all combinations run.",
    )
    tests = p.add_argument_group("tests, every combination of them")

    def many(*flags: str, read: Callable[[str], list[int] | list[str]], shown: str, help: str) -> None:
        tests.add_argument(*flags, type=_argument(read), action="extend", metavar=shown, help=help)

    many(
        "-m", "--model", read=words, shown="NAME", help="model name, directory or file (default smollm2-135m)"
    )
    many("-p", "--n-prompt", read=numbers, shown="N", help="prompt tokens (default 512)")
    many("-n", "--n-gen", read=numbers, shown="N", help="generated tokens (default 128)")
    pairs = _argument(prompt_and_gen)
    tests.add_argument(
        "-pg", type=pairs, action="append", metavar="PP,TG", help="a prompt, then generation after it"
    )
    many("-d", "--n-depth", read=numbers, shown="N", help="tokens already in the context (default 0)")
    many("-b", "--batch-size", read=numbers, shown="N", help="tokens handed over at once (default 2048)")
    many(
        "-ub",
        "--ubatch-size",
        read=numbers,
        shown="N",
        help="tokens computed at once (default: the engine's)",
    )
    many("-t", "--threads", read=numbers, shown="N", help="threads (default: the physical cores)")
    many(
        "-ctk", "--cache-type-k", read=words, shown="TYPE", help="type of the keys in the cache (default f16)"
    )
    many("-ctv", "--cache-type-v", read=words, shown="TYPE", help="type of the values (default: as the keys)")
    many("--kv", read=words, shown="METHOD", help="how the KV cache is kept (default full)")

    p.add_argument(
        "-r", "--repetitions", type=int, default=5, metavar="N", help="samples of each test (default 5)"
    )
    p.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="pause before each test")
    p.add_argument("--no-warmup", action="store_true", help="time the first run as well")
    p.add_argument("--progress", action="store_true", help="say on stderr what is being run")
    p.add_argument("--offline", action="store_true", help="use files on this machine only")
    p.add_argument(
        "-o", "--output", choices=list(FORMATS), default="md", help="format on stdout (default md)"
    )
    p.add_argument("-oe", "--output-err", choices=list(FORMATS), help="format on stderr as well")
    return p


def plan(args: argparse.Namespace) -> list[tuple[Setup, list[Test]]]:
    """Every engine to load and the tests to run on it, in llama-bench's order.

    Raises: ValueError.
    """
    if args.repetitions < 1 or args.delay < 0:
        raise ValueError(
            f"-r {args.repetitions} and --delay {args.delay:g} must be at least 1 and 0: change them"
        )
    cache_types = args.cache_type_k or ["f16"]
    if (args.cache_type_v or cache_types) != cache_types:
        raise ValueError(
            f"-ctk {','.join(cache_types)} and -ctv {','.join(args.cache_type_v)} differ: keys and values of "
            "one cache share a type, so leave -ctv out"
        )
    for flag, values in (("-t", args.threads), ("-b", args.batch_size), ("-ub", args.ubatch_size)):
        if values and min(values) < 1:
            raise ValueError(f"{flag} {min(values)} must be at least 1: give a larger number")

    # As llama-bench: the defaults of -p and -n hold unless only -pg was given.
    tests = []
    for depth in args.n_depth or [0]:
        tests += [Test(n, 0, depth) for n in (args.n_prompt if args.n_prompt is not None else [512]) if n]
        tests += [Test(0, n, depth) for n in (args.n_gen if args.n_gen is not None else [128]) if n]
        tests += [Test(pp, tg, depth) for pp, tg in args.pg or [] if pp or tg]
    if not tests:
        raise ValueError("nothing to run: -p, -n and -pg are all 0, give one of them tokens")
    setups = itertools.product(
        args.model or ["smollm2-135m"],
        args.kv or ["full"],
        cache_types,
        args.threads or [None],
        args.batch_size or [2048],
        args.ubatch_size or [None],
    )
    return [(Setup(*values), tests) for values in setups]


def shown_columns(setups: Sequence[Setup]) -> list[str]:
    """The record fields that tell the rows apart, for the Markdown table."""
    columns = {
        "type_k": {setup.cache_type for setup in setups} - {"f16"},
        "kv_method": {setup.kv for setup in setups} - {"full"},
        "n_batch": {setup.n_batch for setup in setups} - {2048},
        "n_ubatch": {setup.n_ubatch for setup in setups} - {None},
    }
    return [name for name, unusual in columns.items() if unusual]
