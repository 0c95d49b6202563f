"""argparse with one-line errors and every flag also as a variable YAKVRT_<NAME>."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from yakvrt.unknown_flags import refuse_unknown_flags

TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
MAX_SHOWN = 60  # characters of a bad value
T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """argparse with the error in one line; flags are neither abbreviated nor joined with their values."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"yakvrt {verb}", description=description, allow_abbrev=False)
        self.epilog = "Every flag can be set as an environment variable: --ctx-size is YAKVRT_CTX_SIZE."

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        return []  # what else argparse would read "-not a flag" as

    def print_help(self, file: Any = None) -> None:
        """Raises: OSError, which argparse's own hides."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"yakvrt: error: {' '.join(message.split())} (see {self.prog} --help)\n")


def kind(name: str, read: Callable[[str], T]) -> Callable[[str], T]:
    """The reader under a name that argparse's error line can show."""

    def checked(text: str) -> T:
        try:
            return read(text)
        except (ValueError, OverflowError, RecursionError):
            shown = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
            raise argparse.ArgumentTypeError(f"{shown!r} is not {name}") from None

    return checked


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse flags, then fill what they leave open from the environment, then from the defaults.

    A flag switches off the environment's value for every flag that it excludes.
    """
    argv = sys.argv[1:] if argv is None else argv
    refuse_unknown_flags(parser, argv)
    defaults: dict[str, Any] = {}
    for action in parser._actions:
        if action.default is not argparse.SUPPRESS:
            defaults[action.dest], action.default = action.default, argparse.SUPPRESS
    args = parser.parse_args(argv)
    given = set(vars(args))
    rivals = [{a.dest for a in group._group_actions} for group in parser._mutually_exclusive_groups]
    for action in parser._actions:
        excluded = set().union(*(group for group in rivals if action.dest in group)) & (given - {action.dest})
        if action.dest not in defaults or action.dest in given or excluded:
            continue
        name, text = _variable(action)
        if text is not None:
            setattr(args, action.dest, _from_variable(parser, action, name, text))
    for group in rivals:
        if len(both := sorted(group & set(vars(args)))) > 1:
            parser.error(f"environment variables set both {both[0]} and {both[1]}; unset one")
    for dest, default in defaults.items():
        if not hasattr(args, dest):
            setattr(args, dest, default)
    return args


def _variable(action: argparse.Action) -> tuple[str, str | None]:
    """The environment variable of a flag and its value; one that is set but empty counts as unset."""
    names = [f"YAKVRT_{o[2:].upper().replace('-', '_')}" for o in action.option_strings if o.startswith("--")]
    return next(((name, os.environ[name]) for name in names if os.environ.get(name)), ("", None))


def _from_variable(parser: argparse.ArgumentParser, action: argparse.Action, name: str, text: str) -> Any:
    try:
        if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
            if text.lower() not in TRUE + FALSE:
                raise argparse.ArgumentTypeError(f"{text!r} is neither 1 nor 0")
            return (text.lower() in TRUE) is not isinstance(action, argparse._StoreFalseAction)
        value = action.type(text) if callable(action.type) else text
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(map(str, action.choices))}")
    except argparse.ArgumentTypeError as error:
        parser.error(f"environment variable {name}: {error}")
    return [value] if isinstance(action, argparse._AppendAction) else value
