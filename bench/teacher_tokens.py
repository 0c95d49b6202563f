"""The tokens of a teacher-forced decode: a prompt, the tokens fed behind it, and those that should follow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from yakvrt.engine import Engine


@dataclass(frozen=True, slots=True)
class TeacherTokens:
    """fed[i] comes at position len(prompt) + i, and targets[i] is the token that should follow it."""

    prompt: list[int]
    fed: list[int]
    targets: list[int]

    @classmethod
    def split(cls, ids: list[int], depth: int, new: int) -> TeacherTokens:
        end = depth + new
        return cls(ids[:depth], ids[depth:end], ids[depth + 1 : end + 1])

    @property
    def n_tokens(self) -> int:
        return len(self.prompt) + len(self.fed)


def of_text(engine: Engine, file: Path, skip: int, depth: int, new: int) -> TeacherTokens:
    """A text's first tokens are the prompt, the next ones the continuation.

    Raises: ValueError for a text that is too short.
    """
    ids = engine.tokenizer.encode(file.read_text(encoding="utf-8")[skip:])
    if len(ids) <= depth + new:
        raise ValueError(
            f"{file} has {len(ids)} tokens, {depth + new + 1} are needed; lower --depth or --new"
        )
    return TeacherTokens.split(ids, depth, new)


def of_gold(engine: Engine, file: Path, gold: Path, new: int, *, raw: bool) -> TeacherTokens:
    """The whole text is the prompt, a user's turn unless `raw`, and the gold answer the continuation.

    The prompt's last token is fed as a decode step, so that the first token of the answer is scored too.
    """
    prompt = engine.prompt_ids(file.read_text(encoding="utf-8"), raw=raw)
    answer = engine.tokenizer.encode(gold.read_text(encoding="utf-8"), add_special=False)
    if not answer:
        raise ValueError(f"{gold} is empty; give the answer's text")
    return TeacherTokens.split([*prompt, *answer], len(prompt) - 1, min(new, len(answer)))
