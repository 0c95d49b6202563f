"""An interactive conversation that keeps its KV between turns: `python -m yakvrt.chat`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from collections.abc import Sequence as ListOf
from contextlib import suppress
from pathlib import Path
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
from yakvrt.prompt_text import chat_tokenizer, read_file, read_text

if TYPE_CHECKING:
    from yakvrt.prompt_text import AnyTokenizer
    from yakvrt.sampler import SamplingParams
    from yakvrt.session import Session

HELP = """/exit         leave (also Ctrl-D)
/clear        forget the conversation
/regen        answer the last message again
/read FILE    put a file's text before the next message
/help         this list
Ctrl-C stops an answer."""
COMMANDS = ("/exit", "/clear", "/regen", "/read", "/help")
COMMAND = re.compile(r"/[a-z]+")  # what was meant as a command; a path like /tmp/file is a message
PROMPT = "> "


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = Parser("chat", "Talk with a model; /help lists the commands. Lines piped in are messages.")
    add_prompt_arguments(parser, ids_flag=None)
    add_chat_arguments(parser)
    add_sampling_arguments(parser, logprobs=False)
    add_model_arguments(parser)
    return parser


def main(argv: ListOf[str] | None = None) -> int:
    """Run the verb and return the exit code."""
    return terminal.run(lambda: _chat(parse(build_parser(), argv)))


def _chat(args: argparse.Namespace) -> int:
    overrides = sampling_overrides(args)
    if sys.stdin is None:
        raise ValueError("stdin is closed, and chat reads its messages there; open it or use generate")
    first = read_text(args)
    with load_engine(args) as engine:
        tokenizer = chat_tokenizer(engine.tokenizer, args.chat_template_file)
        if not tokenizer.has_chat_template:
            raise ValueError(
                f"{args.model} has no chat template; give --chat-template-file or use generate --raw"
            )
        params = sampling_params(engine, overrides)
        session = engine.session()
        talk = Conversation(session, tokenizer, params, args.system_prompt, args.chat_template_kwargs or {})
        try:
            if first:
                talk.say(first)
            _converse(talk)
        finally:
            session.close()
    return 1 if talk.was_refused and not sys.stdin.isatty() else 0


class Conversation:
    """Messages so far over one KV slot; every answer reuses the KV of what it shares with the last one."""

    def __init__(
        self,
        session: Session,
        tokenizer: AnyTokenizer,
        params: SamplingParams,
        system: str | None,
        template_kwargs: dict[str, Any],
    ) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._params = params
        self._start = [] if system is None else [{"role": "system", "content": system}]
        self._template_kwargs = template_kwargs
        self._n_answers = self._n_refused = 0
        self._attached = ""
        self.messages: list[dict[str, str]] = list(self._start)

    def say(self, text: str) -> None:
        """Add a message, with the files read before it, and print the answer."""
        self.messages.append({"role": "user", "content": self._attached + text})
        if self._answer():
            self._attached = ""
        else:
            self.messages.pop()

    @property
    def was_refused(self) -> bool:
        """Whether no message was answered of those that there were."""
        return self._n_refused > 0 and not self._n_answers

    def again(self) -> None:
        """Answer the last message once more."""
        if len(self.messages) < len(self._start) + 2:
            terminal.note("there is no answer yet")
            return
        old = self.messages.pop()
        if not self._answer():
            self.messages.append(old)

    def forget(self) -> None:
        """Start over, keeping the system message."""
        self.messages = list(self._start)
        self._attached = ""
        self._session.truncate(0)

    def attach(self, name: str) -> None:
        """Put a file's text before the next message."""
        if not name:
            terminal.note("error: /read names no file; write /read FILE")
            return
        try:
            text = read_file(Path(name).expanduser())
        except (OSError, ValueError) as error:
            terminal.note(f"error: {terminal.one_line(error)}")
            return
        self._attached += text + "\n"
        count = terminal.counted(len(text), "character")
        terminal.note(f"read {count}; they go before your next message")

    def _answer(self) -> bool:
        """Print an answer and keep it, also when interrupted; False when the messages cannot be answered."""
        from dataclasses import replace

        from yakvrt.sequence import Sequence

        seed = self._params.seed
        if seed is not None and seed >= 0:
            # One seed for all would give /regen the same answer again.
            seed += self._n_answers
        params = replace(self._params, seed=seed)
        bar = terminal.Bar("reading")
        try:
            ids = self._tokenizer.encode_chat(self.messages, **self._template_kwargs)
            with Sequence(self._session, self._tokenizer, ids, params, progress=bar) as sequence:
                with suppress(KeyboardInterrupt):
                    for piece in sequence:
                        print(piece, end="", flush=True)
                bar.close()
        except ValueError as error:
            terminal.note(f"error: {terminal.one_line(error)}; /clear starts over")
            self._n_refused += 1
            return False
        terminal.end_line(sequence.text)
        if sequence.finish_reason == "length":
            terminal.note("the answer was cut at --predict or the end of the context")
        if sys.stderr.isatty():
            terminal.footer(sequence.timings, sequence.kv)
        self.messages.append({"role": "assistant", "content": sequence.text})
        self._n_answers += 1
        return True


def _converse(talk: Conversation) -> None:
    """Read messages and commands until the end of input or /exit."""
    read = _reader()
    while True:
        try:
            line = read()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            terminal.note("Ctrl-C stops an answer; /exit or Ctrl-D leaves")
            continue
        word, _, rest = line.strip().partition(" ")
        if word not in COMMANDS:
            if COMMAND.fullmatch(word):
                terminal.note(f"error: unknown command {word}; the commands are {', '.join(COMMANDS)}")
            elif line.strip():
                talk.say(line)
        elif word == "/exit":
            return
        elif word == "/clear":
            talk.forget()
        elif word == "/regen":
            talk.again()
        elif word == "/read":
            talk.attach(rest.strip())
        else:
            print(HELP, file=sys.stderr)


def _reader() -> Callable[[], str]:
    """How lines are read: edited on a terminal, plain when piped."""
    if not sys.stdin.isatty():
        return _piped_line
    try:
        from prompt_toolkit import PromptSession
    except ImportError:
        import readline  # noqa: F401  (its import gives input() line editing and history)

        return lambda: input(PROMPT)
    session: Any = PromptSession()
    return lambda: str(session.prompt(PROMPT))


def _piped_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


if __name__ == "__main__":
    raise SystemExit(main())
