"""A jinja environment in which a foreign template can neither hang nor exhaust memory.

Every value a template builds is charged to a budget before or as it is made, loops and calls look at the
clock, and only filters with a known cost exist.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from yakvrt.template_budget import ENTRY_COST, Budget, TemplateLimitError, shallow_cost
from yakvrt.template_metering import Metering

Value = TypeVar("Value")

MAX_INT_BITS = 4096
MAX_JSON_INDENT = 16
_REFUSED_METHODS = frozenset(
    (
        "center",
        "encode",
        "expandtabs",
        "format_map",
        "fromkeys",
        "ljust",
        "rjust",
        "to_bytes",
        "translate",
        "zfill",
    )
)
_OPEN_FILTERS = (
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
_TEXT_FILTERS = (
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
# A width of four digits or more, or one taken from an argument, can make any length of text.
_WIDE_FORMAT = re.compile(r"\d{4,}|%[^a-zA-Z%]*\*|:[^}]*\{")


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`: marks the assistant's words for training; plain text here."""

    tags = {"generation"}  # noqa: RUF012  (jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox under a `budget`; one render at a time."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        """Set up the dialect chat templates are written in, as transformers defines it."""
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=["jinja2.ext.loopcontrols", GenerationTag],
        )
        self.budget = Budget()
        self.finalize = self._printed
        stock = self.filters
        self.filters = {name: self._charged(stock[name]) for name in _OPEN_FILTERS}
        self.filters |= {name: self._charged(stock[name], as_text=True) for name in _TEXT_FILTERS}
        self.filters |= {"tojson": self._to_json, "join": self._join, "replace": self._replace}
        self.filters["indent"] = functools.partial(self._indent, stock["indent"])
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace")}

    def bounded_template(self, source: str) -> jinja2.Template:
        """Compile a template with its loops, literals, slices and `~` under the budget."""
        tree = Metering().visit(self.parse(source))
        tree.set_lineno(1)
        tree.set_environment(self)
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))

    def tick(self, written: int) -> None:
        """Mark a step of a loop that may write this many characters of literal text."""
        self.budget.tick(written)

    def concat_values(self, *values: Any) -> str:
        """Join the operands of `~`."""
        return self._join(values)

    def built(self, value: Value) -> Value:
        """Charge a list, tuple or dict the template wrote, through all levels."""
        self.budget.spend_tree(value)
        return value

    def sliced(self, value: Value) -> Value:
        """Charge a slice."""
        self.budget.spend(shallow_cost(value))
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute an intercepted operator after checking what it would make."""
        both_int = isinstance(left, int) and isinstance(right, int)
        if operator == "%" and isinstance(left, str):
            self._check_format(left, right)
        elif operator == "+":
            self.budget.spend(shallow_cost(left) + shallow_cost(right))
        elif operator == "*" and both_int:
            _check_bits(left.bit_length() + right.bit_length())
        elif operator == "*":
            times = left if isinstance(left, int) else right if isinstance(right, int) else 0
            self.budget.spend((shallow_cost(left) + shallow_cost(right)) * max(times, 0))
        elif operator == "**" and both_int:
            _check_bits(left.bit_length() * abs(right))
        result = super().call_binop(context, operator, left, right)
        self.budget.spend(shallow_cost(result))
        return result

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function, macro or method under the budget."""
        self.budget.tick()
        # The sandbox wraps str.format in a function that remembers the method.
        method = getattr(obj, "__wrapped__", obj)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(obj, Macro) or obj is dict:
            self.built((args, kwargs))
        elif name in _REFUSED_METHODS and isinstance(owner, (str, int, dict, type)):
            raise TemplateLimitError(f"it calls .{name}()")
        elif name == "replace" and isinstance(owner, str):
            return self._replace(owner, *args, **kwargs)
        elif name == "join" and isinstance(owner, str):
            return self._join(args[0] if args else (), owner)
        elif name == "format" and isinstance(owner, str):
            self._check_format(owner, (*args, kwargs))
        result = super().call(context, obj, *args, **kwargs)
        self.budget.spend(shallow_cost(result))
        return result

    def _printed(self, value: Any) -> str:
        return self.budget.text(value)

    def _check_format(self, pattern: str, arguments: Any) -> None:
        if _WIDE_FORMAT.search(pattern):
            raise TemplateLimitError("it pads text to a great width")
        # Each placeholder may print all the arguments.
        for _ in range(1 + pattern.count("%") + pattern.count("{")):
            self.budget.spend_tree(arguments, text=True)

    def _replace(self, value: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = self.budget.text(value), self.budget.text(old), self.budget.text(new)
        limit = -1 if count is None else count
        found = text.count(old) if limit < 0 else min(text.count(old), limit)
        self.budget.tick(len(text) + found * len(new))
        return text.replace(old, new, limit)

    def _join(self, value: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
        self.budget.tick()
        if attribute is not None:
            value = map(make_attrgetter(self, attribute), value)
        separator = self.budget.text(d)
        parts: list[str] = []
        for item in value:
            parts.append(self.budget.text(item))
            self.budget.spend(len(parts[-1]) + len(separator) + ENTRY_COST)
        return separator.join(parts)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        if indent is not None and not (isinstance(indent, int) and 0 <= indent <= MAX_JSON_INDENT):
            raise TemplateLimitError(f"it indents JSON by something other than 0 to {MAX_JSON_INDENT}")
        self.budget.tick()
        self.budget.spend_tree(value, text=True, indent=indent or 0)
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def _indent(
        self, stock: Callable[..., str], value: Any, width: int | str = 4, *rest: Any, **named: Any
    ) -> str:
        text = self.budget.text(value)
        step = len(width) if isinstance(width, str) else max(width, 0)
        self.budget.tick(len(text) + (text.count("\n") + 1) * step)
        return stock(text, width, *rest, **named)

    def _charged(self, stock: Callable[..., Any], *, as_text: bool = False) -> Callable[..., Any]:
        # Filters that take the environment or context get it first and their value second.
        position = 1 if hasattr(stock, "jinja_pass_arg") else 0

        @functools.wraps(stock)
        def charged(*args: Any, **kwargs: Any) -> Any:
            self.budget.tick()
            if as_text:
                args = (*args[:position], self.budget.text(args[position]), *args[position + 1 :])
            result = stock(*args, **kwargs)
            self.budget.spend(shallow_cost(result))
            return result

        return charged


def _check_bits(bits: int) -> None:
    if bits > MAX_INT_BITS:
        raise TemplateLimitError("it computes with numbers of over a thousand digits")
