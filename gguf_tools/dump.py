"""`python -m gguf_tools dump FILE`: shows a file's metadata and tensors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from gguf_tools.terminal import run, shown


def build_parser() -> argparse.ArgumentParser:
    """The flags of this verb."""
    parser = argparse.ArgumentParser(prog="gguf_tools dump", description="Show a GGUF file's contents.")
    parser.add_argument("model", help="a .gguf file")
    parser.add_argument("--no-tensors", action="store_true", help="leave the tensors out")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="JSON with the structure of gguf-dump")
    form.add_argument("--markdown", action="store_true", help="tables in Markdown")
    form.add_argument("--data-offset", action="store_true", help="only the byte where tensor data begin")
    form.add_argument("--data-alignment", action="store_true", help="only the alignment of tensor data")
    parser.add_argument("--json-array", action="store_true", help="JSON with the contents of arrays too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    args = build_parser().parse_args(argv)
    return run(lambda: _dump(args))


def _dump(args: argparse.Namespace) -> int:
    from gguf_tools.listing import as_json, data_start, table_text
    from gguf_tools.reader import GGUFFile

    with GGUFFile(args.model) as file:
        if args.data_offset:
            print(data_start(file))
        elif args.data_alignment:
            print(file.alignment)
        elif args.markdown:
            from gguf_tools.markdown_listing import markdown

            print(markdown(args.model, file, tensors=not args.no_tensors))
        elif args.json or args.json_array:
            import json

            print(json.dumps(as_json(args.model, file, arrays=args.json_array, tensors=not args.no_tensors)))
        else:
            print(f"* {shown(args.model)}: GGUF version {file.version}, little-endian")
            for line in table_text(file, tensors=not args.no_tensors):
                print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
