"""How far a run is: a bar on a terminal, and a line at the end."""

from __future__ import annotations

import time
from types import TracebackType

import msgspec

from yakvrt.batch.requests import BatchRequest
from yakvrt.batch.results import ResultFile
from yakvrt.terminal import Bar, counted, note


class Usage(msgspec.Struct):
    """Tokens, as an answer tells them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answer(msgspec.Struct):
    """What is looked at of an answer."""

    usage: Usage | None = None


class Progress:
    """Takes results to their file and counts them. `n_total` are those still to come."""

    def __init__(self, results: ResultFile, n_total: int) -> None:
        self._results, self._n_total = results, n_total
        self._n_done = self._n_failed = self._prompt_tokens = self._written_tokens = 0
        self._began: float | None = None
        self._bar = Bar("answering")

    def begin(self, model: str) -> None:
        """A model is there; more than once where there are several. Raises: ValueError for another one."""
        self._results.check_model(model)
        self._began = self._began or time.monotonic()

    def answered(self, request: BatchRequest, status: int, body: bytes) -> None:
        """The answer to a request, of whatever status."""
        self._results.add(request, status, body)
        usage = msgspec.json.decode(body, type=Answer).usage or Usage()
        self._prompt_tokens += usage.prompt_tokens
        self._written_tokens += usage.completion_tokens
        self._count(status == 200)

    def lost(self, request: BatchRequest, code: str, message: str) -> None:
        """There will be no answer."""
        self._results.add_lost(request, code, message)
        self._count(False)

    def _count(self, has_answer: bool) -> None:
        self._n_done += 1
        self._n_failed += not has_answer
        self._bar.title = f"{self._written_tokens / self._elapsed_s:.0f} tokens/s"
        self._bar(self._n_done, self._n_total)

    @property
    def _elapsed_s(self) -> float:
        now = time.monotonic()
        return max(now - (self._began or now), 1e-9)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed_s = self._elapsed_s
        self._bar.close()
        if not self._n_done and self._began is None:
            return
        read, written = (counted(n, "token") for n in (self._prompt_tokens, self._written_tokens))
        answered = counted(self._n_done - self._n_failed, "request")
        note(
            f"{answered} done, {self._n_failed} failed | prompts: {read}, answers: "
            f"{written} in {elapsed_s:.1f} s, {self._written_tokens / elapsed_s:.1f} tokens/s"
        )
        if self._n_done < self._n_total:
            rest = counted(self._n_total - self._n_done, "request")
            goes_on = "; the same command goes on with them" if self._results.is_regular else ""
            note(f"{rest} left{goes_on}")
