"""The answers to one HTTP request: submitted together, given up together."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.datastructures import State
from starlette.types import Receive

from yakvrt.grammar_check import import_llguidance
from yakvrt.scheduler_state import OverloadedError
from yakvrt.serve.errors import ApiError
from yakvrt.serve.metrics import Metrics
from yakvrt.serve.prompts import check_length
from yakvrt.serve.service import Service

if TYPE_CHECKING:
    from yakvrt.request import Request
    from yakvrt.sampler import SamplingParams

T = TypeVar("T")
FINISH = {"stop": "stop", "length": "length", "deadline": "length"}


class Answers:
    """n answers to each of some prompts, in this order; all share an id."""

    def __init__(self, kind: str, state: State, prompts: Sequence[list[int]], n: int) -> None:
        self.id = f"{kind}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.service: Service = state.service
        self.model = self.service.model
        self._metrics: Metrics = state.metrics
        self.prompts, self.n = prompts, n
        self.requests: list[Request] = []

    async def submit(self, params: SamplingParams) -> None:
        """All or none. A seed goes to the first answer, its successors to the others.

        Raises: ApiError for a prompt that is too long, a grammar that does not compile, when too many wait.
        """
        grammar = params.grammar
        is_new = grammar is not None and not self.model.engine.tokenizer.knows_grammar(grammar)
        workers = self.service.grammars if is_new else self.service.prompts
        await workers.run(self._submit, params)

    def _submit(self, params: SamplingParams) -> None:
        if params.grammar:
            check_grammars()
        for ids in self.prompts:
            check_length(ids, self.model.engine.ctx_size)
        most = self.service.settings.max_waiting
        if len(self.prompts) * self.n > most:
            raise ApiError(
                f"{len(self.prompts) * self.n} choices are more than the {most} that may wait", param="n"
            )
        timeout = self.service.settings.timeout_s or None
        seed = params.seed
        try:
            for ids in self.prompts:
                for _ in range(self.n):
                    each = params
                    if seed is not None and seed >= 0:
                        each = replace(params, seed=(seed + len(self.requests)) % (1 << 64))
                    self.requests.append(
                        self.model.scheduler.submit(ids, each, timeout_s=timeout, name=self.id)
                    )
        except Exception as error:
            self.abort()
            if isinstance(error, ValueError):
                raise ApiError(str(error)) from None
            if isinstance(error, RuntimeError):
                code = "overloaded" if isinstance(error, OverloadedError) else "shutting_down"
                raise ApiError(str(error), status=503, code=code) from None
            raise

    def abort(self) -> None:
        """Ends those that have not ended."""
        for request in self.requests:
            request.abort()

    def close(self) -> None:
        """Nobody waits for them any more."""
        self.abort()
        for request in self.requests:
            self._metrics.answered(request)

    async def ended(self) -> None:
        """Waits for all. Raises: the error of one that failed."""
        for request in self.requests:
            await request.wait()

    def usage(self) -> dict[str, Any]:
        """Tokens so far: each prompt counts once."""
        prompts = sum(map(len, self.prompts))
        written = sum(len(request.ids) for request in self.requests)
        cached = sum(int(request.timings["cache_n"]) for request in self.requests[:: self.n])
        return {
            "prompt_tokens": prompts,
            "completion_tokens": written,
            "total_tokens": prompts + written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def measures(self) -> dict[str, Any]:
        """llama.cpp's timings, and what the KV method had to do, of the first answer."""
        first = self.requests[0]
        return {"timings": first.timings, "kv": first.kv}

    def head(self, kind: str) -> dict[str, Any]:
        """The fields with which every object begins."""
        from yakvrt import __version__

        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": f"yakvrt-{__version__}",
        }


def check_grammars() -> None:
    """Raises: ApiError where the package for them is missing."""
    try:
        import_llguidance()
    except RuntimeError as error:
        raise ApiError(str(error), status=501, code="not_supported") from None


def finish_reason(request: Request) -> str | None:
    """OpenAI's word; what ran out of time was cut, as what ran out of tokens.

    Raises: ApiError for what the server ended: nobody else aborts an answer that a client waits for.
    """
    if request.finish_reason == "abort":
        raise ApiError(
            "the server shut down before the answer was complete", status=503, code="shutting_down"
        )
    return FINISH[request.finish_reason] if request.finish_reason else None


async def until_left(receive: Receive) -> None:
    """Returns when the client has gone; its body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_left(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work returns, or None when the client goes before: the work is cancelled then."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(until_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
