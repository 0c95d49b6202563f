"""Messages of a conversation, as clients send them and as chat templates read them."""

from __future__ import annotations

from typing import Any

from yakvrt.serve.errors import ApiError
from yakvrt.serve.settings import MAX_MESSAGES
from yakvrt.tool_prompt import template_messages as with_arguments

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
TEXTS = ("content", "name", "reasoning_content", "tool_call_id")
# Clients send answers back as they came.
EMPTY: tuple[Any, ...] = (None, [], {}, "")


def template_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Raises: ApiError naming the message and what is wrong with it."""
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise ApiError(
            f"messages has {len(messages)} entries, it must have 1 to {MAX_MESSAGES}", param="messages"
        )
    return with_arguments(_message(message, f"messages[{i}]") for i, message in enumerate(messages))


def check_template_kwargs(given: dict[str, Any]) -> None:
    """Raises: ApiError for values of the template that have a field of their own."""
    reserved = {"self", "messages", "tools", "add_generation_prompt"} & given.keys()
    if reserved:
        raise ApiError(f"chat_template_kwargs may not hold {min(reserved)}", param="chat_template_kwargs")


def _message(message: dict[str, Any], place: str) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ApiError(
            f"{place}.role is {str(role)[:40]!r}, it must be one of {', '.join(ROLES)}", param=f"{place}.role"
        )
    made: dict[str, Any] = {"role": ROLES[role], "content": ""}
    for name, value in message.items():
        if name == "role" or (value in EMPTY and name not in TEXTS):
            continue
        if name == "content":
            made["content"] = _text(value, f"{place}.content")
        elif name in TEXTS:
            if value is not None:
                made[name] = _string(value, f"{place}.{name}")
        elif name == "tool_calls":
            made[name] = _calls(value, f"{place}.{name}")
        else:
            raise ApiError(
                f"{place}.{name[:60]} is not supported; leave it out",
                code="unsupported_parameter",
                param=f"{place}.{name[:60]}",
            )
    if role != "assistant" and message.get("content") is None:
        place = f"{place}.content"
        raise ApiError(f"{place} is missing; it must be a text or a list of parts", param=place)
    return made


def _text(content: Any, place: str) -> str:
    """A text, or the parts of one as lines."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(f"{place} must be a text or a list of parts", param=place)
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in ("text", "refusal"):
            raise ApiError(
                f"{place}[{i}] is of type {str(kind)[:40]!r}; only text is supported",
                code="unsupported_parameter",
                param=f"{place}[{i}].type",
            )
        texts.append(_string(part.get(kind), f"{place}[{i}].{kind}"))
    return "\n".join(texts)


def _calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """What the assistant called, as it was told."""
    made = []
    for i, call in enumerate(calls if isinstance(calls, list) else [None]):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or call.get("type", "function") != "function":
            raise ApiError(
                f'{place}[{i}] must be {{"type": "function", "function": {{...}}}}', param=f"{place}[{i}]"
            )
        told = {
            name: _string(function.get(name), f"{place}[{i}].function.{name}")
            for name in ("name", "arguments")
        }
        id = _string(call.get("id") or "", f"{place}[{i}].id")
        made.append({"id": id, "type": "function", "function": told})
    return made


def _string(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise ApiError(f"{place} must be a text", param=place)
    return value
