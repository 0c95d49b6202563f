"""`python -m gguf_tools set-metadata FILE KEY VALUE`: changes a number inside a file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gguf_tools.terminal import run

if TYPE_CHECKING:
    from gguf_tools.meta_value import ValueType

# Keys that say where data lie or which other files belong to this one.
GUARDED: Final = ("general.alignment", "split.no", "split.count", "split.tensors.count")
TRUTH: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def build_parser() -> argparse.ArgumentParser:
    """The flags of this verb."""
    parser = argparse.ArgumentParser(
        prog="gguf_tools set-metadata",
        description="Change a number or truth value in place; strings and arrays: see new-metadata.",
    )
    parser.add_argument("model", help="the .gguf file to change")
    parser.add_argument("key", help="the metadata key, which must exist")
    parser.add_argument("value", help="the new value")
    parser.add_argument("--dry-run", action="store_true", help="say what would change and change nothing")
    parser.add_argument(
        "--force", action="store_true", help="also change keys that decide how the file is read"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    args = build_parser().parse_args(argv)
    return run(lambda: _set(args))


def _set(args: argparse.Namespace) -> int:
    from gguf_tools.get import known_key
    from gguf_tools.listing import scalar_text
    from gguf_tools.meta_value import ValueType, scalar
    from gguf_tools.reader import GGUFFile

    with GGUFFile(args.model) as file:
        key = known_key(file.metadata, args.key)
        type_id, offset = file.metadata.place(key)
        value_type = ValueType(type_id)
        if value_type in (ValueType.STRING, ValueType.ARRAY):
            raise ValueError(
                f"{key} is {'a string' if value_type is ValueType.STRING else 'an array'}; only numbers and "
                "truth values are changed in place, so write a changed copy with new-metadata"
            )
        if key in GUARDED and not args.force:
            raise ValueError(f"{key} decides how the file is read; --force changes it nevertheless")
        before = bytes(file.metadata.stored(key))
        before_text = scalar_text(value_type, file.metadata[key])
    after = scalar(value_type, _parse(args.value, value_type)).stored
    change = f"{key}: {before_text} -> {_text(after, value_type)} ({value_type.name} at byte {offset})"
    if before == after:
        print(f"{key} is {before_text} already")
    elif args.dry_run:
        print(f"{change}; not written (--dry-run)")
    else:
        _overwrite(args.model, offset, before, bytes(after))
        print(change)
    return 0


def _parse(text: str, value_type: ValueType) -> float:
    from gguf_tools.listing import integer_types
    from gguf_tools.meta_value import ValueType

    try:
        if value_type is ValueType.BOOL:
            return TRUTH[text.lower()]
        return int(text, 0) if value_type in integer_types() else float(text)
    except (KeyError, ValueError):
        example = "true or false" if value_type is ValueType.BOOL else "a number that the type can hold"
        raise ValueError(f"{text[:80]!r} is not a value of type {value_type.name}; give {example}") from None


def _text(stored: bytes | memoryview, value_type: ValueType) -> str:
    import struct

    from gguf_tools.listing import scalar_text
    from gguf_tools.metadata import SCALARS

    return scalar_text(value_type, struct.unpack(SCALARS[value_type][0], stored)[0])


def _overwrite(path: str, offset: int, before: bytes, after: bytes) -> None:
    with open(path, "r+b", buffering=0) as file:
        if os.pread(file.fileno(), len(before), offset) != before:
            raise ValueError(f"{path}: the file was changed by someone else in the meantime; try again")
        # One small write inside one block: either the old value or the new one is there afterwards.
        os.pwrite(file.fileno(), after, offset)
        os.fsync(file.fileno())


if __name__ == "__main__":
    raise SystemExit(main())
