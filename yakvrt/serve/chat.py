"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from yakvrt.request import Piece
from yakvrt.serve.answers import Answers, finish_reason
from yakvrt.serve.body import as_struct, read_object
from yakvrt.serve.constraints import asked_grammar
from yakvrt.serve.errors import ApiError
from yakvrt.serve.logprobs import chat_logprobs, told_ids
from yakvrt.serve.messages import check_template_kwargs, template_messages
from yakvrt.serve.responses import answer
from yakvrt.serve.schema import ChatRequest, check_choices, sampling_params
from yakvrt.serve.service import Model, Service
from yakvrt.serve.tools import check_tools

if TYPE_CHECKING:
    from yakvrt.prompt_text import AnyTokenizer
    from yakvrt.request import Request


class ChatChoice:
    """An answer as a message, or as what a message grows by."""

    def __init__(self, index: int, request: Request, tokenizer: AnyTokenizer) -> None:
        self._index, self._request, self._tokenizer = index, request, tokenizer
        self._n_told = 0

    def opening(self) -> Iterator[dict[str, Any]]:
        yield self._chunk({"role": "assistant", "content": ""})

    def grown(self, piece: Piece) -> Iterator[dict[str, Any]]:
        yield self._chunk({"content": piece.text}, piece.n_ids)

    def closing(self) -> Iterator[dict[str, Any]]:
        yield self._chunk({}, len(self._request.ids)) | {"finish_reason": finish_reason(self._request)}

    def whole(self) -> dict[str, Any]:
        return {
            "index": self._index,
            "message": {"role": "assistant", "content": self._request.text, "refusal": None},
            "logprobs": chat_logprobs(
                self._tokenizer, self._request, 0, told_ids(self._request, self._tokenizer)
            ),
            "finish_reason": finish_reason(self._request),
        }

    def _chunk(self, delta: dict[str, Any], n_ids: int = 0) -> dict[str, Any]:
        end = min(n_ids, told_ids(self._request, self._tokenizer))
        logprobs = (
            chat_logprobs(self._tokenizer, self._request, self._n_told, end) if end > self._n_told else None
        )
        self._n_told = max(self._n_told, end)
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


async def chat_completions(http: HttpRequest) -> Response:
    """Answers a conversation."""
    service: Service = http.app.state.service
    model = service.model
    asked = as_struct(await read_object(http, service.settings.max_body_bytes), ChatRequest)
    check_choices(asked.n, 1)
    check_tools(asked)
    vocab_size = model.engine.config.vocab_size
    grammar = asked_grammar(asked)
    params = sampling_params(asked, asked.n_logprobs, grammar, model.defaults, vocab_size)
    ids = await asyncio.to_thread(encode_chat, model, asked)
    answers = Answers("chatcmpl", http.app.state, [ids], asked.n)
    await asyncio.to_thread(answers.submit, params)
    choices = [ChatChoice(i, request, model.tokenizer) for i, request in enumerate(answers.requests)]
    return answer(answers, choices, "chat.completion", asked, http)


def encode_chat(model: Model, asked: ChatRequest) -> list[int]:
    """The prompt. Raises: ApiError for messages that the template refuses."""
    check_template_kwargs(asked.chat_template_kwargs)
    messages = template_messages(asked.messages)
    try:
        return model.tokenizer.encode_chat(messages, **asked.chat_template_kwargs)
    except (ValueError, TypeError) as error:
        raise ApiError(str(error), param="messages") from None
