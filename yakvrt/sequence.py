"""One running request: prompt ids in, pieces of text out, over one KV slot."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from collections.abc import Sequence as IdSequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .draw import Draw, Next
from .generation import FinishReason, Generation
from .sampler import Logits, Sampled, SamplingParams
from .trace_log import NO_TRACE, Trace

if TYPE_CHECKING:
    from types import TracebackType

    from .no_tokenizer import NoTokenizer
    from .tokenizer import Tokenizer

Progress = Callable[[int, int], None]


class SlotSession(Protocol):
    """What a sequence needs of a KV slot; engine.Session is one."""

    @property
    def ids(self) -> IdSequence[int]:
        """The tokens whose KV is held."""

    @property
    def ctx_size(self) -> int:
        """The largest number of tokens the slot holds."""

    @property
    def kv(self) -> Mapping[str, Any]:
        """The KV method and its bytes."""

    def prefill(self, ids: IdSequence[int], progress: Progress | None = None) -> Logits: ...

    def next(self, token: int, draw: Draw | None) -> Next:
        """Appends a token. Returns: what was drawn, where that is asked for and done, or logits."""

    def truncate(self, n: int) -> None: ...

    def close(self) -> None: ...


class Sequence:
    """Iterate it for pieces of text; the KV that the session shares with the prompt is kept and reused.

    The work happens inside the iteration: the first step runs the prefill (progress is called with the tokens
    done and the tokens to do), every further one a decode. Text ends before a stop string; .ids holds every
    sampled id, an end-of-text id included. finish_reason is None until the end and stays None when closed or
    interrupted. Prompt and generated tokens together never exceed the context.

    Owns: the session when owns_session is true; it is then closed with the sequence.
    Raises: ValueError for a prompt that is empty or leaves no room in the context.
    """

    def __init__(
        self,
        session: SlotSession,
        tokenizer: Tokenizer | NoTokenizer,
        prompt_ids: IdSequence[int],
        params: SamplingParams,
        *,
        owns_session: bool = False,
        progress: Progress | None = None,
        trace: Trace = NO_TRACE,
    ) -> None:
        self.prompt_ids: list[int] = list(prompt_ids)
        self.params = params
        self._session = session
        self._owns_session = owns_session
        self._progress, self._trace = progress, trace
        self._parts: list[str] = []
        self._cache_n = 0
        self._prompt_s = self._ttft_s = self._predicted_s = 0.0
        self._kv: dict[str, Any] | None = None
        self._logits: Logits = np.empty(0, np.float32)  # of the prompt, once it is taken in
        self._pieces = self._run()
        try:
            self._generation = Generation(tokenizer, self.prompt_ids, params, session.ctx_size)
        except ValueError:
            self.close()
            raise

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __enter__(self) -> Sequence:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def text(self) -> str:
        """All pieces so far, also after an interruption."""
        return "".join(self._parts)

    @property
    def ids(self) -> list[int]:
        """Every sampled id."""
        return self._generation.ids

    @property
    def logprobs(self) -> list[Sampled] | None:
        """One for every id, where the parameters ask for them."""
        return self._generation.logprobs

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._generation.finish_reason if self._prompt_s else None

    @property
    def seed(self) -> int:
        """The seed in use, drawn when none was given."""
        return self._generation.seed

    @property
    def kv(self) -> dict[str, Any]:
        """The KV method and its bytes, as they were at the end once the sequence is closed."""
        return dict(self._session.kv) if self._kv is None else self._kv

    @property
    def timings(self) -> dict[str, float]:
        """llama.cpp's timing fields, and ttft_ms: from the first step to the first token.

        The first token costs no decode: predicted_ms is the time of the predicted_n - 1 steps after it, and
        the rates count those steps.
        """
        prompt_n = len(self.prompt_ids) - self._cache_n if self._prompt_s else 0
        prompt_ms, predicted_ms = self._prompt_s * 1e3, self._predicted_s * 1e3
        steps = max(len(self.ids) - 1, 0)
        return {
            "cache_n": self._cache_n,
            "prompt_n": prompt_n,
            "prompt_ms": prompt_ms,
            "prompt_per_token_ms": prompt_ms / prompt_n if prompt_n else 0.0,
            "prompt_per_second": prompt_n / self._prompt_s if prompt_n else 0.0,
            "predicted_n": len(self.ids),
            "predicted_ms": predicted_ms,
            "predicted_per_token_ms": predicted_ms / steps if steps else 0.0,
            "predicted_per_second": steps / self._predicted_s if steps else 0.0,
            "ttft_ms": self._ttft_s * 1e3,
        }

    def prefill(self) -> None:
        """Take the prompt in now; otherwise the first step of the iteration does."""
        if not self._prompt_s:
            self._logits = self._prefill()

    def close(self) -> None:
        """Stop, and free the slot when it is owned; further calls do nothing."""
        self._pieces.close()
        self._release()  # a generator that never started runs no finally

    def _release(self) -> None:
        if self._kv is None:
            self._kv = dict(self._session.kv)
            if self._owns_session:
                self._session.close()

    def _run(self) -> Generator[str, None, None]:
        try:
            for piece in self._generate():
                self._parts.append(piece)
                yield piece
        finally:
            self._release()

    def _generate(self) -> Iterator[str]:
        self.prefill()
        started, answer = time.perf_counter(), self._generation
        known: Next = self._logits
        before = 0.0
        while answer.finish_reason is None:
            with self._trace.span("sample"):
                piece = answer.push(known)
            now = time.perf_counter()
            if before:
                self._predicted_s += now - before
            else:
                self._ttft_s = self._prompt_s + now - started
            if piece:
                yield piece
            if answer.finish_reason is None:
                before = time.perf_counter()
                known = self._session.next(answer.ids[-1], answer.draw())

    def _prefill(self) -> Logits:
        """Run the part of the prompt whose KV the session does not hold yet, at least its last token."""
        started = time.perf_counter()
        held = self._session.ids
        shared = min(len(held), len(self.prompt_ids) - 1)
        self._cache_n = next((i for i in range(shared) if held[i] != self.prompt_ids[i]), shared)
        self._session.truncate(self._cache_n)
        self._cache_n = len(self._session.ids)
        logits = self._session.prefill(self.prompt_ids[self._cache_n :], self._progress)
        self._prompt_s = time.perf_counter() - started
        return logits
