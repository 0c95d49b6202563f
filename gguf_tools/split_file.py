"""`python -m gguf_tools split IN OUT_PREFIX`: cuts a file into parts as llama-gguf-split does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gguf_tools.split_flags import add_split_flags, part_limits
from gguf_tools.terminal import Progress, readable_bytes, run, shown

# llama-gguf-split's own.
DEFAULT_TENSORS: Final = 128


def build_parser() -> argparse.ArgumentParser:
    """The flags of this verb."""
    parser = argparse.ArgumentParser(prog="gguf_tools split", description="Cut a GGUF file into parts.")
    parser.add_argument("input", type=Path, help="the .gguf file to cut")
    parser.add_argument("prefix", type=Path, help="parts are named PREFIX-00001-of-0000N.gguf")
    add_split_flags(parser, DEFAULT_TENSORS)
    parser.add_argument("--dry-run", action="store_true", help="list the parts and write nothing")
    parser.add_argument("--force", action="store_true", help="replace parts that are there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    args = build_parser().parse_args(argv)
    return run(lambda: _split(args))


def _split(args: argparse.Namespace) -> int:
    from gguf_tools.file_copy import check_free, copy_tensor, plans
    from gguf_tools.meta_value import stored_values
    from gguf_tools.part_writer import SPLIT_COUNT, PartLimits, divide, part_files, write_parts
    from gguf_tools.reader import GGUFFile

    with GGUFFile(args.input) as file:
        if file.metadata.get(SPLIT_COUNT, 0):
            raise ValueError(f"{args.input}: is a part of a split model; join the parts with merge first")
        limits = part_limits(args) or PartLimits(max_tensors=DEFAULT_TENSORS)
        parts = divide(plans(file.tensors.values()), file.alignment, limits)
        paths = part_files(args.prefix, len(parts))
        for path, part in zip(paths, parts, strict=True):
            size = readable_bytes(sum(plan.n_bytes for plan in part))
            print(f"{shown(str(path))}: {len(part)} tensors, {size}")
        if not args.dry_run:
            check_free(paths, args.force)
            total = sum(tensor.data.nbytes for tensor in file.tensors.values())
            with Progress("splitting", total) as progress:
                write_parts(
                    paths,
                    parts,
                    stored_values(file.metadata),
                    file.alignment,
                    lambda writer, plan: copy_tensor(file.tensors[plan.name], writer, progress),
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
