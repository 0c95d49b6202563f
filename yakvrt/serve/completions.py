"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from yakvrt.request import Piece
from yakvrt.serve.answers import Answers, finish_reason
from yakvrt.serve.body import as_struct, read_object
from yakvrt.serve.constraints import asked_grammar
from yakvrt.serve.errors import ApiError
from yakvrt.serve.logprobs import CompletionLogprobs, told_ids
from yakvrt.serve.prompts import text_ids
from yakvrt.serve.responses import answer
from yakvrt.serve.schema import CompletionRequest, check_choices, sampling_params
from yakvrt.serve.service import Model, Service

if TYPE_CHECKING:
    from yakvrt.prompt_text import AnyTokenizer
    from yakvrt.request import Request


class CompletionChoice:
    """An answer as a text that goes on from the prompt."""

    def __init__(self, index: int, request: Request, tokenizer: AnyTokenizer) -> None:
        self._index, self._request, self._tokenizer = index, request, tokenizer
        self._logprobs = CompletionLogprobs(tokenizer, request)
        self._n_told = 0

    def opening(self) -> Iterator[dict[str, Any]]:
        yield from ()

    def grown(self, piece: Piece) -> Iterator[dict[str, Any]]:
        yield self._choice(piece.text, piece.n_ids)

    def closing(self) -> Iterator[dict[str, Any]]:
        yield self._choice("", len(self._request.ids)) | {"finish_reason": finish_reason(self._request)}

    def whole(self) -> dict[str, Any]:
        made = self._choice(self._request.text, len(self._request.ids))
        return made | {"finish_reason": finish_reason(self._request)}

    def _choice(self, text: str, n_ids: int) -> dict[str, Any]:
        end = min(n_ids, told_ids(self._request, self._tokenizer))
        logprobs = self._logprobs.of(self._n_told, end) if end > self._n_told else None
        self._n_told = max(self._n_told, end)
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": None}


async def completions(http: HttpRequest) -> Response:
    """Goes on from a text, or from each of several."""
    service: Service = http.app.state.service
    model = service.model
    asked = as_struct(await read_object(http, service.settings.max_body_bytes), CompletionRequest)
    vocab_size = model.engine.config.vocab_size
    grammar = asked_grammar(asked)
    params = sampling_params(asked, asked.n_logprobs, grammar, model.defaults, vocab_size)
    prompts = _prompts(asked)
    check_choices(asked.n, len(prompts))
    ids = await service.prompts.run(_encoded, model, prompts)
    answers = Answers("cmpl", http.app.state, ids, asked.n)
    await answers.submit(params)
    choices = [CompletionChoice(i, request, model.tokenizer) for i, request in enumerate(answers.requests)]
    return answer(answers, choices, "text_completion", asked, http)


def _prompts(asked: CompletionRequest) -> list[str | list[int]]:
    if isinstance(asked.prompt, str):
        return [asked.prompt]
    if not asked.prompt:
        raise ApiError("prompt is an empty list; give a text, token ids or several of them", param="prompt")
    ids = [each for each in asked.prompt if isinstance(each, int)]
    if ids and len(ids) < len(asked.prompt):
        raise ApiError("prompt mixes token ids with texts or lists", param="prompt")
    return [ids] if ids else [each for each in asked.prompt if not isinstance(each, int)]


def _encoded(model: Model, prompts: list[str | list[int]]) -> list[list[int]]:
    return [text_ids(model, each) if isinstance(each, str) else each for each in prompts]
