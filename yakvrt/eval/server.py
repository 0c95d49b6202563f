"""An OpenAI-compatible server as what answers samples: its score alone can be read."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .evaluation import Progress, Skipped, limited
from .method_specs import MethodSpec
from .sample import Sample

MAX_ANSWER_BYTES = 64 << 20
BUSY = (429, 502, 503, 504)  # a server that still loads its model says 503
TRIES = 6
TIMEOUT_S = 3600


class ServerError(RuntimeError):
    """What a server answered, or did not, in a sentence."""


class Server:
    """POST URL/v1/chat/completions, greedy. `model` is the name that the server knows it by.

    Asked again after pause_s, and ever longer, while it is busy. A sample that with its answer has more than
    ctx_size tokens, as `count` tells, is kept from it; 0: none is.

    Raises: ValueError for an address that is none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str | None,
        count: Callable[[str], int],
        max_tokens: int | None,
        ctx_size: int,
        *,
        pause_s: float = 1,
    ) -> None:
        if not url.startswith(("http://", "https://")) or len(url) < 9:
            raise ValueError(f"--server {url!r} is no address; write it like http://127.0.0.1:8080")
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        self._model, self._api_key, self._pause_s = model, api_key, pause_s
        self._count, self._max_tokens, self._ctx_size = count, max_tokens, ctx_size

    def readings(
        self, sample: Sample, specs: Sequence[MethodSpec], progress: Progress
    ) -> Iterator[tuple[MethodSpec, dict[str, Any]]]:
        """One answer. Raises: ServerError; Skipped for one that is too long or asks for none."""
        if not limited(sample, self._max_tokens):
            raise Skipped("it asks for no answer, and a server's answer is all that is read")
        n_tokens = self._count(sample.prompt) + limited(sample, self._max_tokens)
        if 0 < self._ctx_size < n_tokens:
            raise Skipped(f"{n_tokens} tokens with the answer, the context holds {self._ctx_size}")
        progress("waiting for the server", 0)
        started = time.monotonic()
        found = self._answer(sample)
        for spec in specs:
            yield spec, {**found, "seconds": round(time.monotonic() - started, 3)}

    def _answer(self, sample: Sample) -> dict[str, Any]:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": sample.prompt}],
            "temperature": 0,
            "max_tokens": limited(sample, self._max_tokens),
            "stream": False,
        }
        answer = self._post(body, sample.id)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] or ""
            usage = answer.get("usage") or {}
            if not isinstance(text, str):
                raise TypeError
            return {
                "text": text,
                "finish_reason": choice.get("finish_reason"),
                "prompt_tokens": usage.get("prompt_tokens"),
                "generated_tokens": usage.get("completion_tokens"),
            }
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ServerError(
                f"{self._url} answered sample {sample.id} with something else than a chat completion; "
                "give the address of an OpenAI-compatible server"
            ) from None

    def _post(self, body: dict[str, Any], sample_id: str) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        for attempt in range(TRIES):
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                    return json.loads(response.read(MAX_ANSWER_BYTES))
            except urllib.error.HTTPError as error:
                said = " ".join(error.read(4096).decode("utf-8", "replace").split())[:300]
                if error.code not in BUSY or attempt == TRIES - 1:
                    raise ServerError(
                        f"{self._url} refused sample {sample_id} with HTTP {error.code} ({said}); a prompt "
                        "that is too long for it is kept from it by -c, a key is given with --api-key"
                    ) from None
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                raise ServerError(
                    f"{self._url} cannot be reached ({reason}); start the server, or mend --server"
                ) from None
            except (ValueError, RecursionError):
                raise ServerError(
                    f"{self._url} answered sample {sample_id} with no JSON; give the address of an "
                    "OpenAI-compatible server"
                ) from None
            time.sleep(self._pause_s * 2**attempt)
        raise AssertionError("the last try returns or raises")
