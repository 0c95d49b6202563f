"""`python -m gguf_tools new-metadata IN OUT`: copies a file with other metadata; tensors stay as they are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_tools.terminal import Progress, UsageError, note, run, shown

if TYPE_CHECKING:
    from gguf_tools.meta_value import MetaValue
    from gguf_tools.metadata import Metadata

TEMPLATE: Final = "tokenizer.chat_template"
MAX_TEXT_BYTES: Final = 1 << 26
# "seperator" is the format's own spelling.
SPECIAL_TOKENS: Final = (
    *("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask"),
    *("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle"),
)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this verb."""
    parser = argparse.ArgumentParser(
        prog="gguf_tools new-metadata", description="Copy a GGUF file with changed metadata."
    )
    parser.add_argument("input", type=Path, help="the .gguf file to copy")
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument("--general-name", metavar="NAME", help="set general.name")
    parser.add_argument("--general-description", metavar="TEXT", help="set general.description")
    template = parser.add_mutually_exclusive_group()
    template.add_argument(
        "--chat-template", metavar="S", help="the chat template, or a JSON list of templates with names"
    )
    template.add_argument(
        "--chat-template-file", type=Path, metavar="F", help="a file with the chat template"
    )
    template.add_argument(
        "--chat-template-config",
        type=Path,
        metavar="F",
        help="a tokenizer_config.json with the chat template",
    )
    parser.add_argument("--pre-tokenizer", metavar="NAME", help="set tokenizer.ggml.pre")
    parser.add_argument(
        "--remove-metadata", action="append", default=[], metavar="K", help="leave this key out"
    )
    parser.add_argument(
        "--special-token", action="append", default=[], nargs=2, metavar=("NAME", "VAL"),
        help=f"set a special token by its text; NAME: {' '.join(SPECIAL_TOKENS)}",
    )  # fmt: skip
    parser.add_argument(
        "--special-token-by-id", action="append", default=[], nargs=2, metavar=("NAME", "ID"),
        help="set a special token by its id",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true", help="replace OUT, and remove keys that loading needs"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    args = build_parser().parse_args(argv)
    return run(lambda: _new_metadata(args))


def _new_metadata(args: argparse.Namespace) -> int:
    from gguf_tools.file_copy import check_free, copy_tensor, plans
    from gguf_tools.meta_value import stored_values
    from gguf_tools.reader import GGUFFile
    from gguf_tools.writer import GGUFWriter

    check_free([args.output], args.force)
    with GGUFFile(args.input) as file:
        values = stored_values(file.metadata)
        templates = _templates(args)
        if templates:
            # Old templates would contradict the new ones.
            for key in [key for key in values if key.startswith(TEMPLATE)]:
                if key not in templates:
                    del values[key]
        _remove(values, args.remove_metadata, args.force)
        values |= _texts(args) | templates | _special_tokens(args, file.metadata)
        tensors = list(file.tensors.values())
        total = sum(tensor.data.nbytes for tensor in tensors)
        with (
            Progress("copying", total) as progress,
            GGUFWriter(args.output, values, plans(tensors), file.alignment) as writer,
        ):
            for tensor in tensors:
                copy_tensor(tensor, writer, progress)
        before = len(file.metadata)
    print(f"{shown(str(args.output))}: {len(values)} metadata keys (were {before}), {len(tensors)} tensors")
    return 0


def _texts(args: argparse.Namespace) -> dict[str, MetaValue]:
    from gguf_tools.meta_value import string

    given = {
        "general.name": args.general_name,
        "general.description": args.general_description,
        "tokenizer.ggml.pre": args.pre_tokenizer,
    }
    return {key: string(text) for key, text in given.items() if text is not None}


def _remove(values: dict[str, MetaValue], keys: Sequence[str], force: bool) -> None:
    for key in keys:
        if key not in values:
            raise ValueError(f"there is no metadata key {key[:80]!r} to remove; `dump` lists the keys")
        if key == "general.architecture":
            raise ValueError(f"{key} cannot be removed: no program can load the file without it")
        if not force and not key.startswith("general."):
            raise ValueError(f"programs may need {key} to load the file; remove it with --force")
        del values[key]


def _templates(args: argparse.Namespace) -> dict[str, MetaValue]:
    """The keys of the new chat templates: the default one, and the named ones with a list of names."""
    import json

    from gguf_tools.meta_value import ValueType, array, string

    found: Any = None
    if args.chat_template is not None:
        found = args.chat_template
        if found.startswith("["):
            try:
                found = json.loads(found)
            except ValueError:
                raise UsageError(
                    "--chat-template starts with [ but is not JSON; give a template or a JSON list"
                ) from None
    elif args.chat_template_file is not None:
        found = _read(args.chat_template_file)
    elif args.chat_template_config is not None:
        try:
            config = json.loads(_read(args.chat_template_config))
        except ValueError as error:
            raise ValueError(f"{args.chat_template_config}: not JSON ({error})") from None
        found = config.get("chat_template") if isinstance(config, dict) else None
        if found is None:
            raise ValueError(
                f"{args.chat_template_config}: no chat_template in it; give --chat-template-file"
            )
    if found is None:
        return {}
    if isinstance(found, str):
        return {TEMPLATE: string(found)}
    named = _named_templates(found)
    keys = {f"{TEMPLATE}.{name}": string(text) for name, text in named.items() if name != "default"}
    if keys:
        names = [name for name in named if name != "default"]
        keys = {"tokenizer.chat_templates": array(ValueType.STRING, names)} | keys
    return keys | ({TEMPLATE: string(named["default"])} if "default" in named else {})


def _named_templates(found: Any) -> dict[str, str]:
    named = {}
    for item in found if isinstance(found, list) else [None]:
        name, text = (item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str) or not name:
            raise ValueError('a list of chat templates holds objects {"name": ..., "template": ...} only')
        named["".join(c if c.isascii() and c.isalnum() else "_" for c in name)] = text
    return named


def _special_tokens(args: argparse.Namespace, metadata: Metadata) -> dict[str, MetaValue]:
    from gguf_tools.meta_value import ValueType, scalar

    wanted = [(*pair, False) for pair in args.special_token]
    wanted += [(*pair, True) for pair in args.special_token_by_id]
    if not wanted:
        return {}
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise ValueError("the file has no tokenizer.ggml.tokens; special tokens need a vocabulary")
    values = {}
    for name, token, by_id in wanted:
        if name not in SPECIAL_TOKENS:
            raise UsageError(f"unknown special token {name[:80]!r}; known are {' '.join(SPECIAL_TOKENS)}")
        token_id = _token_id(token, len(tokens)) if by_id else _find(token, tokens)
        values[f"tokenizer.ggml.{name}_token_id"] = scalar(ValueType.UINT32, token_id)
    return values


def _token_id(text: str, n_tokens: int) -> int:
    if not text.isdecimal() or int(text) >= n_tokens:
        raise ValueError(f"{text[:80]!r} is not a token id; the vocabulary has ids 0 to {n_tokens - 1}")
    return int(text)


def _find(token: str, tokens: list[Any]) -> int:
    ids = [index for index, text in enumerate(tokens) if text == token]
    if not ids:
        raise ValueError(
            f"the token {token[:80]!r} is not in the vocabulary; give an id, --special-token-by-id"
        )
    if len(ids) > 1:
        note(f"the token {token[:80]!r} has the ids {', '.join(map(str, ids[:10]))}; {ids[0]} is taken")
    return ids[0]


def _read(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(MAX_TEXT_BYTES + 1)
    if len(raw) > MAX_TEXT_BYTES:
        raise ValueError(
            f"{path}: over the limit of {MAX_TEXT_BYTES} bytes for a text; is this the right file?"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


if __name__ == "__main__":
    raise SystemExit(main())
