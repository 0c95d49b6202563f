"""What requests for answers may say, and the sampling parameters that they mean."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec

from yakvrt.grammar import Grammar
from yakvrt.sampler import SamplingParams
from yakvrt.serve.errors import ApiError
from yakvrt.serve.settings import MAX_BIASES, MAX_CHOICES, MAX_STOP_CHARS, MAX_STOPS, MAX_TOP_LOGPROBS
from yakvrt.terminal import counted

NEVER = -1e38  # a bias as low as this rules a token out: JSON has no minus infinity
# Fields that are SamplingParams' own, by name.
SAMPLING = (
    "seed",
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "ignore_eos",
)


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """How a stream is told."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # has no effect: there is none


class Sampling(msgspec.Struct, kw_only=True):
    """What both kinds of requests have; what is left out follows the server's flags, then the model."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = 1
    stop: str | list[str] = []
    stop_ids: list[int] = []
    seed: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float] = {}
    response_format: dict[str, Any] | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str = ""

    @property
    def has_form(self) -> bool:
        """Whether response_format or one of its kin confines the answer."""
        formatted = self.response_format is not None and self.response_format != {"type": "text"}
        return formatted or self.json_schema is not None or bool(self.grammar)

    @property
    def has_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(Sampling, kw_only=True):
    """Of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    logprobs: bool = False
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] = {}
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    continue_final_message: bool | None = None

    def check_continuing(self) -> None:
        """Raises: ApiError where it says otherwise than the last message."""
        role = self.messages[-1].get("role") if self.messages else None
        if self.continue_final_message not in (None, role == "assistant"):
            raise ApiError(
                "an assistant's last message is continued and no other is; change continue_final_message or "
                "leave it out",
                param="continue_final_message",
            )

    @property
    def n_logprobs(self) -> int | None:
        """The best tokens to tell of every position. Raises: ApiError."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
        if not self.logprobs:
            return None
        return checked_logprobs(self.top_logprobs or 0, "top_logprobs")


class CompletionRequest(Sampling, kw_only=True):
    """Of /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None

    @property
    def n_logprobs(self) -> int | None:
        """As for chats."""
        return None if self.logprobs is None else checked_logprobs(self.logprobs, "logprobs")


def checked_logprobs(n: int, name: str) -> int:
    """Raises: ApiError when it is out of range."""
    if not 0 <= n <= MAX_TOP_LOGPROBS:
        raise ApiError(f"{name} is {n}, it must be from 0 to {MAX_TOP_LOGPROBS}", param=name)
    return n


def check_choices(n: int, n_prompts: int) -> None:
    """Raises: ApiError for none, or more than may be asked for at once."""
    if not (n >= 1 and n * n_prompts <= MAX_CHOICES):
        raise ApiError(
            f"n is {n} for {counted(n_prompts, 'prompt')}; there must be 1 to {MAX_CHOICES} choices in all",
            param="prompt" if n_prompts > MAX_CHOICES else "n",
        )


def sampling_params(
    asked: Sampling,
    n_logprobs: int | None,
    grammar: Grammar | None,
    defaults: SamplingParams,
    vocab_size: int,
) -> SamplingParams:
    """The defaults with what is asked for in their place. Raises: ApiError naming what is out of range."""
    given: dict[str, Any] = {name: value for name in SAMPLING if (value := getattr(asked, name)) is not None}
    given |= {"logprobs": n_logprobs, "grammar": grammar}
    if stops := _stops(asked):
        given["stop"] = stops
    if asked.stop_ids:
        _check_count("stop_ids", len(asked.stop_ids), MAX_STOPS)
        given["stop_ids"] = frozenset(asked.stop_ids)
    if asked.logit_bias:
        given["logit_bias"] = {**defaults.logit_bias, **_biases(asked.logit_bias, vocab_size)}
    try:
        return replace(defaults, **given)
    except ValueError as error:
        param = str(error).partition(" ")[0]
        raise ApiError(str(error), param=param if param in given else None) from None


def _stops(asked: Sampling) -> list[str]:
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop
    _check_count("stop", len(stops), MAX_STOPS)
    if any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise ApiError(f"a stop string must have 1 to {MAX_STOP_CHARS} characters", param="stop")
    return stops


def _biases(biases: dict[str, float], vocab_size: int) -> dict[int, float]:
    _check_count("logit_bias", len(biases), MAX_BIASES)
    for token in biases:
        if not (token.isascii() and token.isdecimal() and len(token) < 10 and int(token) < vocab_size):
            raise ApiError(
                f"logit_bias names {token[:40]!r}; token ids run from 0 to {vocab_size - 1}",
                param="logit_bias",
            )
    return {int(token): bias if bias > NEVER else -math.inf for token, bias in biases.items()}


def _check_count(name: str, n: int, limit: int) -> None:
    if n > limit:
        raise ApiError(f"{name} has {n} entries, at most {limit} are taken", param=name)
