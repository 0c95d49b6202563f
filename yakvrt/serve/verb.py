"""Serves a model over HTTP: `python -m yakvrt serve`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from yakvrt import terminal
from yakvrt.cli_arguments import load_engine, sampling_overrides, sampling_params
from yakvrt.cli_parsing import parse
from yakvrt.prompt_text import chat_tokenizer
from yakvrt.serve.arguments import build_parser, settings_of
from yakvrt.trace_file import Tracing

if TYPE_CHECKING:
    from yakvrt.serve.service import Model
    from yakvrt.serve.settings import Settings


MOST_TRACE_BYTES = 16 << 20  # some million slices, which make a file of 150 MB


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return the exit code."""
    return terminal.run(lambda: _serve(parse(build_parser(), argv)))


def _serve(args: argparse.Namespace) -> int:
    overrides = sampling_overrides(args)
    settings = settings_of(args)
    with Tracing(args.trace, MOST_TRACE_BYTES) as tracing:
        return _answer(args, settings, overrides, tracing)


def _answer(
    args: argparse.Namespace, settings: Settings, overrides: dict[str, object], tracing: Tracing
) -> int:
    try:
        from yakvrt.serve.gate import is_loopback
        from yakvrt.serve.server import Server
        from yakvrt.serve.service import Service
    except ImportError as error:
        raise RuntimeError(
            f"the server needs more packages ({error}); pip install 'yakvrt[server]'"
        ) from None

    def announce() -> None:
        if not is_loopback(settings.host) and not settings.api_keys:
            terminal.note(f"warning: whoever reaches {server.url} may use it; --api-key asks for a key")
        terminal.note(f"listening on {server.url}; loading {args.model}")

    server = Server(Service(settings), announce, access_log=args.verbose)

    def load() -> Model:
        model = load_model(args, settings, overrides, tracing)
        if server.should_exit:
            return model
        terminal.note(
            f"{model.name} is ready, {terminal.counted(args.parallel, 'answer')} at a time in "
            f"{model.engine.ctx_size} tokens each"
        )
        return model

    server.load(load)
    server.answer()
    return 0


def load_model(
    args: argparse.Namespace, settings: Settings, overrides: dict[str, object], tracing: Tracing
) -> Model:
    """The model that the flags ask for; `overrides` are sampling parameters that requests leave open."""
    from yakvrt.serve.service import Model
    from yakvrt.serve.warm_up import warm_up

    engine = load_engine(args, n_slots=args.parallel, cache_bytes=settings.cache_bytes)
    try:
        if args.warmup:
            warm_up(engine)
        tracing.begin(engine, settings.name or engine.name)
        tokenizer = chat_tokenizer(engine.tokenizer, args.chat_template_file)
        return Model(engine, settings, tokenizer=tokenizer, defaults=sampling_params(engine, overrides))
    except BaseException:
        engine.close()
        raise
