"""Log-probabilities in the formats of OpenAI's two APIs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yakvrt.prompt_text import AnyTokenizer
    from yakvrt.request import Request

LEAST = -9999.0  # JSON has no minus infinity


def told_ids(request: Request, tokenizer: AnyTokenizer) -> int:
    """How many ids are told: an end-of-text id at the end is none of the answer."""
    ids = request.ids
    n = len(ids)
    return n - 1 if n and ids[n - 1] in tokenizer.eos_ids else n


def _number(logprob: float | None) -> float:
    return LEAST if logprob is None or not math.isfinite(logprob) else max(logprob, LEAST)


def _entry(tokenizer: AnyTokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    piece = tokenizer.token_bytes(token)
    return {"token": piece.decode("utf-8", "replace"), "logprob": _number(logprob), "bytes": list(piece)}


def chat_logprobs(tokenizer: AnyTokenizer, request: Request, start: int, end: int) -> dict[str, Any] | None:
    """Of the ids from start to end, where they were asked for."""
    if request.logprobs is None:
        return None
    content = []
    for sampled in request.logprobs[start:end]:
        best = [_entry(tokenizer, token, logprob) for token, logprob in sampled.top]
        content.append(_entry(tokenizer, sampled.id, sampled.logprob) | {"top_logprobs": best})
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """The older format, with the place of every token in the text."""

    def __init__(self, tokenizer: AnyTokenizer, request: Request) -> None:
        self._tokenizer, self._request = tokenizer, request
        self._offset = 0

    def of(self, start: int, end: int) -> dict[str, Any] | None:
        """Of the next ids, where they were asked for."""
        if self._request.logprobs is None:
            return None
        tokens, values, best, offsets = [], [], [], []
        for sampled in self._request.logprobs[start:end]:
            token = self._text(sampled.id)
            tokens.append(token)
            values.append(_number(sampled.logprob))
            best.append(self._best(sampled.top))
            offsets.append(self._offset)
            self._offset += len(token)
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": best, "text_offset": offsets}

    def _best(self, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        found: dict[str, float] = {}
        for token, logprob in top:  # the most likely first, and different tokens may read the same
            found.setdefault(self._text(token), _number(logprob))
        return found

    def _text(self, token: int) -> str:
        piece = self._tokenizer.token_bytes(token)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
