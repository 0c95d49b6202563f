"""Prompts as token ids. One that is far too long is refused before all of it is read: that takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from yakvrt.serve.errors import ApiError
from yakvrt.serve.messages import check_template_kwargs, template_messages

if TYPE_CHECKING:
    from yakvrt.serve.service import Model

BEGINNING = 16  # characters for each token of the context
# Cut anywhere, a text has about as many tokens up to there as in the whole.
CERTAIN = 2


def text_ids(model: Model, text: str) -> list[int]:
    """Of a prompt as it stands. Raises: ApiError."""
    try:
        return _bounded(model, text, model.tokenizer.encode)
    except ValueError as error:
        raise ApiError(str(error), param="prompt") from None


def chat_ids(
    model: Model,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    template_kwargs: dict[str, Any],
) -> list[int]:
    """Of a conversation. Raises: ApiError, also for messages that the template refuses."""
    tokenizer = model.tokenizer
    if not tokenizer.has_chat_template:
        raise ApiError(
            "the model has no chat template; use /v1/completions, or start the server with one "
            "(--chat-template-file)",
            code="no_chat_template",
        )
    check_template_kwargs(template_kwargs)
    told = template_messages(messages)
    try:
        text = tokenizer.render_chat(told, tools=tools, **template_kwargs)
        return _bounded(model, text, tokenizer.encode_rendered)
    except (ValueError, TypeError) as error:
        raise ApiError(str(error).removesuffix(" or use --raw"), param="messages") from None


def check_length(ids: Sequence[int], ctx_size: int) -> None:
    """Raises: ApiError for a prompt that leaves no room, or none at all."""
    if not ids:
        raise ApiError("the prompt is empty; give at least one token", param="prompt")
    if len(ids) >= ctx_size:
        raise too_long(str(len(ids)), ctx_size, n_prompt_tokens=len(ids))


def too_long(n_tokens: str, ctx_size: int, **more: Any) -> ApiError:
    return ApiError(
        f"the prompt has {n_tokens} tokens, the context holds {ctx_size} and one must stay free; shorten "
        "it or start the server with a larger --ctx-size",
        code="context_length_exceeded",
        **more,
        n_ctx=ctx_size,
    )


def _bounded(model: Model, text: str, encode: Callable[[str], list[int]]) -> list[int]:
    ctx_size = model.engine.ctx_size
    if len(text) > ctx_size * model.tokenizer.max_token_chars:
        raise too_long(f"more than {ctx_size}", ctx_size)
    beginning = text[: ctx_size * BEGINNING]
    if len(beginning) < len(text) and len(encode(beginning)) >= ctx_size * CERTAIN:
        raise too_long(f"more than {ctx_size}", ctx_size)
    return encode(text)
