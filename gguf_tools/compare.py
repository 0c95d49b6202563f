"""`python -m gguf_tools compare A B`: differences of two models, tensor by tensor."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_tools.terminal import Progress, run, shown

if TYPE_CHECKING:
    from gguf_tools.chunks import Stored
    from gguf_tools.tensor_difference import Difference


def build_parser() -> argparse.ArgumentParser:
    """The flags of this verb."""
    parser = argparse.ArgumentParser(
        prog="gguf_tools compare",
        description="Compare two models tensor by tensor. Exit code 1 when a tensor is in one of them only, "
        "has another shape, or is farther apart than --tolerance.",
    )
    what = "a .gguf file (or first part), a .safetensors file or a Hugging Face directory"
    parser.add_argument("a", type=Path, help=what)
    parser.add_argument("b", type=Path, help="the other one")
    parser.add_argument(
        "--tolerance", type=float, metavar="X", help="largest difference of a value that is still allowed"
    )
    parser.add_argument("--quiet", action="store_true", help="only the summary and what is wrong")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    args = build_parser().parse_args(argv)
    return run(lambda: _compare(args))


def _compare(args: argparse.Namespace) -> int:
    from gguf_tools.dequantize_compiled import WORTH_FROM
    from gguf_tools.model_tensors import computed, missing, open_tensors
    from gguf_tools.tensor_difference import difference

    with open_tensors(args.a) as a, open_tensors(args.b) as b:
        wrong = missing(a, b, "A", "B", computed(args.a, args.b))
        shared = [name for name in a if name in b and a[name].shape == b[name].shape]
        width = max((len(shown(name)) for name in shared), default=0)
        if not args.quiet and shared:
            figures = f"{'max |d|':>11} {'mean |d|':>11} {'RMSE':>11}  cosine"
            print(f"{'tensor':<{width}}  {'A':<7} {'B':<7} {figures}")
        n_identical, largest, where = 0, 0.0, ""
        n_decoded = sum(math.prod(a[name].shape) for name in shared if a[name].format != b[name].format)
        with Progress("comparing", sum(n_bytes(a[name]) for name in shared)) as progress:
            for name in shared:
                left, right = a[name], b[name]
                found = difference(left, right, progress.add, compiled=n_decoded >= WORTH_FROM)
                n_identical += found.identical
                if found.max_abs > largest:
                    largest, where = found.max_abs, name
                too_far = args.tolerance is not None and not found.max_abs <= args.tolerance
                if too_far:
                    wrong.append(
                        f"{shown(name)}: {found.max_abs:.6g} apart, over the tolerance {args.tolerance}"
                    )
                if not args.quiet:
                    types = f"{left.format.name:<7} {right.format.name:<7}"
                    progress.say(f"{shown(name):<{width}}  {types} {_row(found)}")
    for line in wrong:
        print(line)
    at = f", largest |d| {largest:.6g} in {shown(where)}" if where else ""
    print(f"{len(shared)} tensors compared, {n_identical} identical{at}; {len(wrong)} findings")
    return 1 if wrong else 0


def n_bytes(tensor: Stored) -> int:
    """Bytes of the stored data, without looking at them."""
    return math.prod(tensor.shape[:-1]) * tensor.format.row_bytes(tensor.shape[-1])


def _row(found: Difference) -> str:
    if found.identical:
        return f"{'identical':>11}"
    odd = f"  ({found.n_odd} NaN or infinite on one side)" if found.n_odd else ""
    return f"{found.max_abs:11.4e} {found.mean_abs:11.4e} {found.rmse:11.4e}  {found.cosine:.8f}{odd}"


if __name__ == "__main__":
    raise SystemExit(main())
