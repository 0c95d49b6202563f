"""Choosing the next token from logits, in llama.cpp's order and with its meaning of every parameter."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .draw import MOST_CANDIDATES, Draw, Drawn
from .grammar import Grammar

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Allowed = npt.NDArray[np.bool_]

LARGEST = float(np.finfo(np.float32).max)
MAX_LOGPROBS = 1000
MAX_SEED = 2**64 - 1


def _require(name: str, value: object, low: float, high: float, *, integer: bool = False) -> None:
    """Refuse a parameter that is no number or lies outside [low, high]."""
    wanted = "a whole number" if integer else "a number"
    if isinstance(value, bool) or not isinstance(value, int if integer else Real):
        raise ValueError(f"{name} is {repr(value)[:80]}, it must be {wanted}")
    if not low <= value <= high:  # type: ignore[operator]
        above = "" if low <= -LARGEST else f" of at least {low}"
        limits = f" from {low} to {high}" if high < LARGEST else above or " that is finite"
        raise ValueError(f"{name} is {str(value)[:80]}, it must be {wanted}{limits}")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence picks its tokens and when it stops; the defaults are llama.cpp's.

    temperature 0 is greedy; top_k <= 0, top_p 1 and min_p 0 switch that filter off;
    seed None or -1 draws one; repeat_last_n -1 looks at the whole history;
    max_tokens -1 runs until the context is full;
    logprobs N reports the chosen token and the N best ones of every position;
    grammar allows only text that fits it, which ends where nothing can follow.

    Raises: ValueError for a parameter outside its range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int = -1
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, 0, LARGEST)
        _require("top_k", self.top_k, -(2**31), 2**31, integer=True)
        _require("top_p", self.top_p, 0, 1)
        _require("min_p", self.min_p, 0, 1)
        _require("repeat_penalty", self.repeat_penalty, 1e-6, LARGEST)
        _require("repeat_last_n", self.repeat_last_n, -1, 2**31, integer=True)
        _require("presence_penalty", self.presence_penalty, -LARGEST, LARGEST)
        _require("frequency_penalty", self.frequency_penalty, -LARGEST, LARGEST)
        for token, bias in self.logit_bias.items():
            _require("logit_bias token id", token, 0, 2**31, integer=True)
            _require(f"logit_bias of token {token}", bias, -math.inf, LARGEST)
        if self.seed is not None:
            _require("seed", self.seed, -1, MAX_SEED, integer=True)
        _require("max_tokens", self.max_tokens, -1, 2**31, integer=True)
        if self.logprobs is not None:
            _require("logprobs", self.logprobs, 0, MAX_LOGPROBS, integer=True)
        if not isinstance(self.grammar, Grammar | None):
            raise ValueError("grammar is no Grammar; make one, as with Grammar.json_schema(...)")
        # Callers pass lists or one string as often as tuples; every reader below sees one type.
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(s, str) and s for s in stop):
            raise ValueError("a stop string is empty or no string; give at least one character")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_ids", frozenset(self.stop_ids))
        for token in self.stop_ids:
            _require("stop_ids entry", token, 0, 2**31, integer=True)

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> SamplingParams:
        """The model's own defaults: what its generation_config.json names, llama.cpp's values for the rest.

        do_sample is not read (vLLM does the same): a value that is there is a recommendation for sampling.

        Raises: ValueError naming the key when the file holds a value no sampler can use.
        """
        names = {
            "temperature": "temperature",
            "top_k": "top_k",
            "top_p": "top_p",
            "min_p": "min_p",
            "repetition_penalty": "repeat_penalty",
        }
        found = {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None}
        try:
            return cls(**found)
        except ValueError as error:
            raise ValueError(f"generation_config.json: {error}") from None


class Sampled(NamedTuple):
    """One chosen token; logprob and top are filled when SamplingParams.logprobs asks for them."""

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


def largest_first(logits: Logits, k: int) -> Ids:
    """The ids of the k largest logits in falling order, equal ones by rising id."""
    n = len(logits)
    width = max(1024, 16 * k)
    if width * 4 > n:
        return np.argsort(-logits, kind="stable")[:k]
    # The k-th largest of the column maxima is a lower bound of the k-th largest logit: one sequential pass
    # leaves about k candidates, several times faster than a partition of the whole vocabulary.
    maxima = logits[: n // width * width].reshape(-1, width).max(axis=0)
    least = np.partition(maxima, -k)[-k]
    candidates = np.flatnonzero(logits >= least if least > -np.inf else logits > least)
    if len(candidates) < k:  # few tokens are possible at all: those that are not need no order
        ruled_out = np.flatnonzero(logits == least)[: k - len(candidates)]
        ranked = candidates[np.argsort(-logits[candidates], kind="stable")]
        return np.concatenate([ranked, ruled_out])
    return candidates[np.argsort(-logits[candidates], kind="stable")[:k]]


class Sampler:
    """Draws tokens for one sequence; owns its random generator, seeded once.

    .seed is the seed in use, also when none was given, so that a run can be repeated.
    """

    __slots__ = ("_biases", "_number", "_rng", "params", "seed")

    def __init__(self, params: SamplingParams, eos_ids: Iterable[int] = ()) -> None:
        self.params = params
        given = params.seed
        self.seed: int = secrets.randbits(32) if given is None or given == -1 else given
        self._rng = np.random.Generator(np.random.PCG64(self.seed))
        biases = dict(params.logit_bias)
        if params.ignore_eos:
            biases |= dict.fromkeys(eos_ids, -math.inf)
        self._biases = biases
        self._number: float | None = None  # the random one of the next token, once it is drawn

    def draw(self) -> Draw | None:
        """By what the next token may be drawn where the logits lie; None where that takes more."""
        p = self.params
        if self._biases or p.logprobs is not None or self._penalises:
            return None
        if p.temperature == 0:
            return Draw(1, 0, 1, 0, 0)
        if not 0 < p.top_k <= MOST_CANDIDATES:
            return None
        return Draw(p.top_k, p.temperature, p.top_p, p.min_p, self._next_number())

    def take(self, drawn: Drawn) -> Sampled:
        """What was drawn as draw() told. Raises: ValueError as sample()."""
        self._number = None
        self._check_peak(drawn.peak)
        return Sampled(drawn.id, None, ())

    def sample(self, logits: Logits, history: Sequence[int], allowed: Allowed | None = None) -> Sampled:
        """Choose the next token; history is the prompt and what was generated, for the penalties.

        allowed, bool [V], rules out all others before anything else.

        Raises: ValueError when a logit is NaN or +infinity or when every token is ruled out.
        """
        possible = logits if allowed is None else np.where(allowed, logits, np.float32(-math.inf))
        scores = self._adjusted(possible, history)
        if self.params.temperature == 0:
            best = int(scores.argmax())  # argmax returns the first NaN when there is one
            self._check_peak(float(scores[best]))
            return self._report(best, logits)
        ids, probs = self._filtered(scores)
        cumulative = np.cumsum(probs)
        place = int(np.searchsorted(cumulative, self._next_number() * cumulative[-1], side="right"))
        self._number = None
        return self._report(int(ids[min(place, len(ids) - 1)]), logits)

    def _next_number(self) -> float:
        if self._number is None:
            self._number = self._rng.random()
        return self._number

    @property
    def _penalises(self) -> bool:
        p = self.params
        changed = (p.repeat_penalty, p.presence_penalty, p.frequency_penalty) != (1, 0, 0)
        return changed and p.repeat_last_n != 0

    def distribution(self, logits: Logits, history: Sequence[int]) -> tuple[Ids, npt.NDArray[np.float64]]:
        """The ids that may be drawn and their probabilities, without drawing."""
        scores = self._adjusted(logits, history)
        if self.params.temperature == 0:
            best = scores.argmax()
            self._check_peak(float(scores[best]))
            return np.array([best], np.int64), np.ones(1)
        return self._filtered(scores)

    def _adjusted(self, logits: Logits, history: Sequence[int]) -> Logits:
        """The logits after bias and penalties; the caller's own array when there are none."""
        p = self.params
        penalised = self._penalises and len(history) > 0
        if not (self._biases or penalised):
            return logits
        scores = logits.copy()
        for token, bias in self._biases.items():
            if token >= len(scores):
                if token not in self.params.logit_bias:  # an end id without a row in the output
                    continue
                raise ValueError(f"logit bias names token {token}, the model's last one is {len(scores) - 1}")
            scores[token] += np.float32(bias)
        if penalised:
            recent = history if p.repeat_last_n == -1 else history[-p.repeat_last_n :]
            tokens, counts = np.unique(np.asarray(recent, np.int64), return_counts=True)
            value = scores[tokens]
            rate = np.float32(p.repeat_penalty)
            value = np.where(value <= 0, value * rate, value / rate)
            value -= counts.astype(np.float32) * np.float32(p.frequency_penalty)
            scores[tokens] = value - np.float32(p.presence_penalty)
        return scores

    def _filtered(self, scores: Logits) -> tuple[Ids, npt.NDArray[np.float64]]:
        """top-k, top-p, min-p, then temperature and softmax over what is left."""
        p = self.params
        peak = float(scores.max())
        self._check_peak(peak)
        n = len(scores)
        ids: Ids
        if 0 < p.top_k < n:
            ids = largest_first(scores, p.top_k)
            if p.top_p < 1:
                weights = np.exp(scores[ids].astype(np.float64) - peak)
                ids = ids[: _crossing(np.cumsum(weights / weights.sum()), p.top_p)]
        elif p.top_p < 1:
            ids = _nucleus(scores, peak, p.top_p)
        else:
            ids = np.arange(n)
        if p.min_p > 0:
            ids = ids[scores[ids] >= peak + math.log(p.min_p)]
        with np.errstate(over="ignore"):  # a tiny temperature: all but the best are ruled out
            kept = (scores[ids].astype(np.float64) - peak) / p.temperature
        weights = np.exp(kept)
        return ids, weights / weights.sum()

    def _check_peak(self, peak: float) -> None:
        if math.isnan(peak):
            raise ValueError("the model produced NaN logits; its weights or the prompt's KV are damaged")
        if peak == math.inf:
            raise ValueError("the model produced infinite logits; its weights are damaged")
        if peak == -math.inf:
            raise ValueError("every token is ruled out, by logit bias or the grammar; allow at least one")

    def _report(self, token: int, logits: Logits) -> Sampled:
        """The token with its log-probabilities under the raw logits (before bias, penalties, temperature)."""
        n_best = self.params.logprobs
        if n_best is None:
            return Sampled(token, None, ())
        peak = logits.max()
        log_sum = float(peak) + math.log(np.exp(logits - peak).sum(dtype=np.float64))
        best = largest_first(logits, min(n_best, len(logits))) if n_best else ()
        top = tuple((int(i), float(logits[i]) - log_sum) for i in best)
        return Sampled(token, float(logits[token]) - log_sum, top)


def _crossing(cumulative: npt.NDArray[np.float64], top_p: float) -> int:
    """How many tokens to keep so that the one crossing top_p is the last."""
    return min(int(np.searchsorted(cumulative, top_p, side="left")) + 1, len(cumulative))


def _nucleus(scores: Logits, peak: float, top_p: float) -> Ids:
    """The ids of the smallest set of most likely tokens whose probability reaches top_p."""
    n = len(scores)
    total = np.exp(scores - np.float32(peak)).sum(dtype=np.float64)
    # Most nuclei are a few tokens; only a flat distribution pays for sorting everything.
    for k in (64, 2048, n):
        ids = largest_first(scores, min(k, n))
        cumulative = np.cumsum(np.exp(scores[ids].astype(np.float64) - peak)) / total
        if cumulative[-1] >= top_p:
            break
    return ids[: _crossing(cumulative, top_p)]
