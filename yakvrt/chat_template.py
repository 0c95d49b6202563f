"""Chat messages to prompt text, with the template the model ships."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn

from yakvrt.tool_calls import ToolFormat, tool_format

if TYPE_CHECKING:
    import jinja2

    from yakvrt.template_sandbox import BoundedEnvironment

MAX_SOURCE_CHARS = 256 << 10
MAX_OUTPUT_CHARS = 64 << 20
MAX_TIME_FORMAT = 100


class ChatTemplate:
    """A model's chat template, or its set of named ones.

    Safe to use from several threads.
    """

    __slots__ = ("_compiled", "_environment", "_lock", "_sources", "_special_tokens")

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """Keep the sources by name ("default", "tool_use") and the texts of bos_token and the like."""
        self._sources = dict(sources)
        self._special_tokens = dict(special_tokens)
        self._lock = Lock()
        self._environment: BoundedEnvironment | None = None
        self._compiled: dict[str, jinja2.Template] = {}

    @property
    def source(self) -> str:
        """The default template's text, or the first's."""
        return self._sources.get("default") or next(iter(self._sources.values()))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """Render the messages; keyword arguments (enable_thinking, date_string) reach the template unchanged.

        With a generation prompt, an assistant's message at the end is gone on with: as llama-server does,
        its content follows the prompt for an answer to those before it.

        Raises: ValueError when the messages are malformed, or the template is, refuses them or runs wild.
        """
        _check_messages(messages)
        begun = ""
        if add_generation_prompt and messages[-1]["role"] == "assistant":
            begun, messages = _begun_answer(messages), messages[:-1]
        name = self._choose(tools)
        values = {
            "documents": None,
            **self._special_tokens,
            **kwargs,
            "messages": list(messages),
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        with self._lock:
            try:
                return self._render(name, values) + begun
            except Exception as error:  # a template is a foreign program: anything can come
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                if not messages:
                    reason = f"none comes before the assistant's: {reason}"
                raise ValueError(
                    f"the chat template cannot render these messages ({reason}); change them or use --raw"
                ) from None

    @property
    def tool_format(self) -> ToolFormat | None:
        """How the template tells its model to call tools; None when that is not known."""
        return tool_format(self._sources.get("tool_use") or self._sources.get("default") or "")

    def _render(self, name: str, values: dict[str, Any]) -> str:
        from yakvrt.template_budget import Budget, TemplateLimitError, input_size
        from yakvrt.template_sandbox import BoundedEnvironment

        environment = self._environment
        if environment is None:
            environment = self._environment = BoundedEnvironment()
            environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        template = self._compiled.get(name)
        if template is None:
            source = self._sources[name]
            if len(source) > MAX_SOURCE_CHARS:
                raise TemplateLimitError(f"its source is longer than {MAX_SOURCE_CHARS} characters")
            environment.budget = Budget()
            template = self._compiled[name] = environment.bounded_template(source)
        environment.budget = Budget(input_size(values))
        pieces: list[str] = []
        length = 0
        for piece in template.generate(values):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_OUTPUT_CHARS:
                raise TemplateLimitError(f"it writes more than {MAX_OUTPUT_CHARS} characters")
        return "".join(pieces)

    def _choose(self, tools: Sequence[Any] | None) -> str:
        if tools and "tool_use" in self._sources:
            return "tool_use"
        if "default" in self._sources:
            return "default"
        if len(self._sources) == 1:
            return next(iter(self._sources))
        raise ValueError(
            f"the model has no default chat template, only {', '.join(sorted(self._sources))}; use --raw"
        )


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError('messages must be a non-empty list such as [{"role": "user", "content": "Hello"}]')
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f'message {index} has no role; write {{"role": "user", "content": "Hello"}}')


def _begun_answer(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the last message. Raises: ValueError when it cannot be gone on with."""
    last = messages[-1]
    if len(messages) > 1 and messages[-2]["role"] == "assistant":
        raise ValueError("the last two messages are both an assistant's, and one can be continued; join them")
    for name in ("tool_calls", "reasoning_content"):
        if last.get(name):
            raise ValueError(
                f"the last message is an assistant's with {name}, and only a text can be continued; leave "
                f"{name} out or add the message that follows"
            )
    content = last.get("content")
    if not isinstance(content, str | None):
        raise ValueError("the last message is an assistant's, and its content is no text to continue")
    return content or ""


def _raise_exception(message: object) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(str(message))


def _strftime_now(format: str) -> str:
    # A width such as %99999999Y makes the C library build text of that length.
    if len(format) > MAX_TIME_FORMAT or re.search(r"%[^a-zA-Z%]*\d", format):
        raise ValueError("it asks for a date in a strange format")
    return datetime.now().strftime(format)
