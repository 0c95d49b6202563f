"""Text to token ids as JSON, and back: `python -m yakvrt.tokenize -p TEXT`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from yakvrt import terminal
from yakvrt.cli_arguments import DEFAULT_MODEL, MODEL_FLAGS, add_chat_arguments, add_prompt_arguments
from yakvrt.cli_parsing import Parser, parse
from yakvrt.prompt_text import chat_tokenizer, read_text
from yakvrt.terminal import UsageError

if TYPE_CHECKING:
    from yakvrt.tokenizer import Tokenizer


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = Parser("tokenize", "Print the token ids of a text as JSON, or the text of token ids.")
    add_prompt_arguments(parser, ids_flag="--ids")
    parser.add_argument("--chat", action="store_true", help="as a user turn in the model's chat template")
    parser.add_argument("--no-bos", action="store_true", help="no BOS (or EOS) that the model would add")
    parser.add_argument("--no-parse-special", action="store_true", help="<|names|> are ordinary text")
    add_chat_arguments(parser)
    whose = f"whose tokenizer ({DEFAULT_MODEL})"
    parser.add_argument(*MODEL_FLAGS, default=DEFAULT_MODEL, metavar="NAME", help=whose)
    parser.add_argument("--offline", action="store_true", help="use no network")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return the exit code."""
    return terminal.run(lambda: _tokenize(parse(build_parser(), argv)))


def _tokenize(args: argparse.Namespace) -> int:
    if args.prompt is None and args.file is None and args.prompt_ids is None:
        raise UsageError("nothing to do: give -p TEXT, -p - for stdin, -f FILE or --ids 1,2,3")
    templated = args.system_prompt is not None or args.chat_template_kwargs is not None
    if (templated or args.chat_template_file is not None) and not args.chat:
        raise UsageError("the flags of the chat template need --chat; add it")
    if args.chat and (args.no_bos or args.no_parse_special or args.prompt_ids is not None):
        raise UsageError("--chat takes a text and follows the template; leave --no-bos and --ids out")
    text = read_text(args)
    tokenizer = _load_tokenizer(args.model, offline=args.offline)
    if text is None:
        if wrong := [i for i in args.prompt_ids if i >= tokenizer.vocab_size]:
            most = tokenizer.vocab_size - 1
            raise ValueError(f"token id {wrong[0]} is outside the vocabulary; ids run from 0 to {most}")
        print(tokenizer.decode(args.prompt_ids, skip_special=False))
    elif args.chat:
        messages = [] if args.system_prompt is None else [{"role": "system", "content": args.system_prompt}]
        messages.append({"role": "user", "content": text})
        chat = chat_tokenizer(tokenizer, args.chat_template_file)
        print(json.dumps(chat.encode_chat(messages, **(args.chat_template_kwargs or {}))))
    else:
        special = not args.no_parse_special
        print(json.dumps(tokenizer.encode(text, add_special=not args.no_bos, parse_special=special)))
    return 0


def _load_tokenizer(model: str, *, offline: bool) -> Tokenizer:
    """The tokenizer of a model, without its weights."""
    from gguf_tools.reader import GGUFFile
    from yakvrt import hub
    from yakvrt.model_files import is_gguf
    from yakvrt.tokenizer import tokenizer_from_files, tokenizer_from_gguf

    files = hub.resolve(model, offline=offline)
    if is_gguf(files.weights[0]):
        with GGUFFile(files.weights[0]) as file:
            return tokenizer_from_gguf(file.metadata)
    if files.tokenizer is None:
        raise ValueError(f"{files.directory} has no tokenizer.json; fetch the model's whole repository")
    return tokenizer_from_files(
        files.tokenizer, files.tokenizer_config, files.chat_template, files.generation_config
    )


if __name__ == "__main__":
    raise SystemExit(main())
