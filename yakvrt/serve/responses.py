"""How answers reach the client: whole, or as a stream."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from yakvrt.serve.answers import Answers, unless_left
from yakvrt.serve.errors import ApiError, json_response, of_failure
from yakvrt.serve.schema import Sampling
from yakvrt.serve.sse import Choice, EventStream


def answer(
    answers: Answers, choices: Sequence[Choice], kind: str, asked: Sampling, http: HttpRequest
) -> Response:
    """`kind` is what the API calls the object."""
    if asked.stream:
        name = f"{kind}.chunk" if kind.startswith("chat") else kind
        return EventStream(answers, choices, name, has_usage=asked.has_usage)
    return WholeAnswer(answers, choices, kind)


class WholeAnswer(Response):
    """Everything at once, when the last answer has ended. They end when the client leaves."""

    def __init__(self, answers: Answers, choices: Sequence[Choice], kind: str) -> None:
        super().__init__()
        self._answers, self._choices, self._kind = answers, choices, kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await unless_left(receive, self._response())
        finally:
            self._answers.close()
        if response is not None:
            await response(scope, receive, send)

    async def _response(self) -> Response:
        answers = self._answers
        try:
            await answers.ended()
            choices = [choice.whole() for choice in self._choices]
        except Exception as error:
            return of_failure(error).response()
        if all(request.finish_reason == "deadline" and not request.ids for request in answers.requests):
            return ApiError("no token came in time; try again later", status=503, code="timeout").response()
        body = answers.head(self._kind) | {"choices": choices}
        return json_response(body | {"usage": answers.usage()} | answers.measures())
