"""`python -m gguf_tools get FILE KEY`: prints one metadata value."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gguf_tools.terminal import run, shown

if TYPE_CHECKING:
    from gguf_tools.metadata import Metadata


def build_parser() -> argparse.ArgumentParser:
    """The flags of this verb."""
    parser = argparse.ArgumentParser(prog="gguf_tools get", description="Print one metadata value.")
    parser.add_argument("model", help="a .gguf file")
    parser.add_argument("key", help="the metadata key, for example general.architecture")
    parser.add_argument("--json", action="store_true", help="print the value as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    args = build_parser().parse_args(argv)
    return run(lambda: _get(args))


def known_key(metadata: Metadata, key: str) -> str:
    """The key itself.

    Raises: ValueError when the file does not have it; the message names near ones.
    """
    if key in metadata:
        return key
    from difflib import get_close_matches

    near = get_close_matches(key, metadata, 3, 0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`dump` lists the keys"
    raise ValueError(f"the file has no metadata key {key[:80]!r}; {hint}")


def _get(args: argparse.Namespace) -> int:
    import json

    from gguf_tools.listing import scalar_text
    from gguf_tools.meta_value import ValueType, item_type
    from gguf_tools.reader import GGUFFile

    with GGUFFile(args.model) as file:
        key = known_key(file.metadata, args.key)
        value = file.metadata[key]
        value_type = ValueType(file.metadata.place(key)[0])
        if value_type is ValueType.ARRAY:
            value_type = item_type(file.metadata, key)
    if args.json:
        print(json.dumps(value, ensure_ascii=not sys.stdout.isatty()))
        return 0
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            # A pipe gets what the file holds; a terminal must not be steered by it.
            print(shown(item, keep="\n\t") if sys.stdout.isatty() else item)
        else:
            print(json.dumps(item) if isinstance(item, list) else scalar_text(value_type, item))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
