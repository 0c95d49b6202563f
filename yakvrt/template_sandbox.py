"""A jinja environment in which a foreign template can neither hang nor exhaust memory.

Every value a template builds is charged to a budget before or as it is made, loops and calls look at the
clock, and only filters with a known cost exist.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from yakvrt.template_metering import Metering

Value = TypeVar("Value")

MAX_SECONDS = 10.0
MAX_INT_BITS = 4096
NODE_COST = 16  # characters' worth of memory charged per list or dict entry
BASE_BUDGET = 32 << 20
BUDGET_PER_INPUT = 32

_PLAIN = (bool, int, float, type(None))
_REFUSED_METHODS = frozenset(
    (
        "ljust",
        "rjust",
        "center",
        "zfill",
        "expandtabs",
        "translate",
        "encode",
        "format_map",
        "fromkeys",
        "to_bytes",
    )
)
_OPEN_FILTERS = frozenset(
    (
        "abs",
        "attr",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "float",
        "int",
        "items",
        "last",
        "length",
        "list",
        "map",
        "max",
        "min",
        "reject",
        "rejectattr",
        "reverse",
        "round",
        "select",
        "selectattr",
        "sort",
        "unique",
    )
)
_TEXT_FILTERS = frozenset(
    (
        "capitalize",
        "e",
        "escape",
        "forceescape",
        "lower",
        "safe",
        "string",
        "striptags",
        "title",
        "trim",
        "truncate",
        "upper",
        "urlencode",
        "wordcount",
    )
)
# A width of four digits or more, or one computed from an argument, can make any length of text.
_WIDE_FORMAT = re.compile(r"\d{4,}|%[^a-zA-Z%]*\*|:[^}]*\{")


class TemplateLimitError(jinja2.TemplateError):
    """The template used up its time or memory."""


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`: marks the assistant's words for training; plain text here."""

    tags = {"generation"}  # noqa: RUF012  (jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with a budget; one render at a time."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        """Set up the dialect chat templates are written in, as transformers defines it."""
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=["jinja2.ext.loopcontrols", GenerationTag],
        )
        self.refill(0)
        self.finalize = self.text
        stock = self.filters
        self.filters = {name: self._charged(stock[name]) for name in _OPEN_FILTERS}
        self.filters |= {name: self._charged(stock[name], as_text=True) for name in _TEXT_FILTERS}
        self.filters |= {"tojson": self._to_json, "join": self._join, "replace": self.replace}
        self.filters["indent"] = self._indent(stock["indent"])
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace")}

    def bounded_template(self, source: str) -> jinja2.Template:
        """Compile a template with its loops and literals under the budget."""
        tree = Metering().visit(self.parse(source))
        tree.set_lineno(1)
        tree.set_environment(self)
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))

    def refill(self, input_size: int) -> None:
        """Start a render over an input of this many characters."""
        self._left = BASE_BUDGET + BUDGET_PER_INPUT * input_size
        self._deadline = time.monotonic() + MAX_SECONDS

    def spend(self, cost: int) -> None:
        """Charge the budget.

        Raises: TemplateLimitError when it is used up.
        """
        self._left -= cost
        if self._left < 0:
            raise TemplateLimitError("it builds too much text")

    def tick(self, cost: int = 0) -> None:
        """Mark one step of a loop, and the literal text it may write."""
        self.spend(cost + 1)
        if time.monotonic() > self._deadline:
            raise TemplateLimitError(f"it runs longer than {MAX_SECONDS:.0f} s")

    def size(self, value: Any, *, text: bool = False, indent: int = 0) -> int:
        """Measure a value through all its levels: its entries, or with `text` the length it prints to."""
        total = 0
        level = 0
        pending = [value]
        while pending:
            deeper: list[Any] = []
            for item in pending:
                total += NODE_COST + level * indent
                if isinstance(item, str):
                    total += len(item) if text else 0
                elif isinstance(item, dict):
                    deeper.extend(item)
                    deeper.extend(item.values())
                elif isinstance(item, list | tuple):
                    deeper.extend(item)
                elif text and not isinstance(item, (*_PLAIN, Undefined)):
                    raise TemplateLimitError(f"it prints a {type(item).__name__}")
                if total + len(deeper) * NODE_COST > self._left:
                    raise TemplateLimitError("it builds too much text")
            pending = deeper
            level += 1
        return total

    def text(self, value: Any) -> str:
        """Turn a value into the text that output, `~` and the text filters make of it."""
        if not isinstance(value, str):
            if not isinstance(value, (*_PLAIN, Undefined)):
                self.spend(self.size(value, text=True))
            return str(value)
        return value

    def concat_values(self, *values: Any) -> str:
        """Join the operands of `~`."""
        return self._join(values)

    def built(self, value: Value) -> Value:
        """Charge a list, tuple or dict the template wrote, through all levels."""
        self.spend(self.size(value))
        return value

    def sliced(self, value: Value) -> Value:
        """Pass on a slice; the call itself is charged."""
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute an intercepted operator after checking what it would make."""
        if operator == "%" and isinstance(left, str):
            self._check_format(left)
            right = tuple(map(self._format_argument, right)) if isinstance(right, tuple) else right
            right = right if isinstance(right, tuple | dict) else self._format_argument(right)
        elif operator == "+" and _sized(left) and _sized(right):
            self.spend(_cost(left) + _cost(right))
        elif operator == "*":
            if _sized(left) or _sized(right):
                body, times = (left, right) if _sized(left) else (right, left)
                self.spend(_cost(body) * max(times, 0) if isinstance(times, int) else 0)
            elif isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * abs(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Call a function, macro or method under the budget."""
        self.tick()
        # The sandbox wraps str.format in a function that remembers the method.
        method = getattr(obj, "__wrapped__", obj)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, (str, int, dict, type)):
            if name in _REFUSED_METHODS:
                raise TemplateLimitError(f"it calls .{name}()")
            if name == "format" and isinstance(owner, str):
                self._check_format(owner)
                args = tuple(map(self._format_argument, args))
                kwargs = {key: self._format_argument(value) for key, value in kwargs.items()}
            elif name == "replace" and isinstance(owner, str):
                return self.replace(owner, *args, **kwargs)
            elif name == "join" and isinstance(owner, str):
                return self._join(*args, d=owner)
        elif isinstance(obj, Macro) or obj is dict:
            self.built((args, kwargs))
        result = super().call(context, obj, *args, **kwargs)
        self.spend(_cost(result))
        return result

    def replace(self, value: Any, old: Any, new: Any, count: int = -1) -> str:
        """Replace text after checking how long the result would be."""
        value, old, new = self.text(value), self.text(old), self.text(new)
        found = value.count(old) if count is None or count < 0 else min(value.count(old), count)
        self.spend(len(value) + found * len(new))
        return value.replace(old, new, -1 if count is None else count)

    def _format_argument(self, value: Any) -> Any:
        return self.text(value) if _sized(value) or isinstance(value, dict) else value

    def _check_format(self, pattern: str) -> None:
        if _WIDE_FORMAT.search(pattern):
            raise TemplateLimitError("it pads text to a great width")
        self.spend(len(pattern))

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            value = map(make_attrgetter(self, attribute), value)
        parts: list[str] = []
        separator = self.text(d)
        for item in value:
            parts.append(self.text(item))
            self.spend(len(parts[-1]) + len(separator) + NODE_COST)
        return separator.join(parts)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        if not isinstance(indent or 0, int) or not 0 <= (indent or 0) <= 16:
            raise TemplateLimitError("it indents JSON by more than 16")
        self.spend(self.size(value, text=True, indent=indent or 0))
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def _indent(self, stock: Callable[..., str]) -> Callable[..., str]:
        def indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
            step = width if isinstance(width, int) else len(width)
            text = self.text(value)
            self.spend(len(text) + (text.count("\n") + 1) * max(step, 0))
            return stock(text, width, first, blank)

        return indent

    def _charged(self, stock: Callable[..., Any], *, as_text: bool = False) -> Callable[..., Any]:
        # Filters that take the environment or context get it first and their value second.
        position = 1 if hasattr(stock, "jinja_pass_arg") else 0

        @functools.wraps(stock)
        def charged(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            if as_text:
                args = (*args[:position], self.text(args[position]), *args[position + 1 :])
            result = stock(*args, **kwargs)
            self.spend(_cost(result))
            return result

        return charged


def _sized(value: Any) -> bool:
    return isinstance(value, str | list | tuple)


def _cost(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return NODE_COST * len(value) if isinstance(value, list | tuple | dict) else 0


def _check_bits(bits: int) -> None:
    if bits > MAX_INT_BITS:
        raise TemplateLimitError("it computes with numbers of over a thousand digits")


def input_size(values: Mapping[str, Any], environment: BoundedEnvironment) -> int:
    """Count the characters and entries of what a template is given."""
    environment.refill(1 << 40)
    return environment.size(dict(values))
