"""Flags for what an answer must look like, under llama.cpp's names."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from yakvrt.grammar import Grammar
from yakvrt.prompt_text import read_file


def add_grammar_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags; what is given comes as args.grammar."""
    group = parser.add_argument_group("form of the answer (takes the extra yakvrt[grammar])")
    add = group.add_mutually_exclusive_group().add_argument
    for flags, make, metavar, text in (
        (("--grammar",), Grammar.gbnf, "GBNF", "a grammar in llama.cpp's notation"),
        (("--grammar-file",), _from_file(Grammar.gbnf), "FILE", "the same from a file"),
        (
            ("-j", "--json-schema"),
            Grammar.json_schema,
            "SCHEMA",
            "JSON that fits this schema; {} is any JSON",
        ),
        (("-jf", "--json-schema-file"), _from_file(Grammar.json_schema), "FILE", "the same from a file"),
    ):
        add(*flags, dest="grammar", type=_reader(make), metavar=metavar, help=text)


def _from_file(make: Callable[[str], Grammar]) -> Callable[[str], Grammar]:
    return lambda name: make(read_file(Path(name)))


def _reader(make: Callable[[str], Grammar]) -> Callable[[str], Grammar]:
    def read(text: str) -> Grammar:
        try:
            return make(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read
