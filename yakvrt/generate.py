"""Answers a prompt, or continues a text: `python -m yakvrt.generate -p TEXT`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Sequence as ListOf
from functools import partial
from typing import TYPE_CHECKING, Any

from yakvrt import terminal
from yakvrt.cli_arguments import (
    add_chat_arguments,
    add_model_arguments,
    add_prompt_arguments,
    add_sampling_arguments,
    load_engine,
    sampling_overrides,
    sampling_params,
)
from yakvrt.cli_parsing import Parser, parse
from yakvrt.grammar_arguments import add_grammar_arguments
from yakvrt.prompt_cache import PromptCache, add_prompt_cache_arguments
from yakvrt.prompt_text import chat_tokenizer, read_text
from yakvrt.terminal import UsageError
from yakvrt.trace_file import Tracing, add_trace_argument

if TYPE_CHECKING:
    from yakvrt.prompt_text import AnyTokenizer
    from yakvrt.sequence import Sequence


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = Parser(
        "generate", "Answer a prompt (through the model's chat template) or continue a text (--raw)."
    )
    add_prompt_arguments(parser)
    parser.add_argument("--raw", "-no-cnv", action="store_true", help="no chat template: continue the text")
    show = parser.add_mutually_exclusive_group()
    show.add_argument("--display-prompt", action="store_true", help="print the prompt before the answer")
    show.add_argument("--no-display-prompt", action="store_true", help="print the answer alone (default)")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object at the end, no stream; after Ctrl-C its finish_reason is null",
    )
    add_chat_arguments(parser)
    add_prompt_cache_arguments(parser)
    add_trace_argument(parser)
    add_sampling_arguments(parser)
    add_grammar_arguments(parser)
    add_model_arguments(parser)
    return parser


def main(argv: ListOf[str] | None = None) -> int:
    """Run the verb and return the exit code."""
    return terminal.run(lambda: _generate(parse(build_parser(), argv)))


def _generate(args: argparse.Namespace) -> int:
    _check(args)
    overrides = sampling_overrides(args)
    text = read_text(args)
    if text == "":
        raise ValueError("the prompt is empty; give some text with -p, -f or stdin")
    cache = PromptCache(args)
    with Tracing(args.trace) as tracing, load_engine(args) as engine, tracing.follow(engine, args.model):
        from yakvrt.no_tokenizer import NoTokenizer
        from yakvrt.sequence import Sequence

        if isinstance(engine.tokenizer, NoTokenizer) and not args.json:
            raise UsageError("the model has no tokenizer to print text with; --json shows its ids, add it")
        tokenizer = chat_tokenizer(engine.tokenizer, args.chat_template_file)
        ids = args.prompt_ids or _encode(tokenizer, str(text), args)
        params = sampling_params(engine, overrides)
        bar = terminal.Bar("reading the prompt")
        with (
            cache.session(engine) as session,
            Sequence(session, tokenizer, ids, params, progress=bar, trace=tracing.log) as sequence,
        ):
            if args.verbose:
                terminal.note(f"{params} with seed {sequence.seed}")
            if args.display_prompt and not args.json:
                print(tokenizer.decode(ids, skip_special=False), end="", flush=True)
            code = _stream(sequence, partial(cache.keep_prompt, session, sequence), silent=args.json)
            bar.close()
            cache.keep_all(session, sequence)
        if args.json:
            import json

            print(json.dumps(_record(sequence, tokenizer, args.model)))
        elif code and not sequence.ids:
            terminal.note("interrupted while reading the prompt")
        else:
            terminal.end_line(sequence.text)
            terminal.footer(sequence.timings, sequence.kv)
    return code


def _check(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other.

    Raises: UsageError.
    """
    if args.prompt is None and args.file is None and args.prompt_ids is None:
        raise UsageError("no prompt: give -p TEXT, -p - for stdin, -f FILE or --prompt-ids 1,2,3")
    templated = [
        flag
        for flag, value in (
            ("--system-prompt", args.system_prompt),
            ("--chat-template-kwargs", args.chat_template_kwargs),
            ("--chat-template-file", args.chat_template_file),
        )
        if value is not None
    ]
    plain = "--raw" if args.raw else "--prompt-ids" if args.prompt_ids else None
    if plain and templated:
        raise UsageError(f"{templated[0]} is for the chat template, which {plain} bypasses; leave one out")
    if args.logprobs is not None and not args.json:
        raise UsageError("--logprobs is printed by --json only; add --json")


def _encode(tokenizer: AnyTokenizer, text: str, args: argparse.Namespace) -> list[int]:
    """The prompt's ids: a user turn when the model has a chat template, else plain text."""
    wanted = args.system_prompt is not None or args.chat_template_kwargs is not None
    if args.raw or not (tokenizer.has_chat_template or wanted):
        return tokenizer.encode(text)
    messages = [] if args.system_prompt is None else [{"role": "system", "content": args.system_prompt}]
    messages.append({"role": "user", "content": text})
    return tokenizer.encode_chat(messages, **(args.chat_template_kwargs or {}))


def _stream(sequence: Sequence, take_in_prompt: Callable[[], None], *, silent: bool) -> int:
    """Print the pieces as they come; an interruption ends the answer, not the record of it."""
    try:
        take_in_prompt()
        for piece in sequence:
            if not silent:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        return terminal.INTERRUPTED
    return 0


def _record(sequence: Sequence, tokenizer: AnyTokenizer, model: str) -> dict[str, Any]:
    """What --json prints."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        stream = tokenizer.stream(skip_special=False, continues=True)
        return {"id": token, "token": stream.push(token) + stream.flush(), "logprob": logprob}

    logprobs = None
    if sequence.logprobs is not None:
        logprobs = [
            entry(sampled.id, sampled.logprob) | {"top": [entry(*best) for best in sampled.top]}
            for sampled in sequence.logprobs
        ]
    return {
        "model": model,
        "seed": sequence.seed,
        "prompt_ids": sequence.prompt_ids,
        "ids": sequence.ids,
        "text": sequence.text,
        "finish_reason": sequence.finish_reason,
        "logprobs": logprobs,
        "timings": sequence.timings,
        "kv": sequence.kv,
    }


if __name__ == "__main__":
    raise SystemExit(main())
