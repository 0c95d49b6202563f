"""The flags that say how large the parts of a model may be, for every verb that writes parts."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gguf_tools.part_writer import PartLimits

# Units as llama-gguf-split takes them: powers of ten.
_UNITS: Final = {"M": 10**6, "G": 10**9}


def add_split_flags(parser: argparse.ArgumentParser, max_tensors: int | None = None) -> None:
    """Adds the three flags; `max_tensors` is the number of tensors where neither limit is given."""
    size = parser.add_mutually_exclusive_group()
    shown = f" ({max_tensors})" if max_tensors else ""
    size.add_argument(
        "--split-max-tensors", type=_count, default=max_tensors, metavar="N",
        help=f"tensors of a part{shown}",
    )  # fmt: skip
    size.add_argument(
        "--split-max-size", type=_size, metavar="N(M|G)", help="bytes of tensors in a part, 10^6 or 10^9 each"
    )
    parser.add_argument(
        "--no-tensor-first-split", action="store_true", help="only metadata in the first part"
    )


def part_limits(args: argparse.Namespace) -> PartLimits | None:
    """What the flags say; None when the model is to be one file."""
    from gguf_tools.part_writer import PartLimits

    if args.split_max_size is not None:
        return PartLimits(max_bytes=args.split_max_size, no_tensor_first=args.no_tensor_first_split)
    if args.split_max_tensors is not None:
        return PartLimits(max_tensors=args.split_max_tensors, no_tensor_first=args.no_tensor_first_split)
    return None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tensors; give 1 or more")
    return int(text)


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d{1,9})([MG])", text)
    if found is None or int(found[1]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give a number with M or G, for example 2G")
    return int(found[1]) * _UNITS[found[2]]
