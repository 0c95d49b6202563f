"""`python -m gguf_tools split IN OUT_PREFIX`: cuts a file into parts as llama-gguf-split does."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gguf_tools.terminal import Progress, readable_bytes, run, shown

if TYPE_CHECKING:
    from gguf_tools.reader import GGUFFile, Tensor

SPLIT_NO: Final = "split.no"
SPLIT_COUNT: Final = "split.count"
SPLIT_TENSORS: Final = "split.tensors.count"
# Units as llama-gguf-split takes them: powers of ten.
_UNITS: Final = {"M": 10**6, "G": 10**9}


def build_parser() -> argparse.ArgumentParser:
    """The flags of this verb."""
    parser = argparse.ArgumentParser(prog="gguf_tools split", description="Cut a GGUF file into parts.")
    parser.add_argument("input", type=Path, help="the .gguf file to cut")
    parser.add_argument("prefix", type=Path, help="parts are named PREFIX-00001-of-0000N.gguf")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--split-max-tensors", type=_count, default=128, metavar="N", help="tensors of a part (%(default)s)"
    )
    size.add_argument(
        "--split-max-size", type=_size, metavar="N(M|G)", help="bytes of tensors in a part, 10^6 or 10^9 each"
    )
    parser.add_argument(
        "--no-tensor-first-split", action="store_true", help="only metadata in the first part"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the parts and write nothing")
    parser.add_argument("--force", action="store_true", help="replace parts that are there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    args = build_parser().parse_args(argv)
    return run(lambda: _split(args))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tensors; give 1 or more")
    return int(text)


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d{1,9})([MG])", text)
    if found is None or int(found[1]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give a number with M or G, for example 2G")
    return int(found[1]) * _UNITS[found[2]]


def _split(args: argparse.Namespace) -> int:
    from gguf_tools.file_copy import check_free
    from gguf_tools.reader import GGUFFile
    from gguf_tools.split import MAX_PARTS, part_name

    with GGUFFile(args.input) as file:
        if file.metadata.get(SPLIT_COUNT, 0):
            raise ValueError(f"{args.input}: is a part of a split model; join the parts with merge first")
        parts = _divide(list(file.tensors.values()), file.alignment, args)
        if len(parts) > MAX_PARTS:
            raise ValueError(f"{len(parts)} parts are over the limit of {MAX_PARTS}; allow larger parts")
        paths = [args.prefix.with_name(part_name(args.prefix.name, i, len(parts))) for i in range(len(parts))]
        for path, tensors in zip(paths, parts, strict=True):
            size = readable_bytes(sum(tensor.data.nbytes for tensor in tensors))
            print(f"{shown(str(path))}: {len(tensors)} tensors, {size}")
        if not args.dry_run:
            check_free(paths, args.force)
            _write(file, paths, parts)
    return 0


def _divide(tensors: list[Tensor], alignment: int, args: argparse.Namespace) -> list[list[Tensor]]:
    """Tensors in file order, a new part when the next one would pass the limit."""
    from gguf_tools.writer import padded

    parts: list[list[Tensor]] = [[], []] if args.no_tensor_first_split else [[]]
    n_bytes = 0
    for tensor in tensors:
        next_bytes = padded(tensor.data.nbytes, alignment)
        if args.split_max_size is None:
            full = len(parts[-1]) >= args.split_max_tensors
        else:
            # A tensor above the limit gets a part of its own.
            full = bool(parts[-1]) and n_bytes + next_bytes > args.split_max_size
        if full:
            parts.append([])
            n_bytes = 0
        parts[-1].append(tensor)
        n_bytes += next_bytes
    return parts


def _write(file: GGUFFile, paths: Sequence[Path], parts: Sequence[list[Tensor]]) -> None:
    from gguf_tools.file_copy import copy_tensors, plans
    from gguf_tools.meta_value import ValueType, scalar, stored_values
    from gguf_tools.writer import GGUFWriter

    written: list[Path] = []
    total = sum(tensor.data.nbytes for tensor in file.tensors.values())
    try:
        with Progress("splitting", total) as progress:
            for i, (path, tensors) in enumerate(zip(paths, parts, strict=True)):
                # The first part alone describes the model.
                values = stored_values(file.metadata) if i == 0 else {}
                values |= {
                    SPLIT_NO: scalar(ValueType.UINT16, i),
                    SPLIT_COUNT: scalar(ValueType.UINT16, len(parts)),
                    SPLIT_TENSORS: scalar(ValueType.INT32, len(file.tensors)),
                }
                with GGUFWriter(path, values, plans(tensors), file.alignment) as writer:
                    copy_tensors(tensors, writer, progress)
                written.append(path)
    except BaseException:
        # Some parts without the others are of no use.
        for path in written:
            path.unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    raise SystemExit(main())
