"""Samples on our own engine: one prefill serves all KV methods of a sample."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from yakvrt.sequence import Sequence as Generation

from .evaluation import Progress, Skipped, limited
from .fidelity import logit_scores
from .method_slots import N_SLOTS, DecodeSession, MethodSlots
from .method_specs import FULL, MethodSpec
from .sample import Sample
from .shared_prompt import SharedPrompt

if TYPE_CHECKING:
    from yakvrt.engine import Engine

SPARE_BYTES = 128 << 20  # scratch, recorded steps


@dataclass(frozen=True, slots=True)
class SampleTokens:
    """A prompt and its gold answer, cut to what fidelity is read from; and the slots it takes."""

    prompt: list[int]
    answer: list[int]
    max_tokens: int

    @property
    def n_tokens(self) -> int:
        return len(self.prompt) + max(len(self.answer), self.max_tokens)

    @property
    def n_held(self) -> int:
        """Tokens taken in at once; the last one is decoded, or the answer's first token were always exact."""
        return len(self.prompt) - 1

    @property
    def ctx_size(self) -> int:
        return -(-self.n_tokens // 64) * 64


class OwnEngine:
    """Scores of generated answers, and fidelity on gold ones, for several methods.

    max_tokens None leaves an answer's length to the task; ctx_size 0 takes the model's.
    """

    def __init__(
        self, engine: Engine, kind: str, fidelity_tokens: int, max_tokens: int | None, ctx_size: int
    ) -> None:
        self._max_tokens = max_tokens
        self._engine, self._kind, self._fidelity_tokens = engine, kind, fidelity_tokens
        self.ctx_size = ctx_size or engine.config.context_len
        sampling = engine.sampling_defaults
        self._params = replace(
            type(sampling)(), temperature=0.0, stop=sampling.stop, stop_ids=sampling.stop_ids
        )

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._engine.tokenizer.encode(text, add_special=False))

    def tokens(self, sample: Sample) -> SampleTokens:
        """Raises: Skipped; ValueError for a prompt of less than two tokens."""
        engine = self._engine
        prompt = engine.prompt_ids(sample.prompt, raw=not sample.max_tokens)
        answer = engine.tokenizer.encode(sample.answer, add_special=False)[: self._fidelity_tokens]
        found = SampleTokens(prompt, answer, limited(sample, self._max_tokens))
        if len(prompt) < 2:
            raise ValueError(f"sample {sample.id}: the prompt has {len(prompt)} token; it takes 2 or more")
        if found.n_tokens > self.ctx_size:
            raise Skipped(
                f"{len(prompt)} tokens of prompt and {found.n_tokens - len(prompt)} of answer, "
                f"the context holds {self.ctx_size}"
            )
        return found

    def readings(
        self, sample: Sample, specs: Sequence[MethodSpec], progress: Progress
    ) -> Iterator[tuple[MethodSpec, dict[str, Any]]]:
        """What each method reads, its answer's "text" among it, in as many prefills as memory asks for.

        Raises: Skipped; ValueError for an empty prompt; RuntimeError when a single method does not fit.
        """
        tokens, full = self.tokens(sample), list[np.ndarray]()
        for group in self._passes(tokens, specs):
            for spec, found in self._one_prefill(tokens, group, full, progress):
                if spec in specs:
                    yield spec, found

    def _passes(self, tokens: SampleTokens, specs: Sequence[MethodSpec]) -> Iterator[list[MethodSpec]]:
        """Groups of methods whose slots fit together, full attention in the first."""
        beside = SPARE_BYTES + 4 * self._engine.config.hidden_dim * tokens.n_tokens  # hidden states
        free = self._engine.free_bytes - beside
        reference = 4 * self._engine.config.vocab_size * len(tokens.answer)
        wanted = list(dict.fromkeys((FULL, *specs)))
        group: list[MethodSpec] = []
        taken = largest = 0
        for spec in wanted:
            slot, transient = self._bytes(spec, tokens)
            if group and taken + slot + transient + max(largest, slot) > free - reference:
                yield group
                group, taken, largest = [], 0, 0
                free = self._engine.free_bytes - beside
                reference = 0  # full attention's are held by now
            if taken + slot + transient + slot > free - reference:
                raise RuntimeError(
                    f"{spec.title} takes {(2 * slot + transient + reference) / 1e9:.2f} GB for a prompt of "
                    f"{len(tokens.prompt)} tokens, {free / 1e9:.2f} GB are free; lower -c, --fidelity-tokens "
                    "or leave the method out"
                )
            group.append(spec)
            taken, largest = taken + slot + transient, max(largest, slot)
        yield group

    def _bytes(self, spec: MethodSpec, tokens: SampleTokens) -> tuple[int, int]:
        """Of a slot, and of what a method needs beside."""
        config = self._engine.config
        module, values = spec.open(spec.parameters(config, self._kind, tokens.n_held))
        pools = module.pools(config, values, self._kind, tokens.ctx_size)
        return pools.slot_bytes, sum(pools.transient.values())

    def _one_prefill(
        self,
        tokens: SampleTokens,
        specs: Sequence[MethodSpec],
        full: list[np.ndarray],
        progress: Progress,
    ) -> Iterator[tuple[MethodSpec, dict[str, Any]]]:
        started = time.monotonic()
        runner = self._engine.runner
        setting = runner.setting(N_SLOTS, tokens.ctx_size, self._kind)
        with setting.backend.scope():
            members = [MethodSlots.build(spec, setting, runner, tokens.n_held) for spec in specs]
            shared = SharedPrompt([member.method for member in members])
            slot = shared.open(tokens.ctx_size)
            runner.over(shared).prefill(
                slot, 0, tokens.prompt[:-1], lambda done, n: progress("prompt", done / n)
            )
            del shared
            prefill_s = time.monotonic() - started
            for i in range(len(members)):
                member = members.pop(0)
                started = time.monotonic()
                progress(member.spec.title, i / len(specs))
                found = self._fidelity(member, slot, tokens, full)
                if tokens.max_tokens:
                    found |= self._answer(member, slot, tokens)
                yield (
                    member.spec,
                    {
                        "parameters": dict(member.parameters),
                        "prompt_tokens": len(tokens.prompt),
                        **found,
                        **member.costs(tokens.ctx_size),
                        "seconds": round(time.monotonic() - started, 3),
                        "prefill_seconds": round(prefill_s, 3),
                    },
                )
                del member  # and its memory, which a method that refers to itself would keep for a while
                gc.collect()

    def _fidelity(
        self, member: MethodSlots, slot: int, tokens: SampleTokens, full: list[np.ndarray]
    ) -> dict[str, Any]:
        """Of the first method, which is full attention, also the log-probabilities."""
        if not tokens.answer:
            return {}
        fed = [tokens.prompt[-1], *tokens.answer[:-1]]
        found: Iterator[np.ndarray] = member.teacher_forced(slot, tokens.n_held, fed)
        if not full:
            full += [one.astype(np.float32) for one in found]
            found = iter(full)
        return {"fidelity_tokens": len(fed), **logit_scores(found, full, tokens.answer)}

    def _answer(self, member: MethodSlots, slot: int, tokens: SampleTokens) -> dict[str, Any]:
        session = DecodeSession(member, slot, tokens.prompt[:-1], tokens.ctx_size)
        params = replace(self._params, max_tokens=tokens.max_tokens)
        answer = Generation(session, self._engine.tokenizer, tokens.prompt, params)
        for _ in answer:
            pass
        return {
            "text": answer.text,
            "generated_tokens": len(answer.ids),
            "finish_reason": answer.finish_reason,
            "decode_ms_per_token": round(answer.timings["predicted_per_token_ms"], 3),
        }
