"""The flags of `yakvrt bench` and the runs they ask for."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from yakvrt.bench_records import test_name
from yakvrt.cli_arguments import DEFAULT_MODEL, MODEL_FLAGS
from yakvrt.cli_parsing import Parser
from yakvrt.device_arguments import add_device_arguments
from yakvrt.machine_arguments import add_machine_arguments
from yakvrt.record_formats import FORMAT_NAMES
from yakvrt.terminal import UsageError
from yakvrt.trace_file import add_trace_argument
from yakvrt.value_lists import MAX_TOKENS, argument, flat, numbers, words


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
    """One engine to load; None leaves a number to the engine."""

    model: str
    kv: str
    dtype: str
    cache_type: str
    threads: int | None
    n_batch: int | None
    n_ubatch: int | None


def prompt_and_gen(text: str) -> tuple[int, int]:
    """Reads the `pp,tg` pair of -pg.

    Raises: ValueError.
    """
    match = re.fullmatch(r"(\d{1,8}),(\d{1,8})", text)
    if match is None:
        raise ValueError(f"-pg {text!r} is no pair: write prompt and generated tokens as 512,128")
    pp, tg = int(match[1]), int(match[2])
    if max(pp, tg) > MAX_TOKENS:
        raise ValueError(f"-pg {text!r} is over the limit of {MAX_TOKENS}: give smaller numbers")
    return pp, tg


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    p = Parser(
        "bench", "Time prompt processing (pp) and text generation (tg), without tokenizing or sampling."
    )
    tests = p.add_argument_group(
        "tests",
        "Values are lists (a,b) or ranges (first-last, first-last+step, first-last*mult), and flags may be "
        "repeated: all combinations run.",
    )

    def many(*flags: str, read: Callable[[str], list[int] | list[str]], shown: str, help: str) -> None:
        tests.add_argument(*flags, type=argument(read), action="append", metavar=shown, help=help)

    many(*MODEL_FLAGS, read=words, shown="NAME", help=f"name, hub repo, file or directory ({DEFAULT_MODEL})")
    many("-p", "--n-prompt", read=numbers, shown="N", help="prompt tokens (512)")
    many("-n", "--n-gen", read=numbers, shown="N", help="generated tokens (128)")
    pairs = argument(prompt_and_gen)
    tests.add_argument(
        "-pg", type=pairs, action="append", metavar="PP,TG", help="a prompt and generation after it"
    )
    many("-d", "--n-depth", read=numbers, shown="N", help="tokens already in the context (0)")
    many("-b", "--batch-size", read=numbers, shown="N", help="tokens handed over at once (the whole prompt)")
    many("-ub", "--ubatch-size", read=numbers, shown="N", help="prefill chunk (the engine's)")
    many("-t", "--threads", read=numbers, shown="N", help="threads (the physical cores)")
    many("-ctk", "--cache-type-k", read=words, shown="TYPE", help="KV cache type, K and V (f16)")
    many("-ctv", "--cache-type-v", read=words, shown="TYPE", help="the same; may not differ from -ctk")
    many("--kv", read=words, shown="METHOD", help="KV cache method (full)")
    many("--dtype", read=words, shown="TYPE", help="type of the weights (auto)")

    add_device_arguments(p)
    add_machine_arguments(p)
    p.add_argument("-r", "--repetitions", type=int, default=5, metavar="N", help="samples of each test (5)")
    p.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="pause before each test (0)")
    p.add_argument("--no-warmup", action="store_true", help="time the first run as well")
    add_trace_argument(p)
    p.add_argument("--progress", action="store_true", help="say on stderr what is being run")
    p.add_argument("--load-format", choices=("auto", "dummy"), default="auto", help="dummy: random weights")
    p.add_argument("--offline", action="store_true", help="use no network")
    p.add_argument("-o", "--output", choices=FORMAT_NAMES, default="md", help="format on stdout (md)")
    p.add_argument("-oe", "--output-err", choices=FORMAT_NAMES, help="format on stderr as well")
    return p


def plan(args: argparse.Namespace) -> list[tuple[Setup, list[Test]]]:
    """Every engine to load and the tests to run on it, in llama-bench's order.

    Raises: UsageError.
    """
    if args.repetitions < 1 or not 0 <= args.delay < 86400:
        raise UsageError(
            f"-r {args.repetitions} --delay {args.delay:g}: give at least 1 and 0 to 86400 seconds"
        )
    cache_types = flat(args.cache_type_k, ["f16"])
    if flat(args.cache_type_v, cache_types) != cache_types:
        raise UsageError("-ctv differs from -ctk, and K and V of one cache share a type: leave -ctv out")
    threads: list[int | None] = [*flat(args.threads, [])] or [None]
    batches: list[int | None] = [*flat(args.batch_size, [])] or [None]
    ubatches: list[int | None] = [*flat(args.ubatch_size, [])] or [None]
    if 0 in (*threads, *batches, *ubatches):
        raise UsageError("-t, -b and -ub must be at least 1: leave out the 0")

    tests = []
    for depth in flat(args.n_depth, [0]):
        tests += [Test(n, 0, depth) for n in flat(args.n_prompt, [512]) if n]
        tests += [Test(0, n, depth) for n in flat(args.n_gen, [128]) if n]
        tests += [Test(pp, tg, depth) for pp, tg in args.pg or [] if pp or tg]
    if not tests:
        raise UsageError("nothing to run: -p, -n and -pg are all 0, give one of them tokens")
    setups = itertools.product(
        flat(args.model, [DEFAULT_MODEL]),
        flat(args.kv, ["full"]),
        flat(args.dtype, ["auto"]),
        cache_types,
        threads,
        batches,
        ubatches,
    )
    return [(Setup(*values), tests) for values in setups]


def shown_columns(setups: Sequence[Setup]) -> list[str]:
    """The record fields that tell the rows apart, for the Markdown table."""
    columns = {
        "type_k": {setup.cache_type for setup in setups} - {"f16"},
        **dict.fromkeys(
            ("kv_method", "kv_moved_bytes", "kv_hit_rate", "kv_link_gbps", "kv_link_part"),
            {setup.kv for setup in setups} - {"full"},
        ),
        "dtype": {setup.dtype for setup in setups} - {"auto"},
        "n_batch": {setup.n_batch for setup in setups} - {None},
        "n_ubatch": {setup.n_ubatch for setup in setups} - {None},
    }
    return [name for name, unusual in columns.items() if unusual]
