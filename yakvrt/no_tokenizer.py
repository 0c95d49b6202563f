"""Stands where a model came without a tokenizer: token ids work, text does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from yakvrt.grammar import Grammar


class SilentDecoder:
    """Decodes every token to nothing."""

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


class NoTokenizer:
    """Knows which ids end a text and nothing else. Raises: ValueError for everything that needs text."""

    has_chat_template = False
    chat_template = ""
    tool_format = None
    max_token_chars = 1
    bos_id: int | None = None

    def __init__(self, eos_ids: frozenset[int], vocab_size: int) -> None:
        self.eos_ids = eos_ids
        self.vocab_size = vocab_size

    def stream(self, **_: Any) -> SilentDecoder:
        return SilentDecoder()

    def token_bytes(self, token_id: int) -> bytes:
        return b""

    def constraint(self, grammar: Grammar) -> NoReturn:
        raise ValueError(
            "a grammar is about text, and the model has no tokenizer.json beside it; leave it out"
        )

    def with_chat_template(self, source: str) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError("the model has no tokenizer.json beside it; give token ids with --prompt-ids")

    def encode(self, text: str, **_: Any) -> list[int]:
        self._refuse()

    def encode_rendered(self, text: str) -> list[int]:
        self._refuse()

    def encode_chat(self, messages: Any, **_: Any) -> list[int]:
        self._refuse()

    def render_chat(self, messages: Any, **_: Any) -> str:
        self._refuse()

    def decode(self, ids: Any, **_: Any) -> str:
        self._refuse()
