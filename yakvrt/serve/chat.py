"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from yakvrt.request import Piece
from yakvrt.serve.answers import Answers, finish_reason
from yakvrt.serve.body import as_struct, read_object
from yakvrt.serve.constraints import asked_grammar
from yakvrt.serve.logprobs import chat_logprobs, told_ids
from yakvrt.serve.prompts import chat_ids
from yakvrt.serve.responses import answer
from yakvrt.serve.schema import ChatRequest, check_choices, sampling_params
from yakvrt.serve.service import Service
from yakvrt.serve.tools import Tools, asked_tools, call_object

if TYPE_CHECKING:
    from yakvrt.prompt_text import AnyTokenizer
    from yakvrt.request import Request
    from yakvrt.tool_calls import Part


class ChatChoice:
    """An answer as a message, or as what a message grows by."""

    def __init__(self, index: int, request: Request, tokenizer: AnyTokenizer, tools: Tools | None) -> None:
        self._index, self._request, self._tokenizer = index, request, tokenizer
        self._parser = tools.parser() if tools else None
        self._n_told = self._n_calls = 0

    def opening(self) -> Iterator[dict[str, Any]]:
        yield self._chunk({"role": "assistant", "content": ""})

    def grown(self, piece: Piece) -> Iterator[dict[str, Any]]:
        parts: list[Part] = self._parser.push(piece.text) if self._parser else [piece.text]
        for left, part in zip(range(len(parts) - 1, -1, -1), parts, strict=True):
            yield self._chunk(self._delta(part), 0 if left else piece.n_ids)

    def closing(self) -> Iterator[dict[str, Any]]:
        for part in self._rest():
            yield self._chunk(self._delta(part))
        yield self._chunk({}, len(self._request.ids)) | {"finish_reason": self._finish_reason()}

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self._request.text, "refusal": None}
        if self._parser:
            parts = [*self._parser.push(self._request.text), *self._rest()]
            message["content"] = "".join(part for part in parts if isinstance(part, str)) or None
            if self._parser.calls:
                message["tool_calls"] = [call_object(call) for call in self._parser.calls]
        return {
            "index": self._index,
            "message": message,
            "logprobs": chat_logprobs(
                self._tokenizer, self._request, 0, told_ids(self._request, self._tokenizer)
            ),
            "finish_reason": self._finish_reason(),
        }

    def _rest(self) -> list[Part]:
        """What the parser still holds. Only a client's stop text ends an answer where it means to go on."""
        return self._parser.flush(is_cut=self._request.finish_reason != "stop") if self._parser else []

    def _delta(self, part: Part) -> dict[str, Any]:
        if isinstance(part, str):
            return {"content": part}
        self._n_calls += 1
        return {"tool_calls": [{"index": self._n_calls - 1, **call_object(part)}]}

    def _finish_reason(self) -> str | None:
        reason = finish_reason(self._request)
        return self._parser.finish_reason(reason) if self._parser and reason else reason

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
    asked.check_continuing()
    vocab_size = model.engine.config.vocab_size
    tools = asked_tools(asked, model.tokenizer.tool_format)
    grammar = tools.grammar if tools and tools.grammar else asked_grammar(asked)
    params = sampling_params(asked, asked.n_logprobs, grammar, model.defaults, vocab_size)
    if tools:
        params = replace(params, stop=(*params.stop, *tools.stops))
    definitions = tools.definitions if tools else None
    ids = await service.prompts.run(chat_ids, model, asked.messages, definitions, asked.chat_template_kwargs)
    answers = Answers("chatcmpl", http.app.state, [ids], asked.n)
    await answers.submit(params)
    choices = [ChatChoice(i, request, model.tokenizer, tools) for i, request in enumerate(answers.requests)]
    return answer(answers, choices, "chat.completion", asked, http)
