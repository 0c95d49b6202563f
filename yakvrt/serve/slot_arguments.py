"""Flags of a model that answers many requests, for verbs that serve and for those that run through files."""

from __future__ import annotations

import argparse

from yakvrt.cli_arguments import at_least


def add_slot_arguments(parser: argparse.ArgumentParser, *, parallel: int) -> None:
    """`parallel` is the default of -np."""
    add = parser.add_argument_group("answers").add_argument
    add(
        *("-np", "--parallel"),
        type=at_least(1, 4096),
        default=parallel,
        metavar="N",
        help=f"answers at a time; each has a slot of --ctx-size tokens ({parallel})",
    )
    add(
        *("-cram", "--cache-ram"),
        type=at_least(0),
        default=0,
        metavar="MIB",
        help="host memory for what slots held (0)",
    )
    add("-a", "--alias", metavar="NAME", help="the model's name in answers (that of its file)")
    add("--chat-template-file", metavar="FILE", help="a jinja template instead of the model's")
