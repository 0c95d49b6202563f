"""An answer as it grows: logits in, pieces of text out, and the reason why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from .draw import Draw, Drawn, Next
from .sampler import Sampled, Sampler, SamplingParams

if TYPE_CHECKING:
    from .no_tokenizer import NoTokenizer
    from .tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


class Generation:
    """Chooses the tokens of one answer, or takes those drawn elsewhere, makes text of them and sees the end;
    it runs no model.

    Text ends before a stop string; .ids holds every sampled id, an end-of-text id included. Prompt and answer
    together never exceed ctx_size tokens. finish_reason is None until the end.

    Raises: ValueError for a prompt that is empty or leaves no room in the context, or a grammar that does not
        compile; RuntimeError for a grammar without llguidance.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | NoTokenizer,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        ctx_size: int,
    ) -> None:
        n = len(prompt_ids)
        if n == 0:
            raise ValueError("the prompt is empty; give at least one token")
        if n >= ctx_size:
            raise ValueError(
                f"prompt has {n} tokens, the context holds {ctx_size} and one must stay free; "
                "raise --ctx-size or shorten the prompt"
            )
        self.ids: list[int] = []
        self.logprobs: list[Sampled] | None = None if params.logprobs is None else []
        eos_ids = frozenset(tokenizer.eos_ids)
        room = ctx_size - n
        self.max_tokens = room if params.max_tokens < 0 else min(room, params.max_tokens)
        self.finish_reason: FinishReason | None = None if self.max_tokens else "length"
        self._history = list(prompt_ids)
        self._ends = eos_ids | params.stop_ids
        self._sampler = Sampler(params, eos_ids)
        self._constraint = tokenizer.constraint(params.grammar) if params.grammar else None
        self._stream, self._stop_text = tokenizer.stream(continues=True), StopText(params.stop)

    @property
    def seed(self) -> int:
        """The seed in use, drawn when none was given."""
        return self._sampler.seed

    def draw(self) -> Draw | None:
        """By what the next token may be drawn where the logits lie; None where push() wants these."""
        return None if self._constraint else self._sampler.draw()

    def push(self, known: Next) -> str:
        """Chooses the next token. Returns: the text that is certain now, with the last token all the rest."""
        constraint = self._constraint
        if isinstance(known, Drawn):
            sampled = self._sampler.take(known)
        else:
            allowed = constraint.allowed(len(known)) if constraint else None
            sampled = self._sampler.sample(known, self._history, allowed)
        self.ids.append(sampled.id)
        self._history.append(sampled.id)
        if self.logprobs is not None:
            self.logprobs.append(sampled)
        if sampled.id in self._ends:
            self.finish_reason = "stop"
            return self._rest()
        piece = self._stop_text.push(self._stream.push(sampled.id))
        if constraint:
            constraint.accept(sampled.id)
        if self._stop_text.found:
            self.finish_reason = "stop"
        elif constraint and constraint.is_over:
            self.finish_reason = "stop"
            piece += self._rest()
        elif len(self.ids) == self.max_tokens:
            self.finish_reason = "length"
            piece += self._rest()
        return piece

    def _rest(self) -> str:
        rest = self._stop_text.push(self._stream.flush())
        if self._stop_text.found:
            self.finish_reason = "stop"
        else:
            rest += self._stop_text.flush()
        return rest


class StopText:
    """Passes text on, up to the first stop string; holds back what may be the beginning of one."""

    __slots__ = ("_held", "_stops", "found")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that is now certain to lie before any stop string."""
        if not self._stops:
            return piece
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        n_held = max(self._overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """The text held back, once no more will come."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """The length of the longest end of the text that begins the stop string."""
        for n in range(min(len(stop) - 1, len(text)), 0, -1):
            if stop.startswith(text[-n:]):
                return n
        return 0
