"""Flags that a verb does not have. argparse would read -ngl as -n with the value gl."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

MAX_SHOWN = 60  # characters
INSTEAD = {
    ("-ngl", "--gpu-layers", "--n-gpu-layers"): "all layers run on --device",
    ("-fa", "--flash-attn"): "attention is always fused, leave it out",
    ("-cnv", "--conversation"): "a conversation is python -m yakvrt chat",
    ("-st", "--single-turn"): "python -m yakvrt generate answers one prompt",
    ("-tb", "--threads-batch"): "-t counts for prompts too",
}


def refuse_unknown_flags(parser: argparse.ArgumentParser, argv: Iterable[str]) -> None:
    """Ends with 2 and a sentence at a flag of one dash and several letters that the parser does not have, and
    at one of llama.cpp that has something in its place. Other unknown ones are left to argparse.
    """
    known = {name: action for action in parser._actions for name in action.option_strings}
    rest = iter(argv)
    for argument in rest:
        name = argument.partition("=")[0]
        if name in known:
            if known[name].nargs is None and name == argument:
                next(rest, None)
        elif argument == "--":
            return
        elif instead := next((text for names, text in INSTEAD.items() if name in names), ""):
            parser.error(f"unknown flag {name}: {instead}")
        elif len(name) > 2 and name[0] == "-" and name[1].isalpha():
            parser.error(f"unknown flag {name[:MAX_SHOWN]}")
