"""`python -m gguf_tools merge FIRST OUT`: joins the parts of a split model into one file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gguf_tools.terminal import Progress, readable_bytes, run, shown


def build_parser() -> argparse.ArgumentParser:
    """The flags of this verb."""
    parser = argparse.ArgumentParser(prog="gguf_tools merge", description="Join the parts of a split model.")
    parser.add_argument("first", type=Path, help="the first part, STEM-00001-of-0000N.gguf")
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument("--dry-run", action="store_true", help="check the parts and write nothing")
    parser.add_argument("--force", action="store_true", help="replace OUT when it is there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    args = build_parser().parse_args(argv)
    return run(lambda: _merge(args))


def _merge(args: argparse.Namespace) -> int:
    from gguf_tools.file_copy import check_free, copy_tensor, plans
    from gguf_tools.meta_value import stored_values
    from gguf_tools.part_writer import SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS
    from gguf_tools.split import SplitFile, part_paths
    from gguf_tools.writer import GGUFWriter

    with SplitFile(part_paths(args.first)) as model:
        first = model.parts[0]
        if SPLIT_COUNT not in model.metadata:
            raise ValueError(f"{args.first}: is not a part of a split model; name a ...-00001-of-0000N.gguf")
        values = stored_values(first.metadata)
        for key in (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS):
            values.pop(key, None)
        tensors = list(model.tensors.values())
        total = sum(tensor.data.nbytes for tensor in tensors)
        what = f"{len(tensors)} tensors, {readable_bytes(total)}, from {len(model.parts)} parts"
        if args.dry_run:
            print(f"{shown(str(args.output))}: {what}; not written (--dry-run)")
            return 0
        check_free([args.output], args.force)
        with (
            Progress("merging", total) as progress,
            GGUFWriter(args.output, values, plans(tensors), first.alignment) as writer,
        ):
            for tensor in tensors:
                copy_tensor(tensor, writer, progress)
    print(f"{shown(str(args.output))}: {what}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
