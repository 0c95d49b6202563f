"""Text to token ids and back, on the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy, deepcopy
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from yakvrt.chat_template import ChatTemplate
from yakvrt.constraint import ConstrainedVocabulary, Constraint, Tokens
from yakvrt.end_tokens import END_TOKENS
from yakvrt.gguf_tokenizer import backend_from_vocabulary, chat_templates
from yakvrt.gguf_vocabulary import TokenType, read_vocabulary
from yakvrt.stream_decoder import StreamDecoder, byte_level_piece, sentencepiece_piece
from yakvrt.tokenizer_files import (
    backend_from_json,
    decoding_rules,
    json_object,
    template_sources,
    token_text,
)
from yakvrt.tool_calls import TOOL_MARKERS, ToolFormat

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

    from yakvrt.grammar import Grammar


class Tokenizer:
    """A model's tokenizer with its chat template.

    Safe to use from several threads.
    """

    __slots__ = (
        "_backend",
        "_constrained",
        "_lock",
        "_pieces",
        "_plain",
        "_sentencepiece",
        "_silent",
        "_special",
        "_special_texts",
        "_strip_space",
        "_template",
        "bos_id",
        "eos_ids",
        "vocab_size",
    )

    def __init__(
        self,
        backend: Backend,
        *,
        bos_id: int | None,
        eos_ids: Iterable[int],
        templates: Mapping[str, str],
        special_texts: Mapping[str, str],
        sentencepiece: bool,
        strip_space: bool,
    ) -> None:
        """Wrap a `tokenizers` object.

        `templates` are the chat templates by name, `special_texts` the texts of bos_token and the like.
        `sentencepiece` says how a token's text becomes bytes, `strip_space` whether decoding drops the space
        that encoding put in front.
        """
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        backend.encode_special_tokens = False
        self._plain: Backend | None = None  # where the text of control tokens is ordinary text
        self._constrained = ConstrainedVocabulary(self._tokens)
        self._lock = Lock()
        self._sentencepiece = sentencepiece
        self._strip_space = strip_space
        self._special_texts = dict(special_texts)
        self._template = ChatTemplate(templates, special_texts) if templates else None
        self._special = frozenset(index for index, token in added.items() if token.special)
        self._silent = self._special - {i for i, token in added.items() if token.content in TOOL_MARKERS}
        # Added tokens are plain text even where the model's tokens are in the byte alphabet.
        plain = sentencepiece_piece if sentencepiece else str.encode
        self._pieces = {index: plain(token.content) for index, token in added.items()}
        self.bos_id = bos_id
        self.eos_ids = frozenset(eos_ids)
        self.vocab_size: int = max(backend.get_vocab_size(), max(added, default=-1) + 1)

    @property
    def max_token_chars(self) -> int:
        """No token stands for more characters of a text, unless encoding drops or joins some."""
        return max(map(len, self._backend.get_vocab(with_added_tokens=True)), default=0)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model ships a chat template."""
        return self._template is not None

    @property
    def tool_format(self) -> ToolFormat | None:
        """How the model writes calls of tools; None when its template shows no format known here."""
        return self._template.tool_format if self._template else None

    def with_chat_template(self, source: str) -> Tokenizer:
        """The same tokenizer with another chat template, given as its text."""
        twin = copy(self)
        twin._template = ChatTemplate({"default": source}, self._special_texts)
        return twin

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Turn text into ids.

        `add_special` adds BOS (or EOS) where the model wants it; with `parse_special` false the text of
        control tokens is encoded as ordinary text, so that a user cannot forge a turn.

        Raises: ValueError when the text is not valid Unicode.
        """
        backend = self._backend if parse_special else self._plain_backend()
        try:
            return list(backend.encode(text, add_special_tokens=add_special).ids)
        except (TypeError, UnicodeEncodeError):
            raise ValueError(
                "the prompt is not valid Unicode text (it has lone surrogates); decode it as UTF-8 first"
            ) from None

    def _plain_backend(self) -> Backend:
        """A copy, since what makes the difference is set on the object, which other threads use meanwhile."""
        with self._lock:
            if self._plain is None:
                plain = deepcopy(self._backend)
                plain.encode_special_tokens = True
                self._plain = plain
            return self._plain

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> list[int]:
        """Render the messages and encode them, with exactly one BOS where the model wants one."""
        text = self.render_chat(messages, tools=tools, add_generation_prompt=add_generation_prompt, **kwargs)
        return self.encode_rendered(text)

    def encode_rendered(self, text: str) -> list[int]:
        """Encode what render_chat() gave, with exactly one BOS where the model wants one."""
        ids = self.encode(text, add_special=False)
        bos = [self.bos_id]
        wants_bos = ids[:1] != bos and self.encode("")[:1] == bos
        return [*self.encode("")[:1], *ids] if wants_bos else ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Turn ids into text; bytes that are not UTF-8 become U+FFFD, ids without a token nothing."""
        stream = self.stream(skip_special=skip_special)
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self, *, skip_special: bool = True, continues: bool = False) -> StreamDecoder:
        """Start decoding one token at a time; `continues` keeps the leading space of text after a prompt.

        Control tokens are skipped but for those before and after calls of tools.
        """

        def piece(token_id: int) -> bytes:
            return b"" if skip_special and token_id in self._silent else self._piece(token_id)

        return StreamDecoder(piece, strip_space=self._strip_space and not continues)

    @property
    def chat_template(self) -> str:
        """The chat template's text, empty where there is none; the first where there are several."""
        return self._template.source if self._template else ""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for, its name if it is a control token; nothing where there is no token."""
        return self._piece(token_id)

    def _piece(self, token_id: int) -> bytes:
        piece = self._pieces.get(token_id)
        if piece is None:
            if not 0 <= token_id < 1 << 32:
                raise ValueError(f"{token_id} is not a token id; ids run from 0 to {self.vocab_size - 1}")
            token = self._backend.id_to_token(token_id) or ""
            piece = sentencepiece_piece(token) if self._sentencepiece else byte_level_piece(token)
            self._pieces[token_id] = piece
        return piece

    def constraint(self, grammar: Grammar) -> Constraint:
        """The grammar over this tokenizer's ids, at its beginning; the first one builds tables of all tokens.

        Raises: ValueError when it does not compile; RuntimeError when llguidance is missing.
        """
        return self._constrained.constraint(grammar)

    def _tokens(self) -> Tokens:
        # A text that follows other text gets no leading space; no merge joins this byte with what follows it.
        before = "\x02" if self._sentencepiece else ""
        n_before = len(self.encode(before, add_special=False))

        def encode(text: str) -> list[int]:
            return self.encode(before + text, add_special=False, parse_special=False)[n_before:]

        return Tokens([self._piece(i) for i in range(self.vocab_size)], self._special, self.eos_ids, encode)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """Render messages with the model's chat template; keyword arguments reach the template as they are.

        The text already holds its special tokens: encode it with `encode_rendered`.

        Raises: ValueError when there is no template or it refuses the messages.
        """
        if self._template is None:
            raise ValueError("this model has no chat template; pass the prompt as plain text with --raw")
        return self._template.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **kwargs
        )


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that a GGUF file carries in its tokenizer.* keys.

    Raises: ValueError when the vocabulary is inconsistent or of an unknown kind.
    """
    vocabulary = read_vocabulary(metadata)
    backend = backend_from_vocabulary(vocabulary)
    spm = vocabulary.is_sentencepiece
    bos = vocabulary.special_id("bos", 1 if spm else None)
    eos = vocabulary.special_id("eos", 2 if spm else None)
    ends = [vocabulary.special_id(name) for name in ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")]
    control = vocabulary.ids_of(TokenType.CONTROL)
    named = [index for index in control if vocabulary.tokens[index] in END_TOKENS]
    sources = chat_templates(metadata)
    named_ids = {"bos_token": bos, "eos_token": eos}
    texts = {name: vocabulary.tokens[index] for name, index in named_ids.items() if index is not None}
    return Tokenizer(
        backend,
        bos_id=bos,
        eos_ids=[index for index in (eos, *ends, *named) if index is not None],
        templates=sources,
        special_texts=texts,
        sentencepiece=spm,
        strip_space=vocabulary.add_space_prefix,
    )


def tokenizer_from_files(
    tokenizer_json: Path,
    tokenizer_config: Mapping[str, Any] | Path | None = None,
    chat_template: str | Path | None = None,
    generation_config: Mapping[str, Any] | Path | None = None,
) -> Tokenizer:
    """Build the tokenizer from a hub model's files.

    `chat_template` overrides the template of `tokenizer_config`; a string is the template's own text.

    Raises: ValueError when a file is too large, malformed or of an unknown kind.
    """
    backend = backend_from_json(Path(tokenizer_json))
    config = json_object(tokenizer_config)
    generation = json_object(generation_config)
    sentencepiece, strip_space = decoding_rules(backend, Path(tokenizer_json))
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    texts = {name: text for name in names if (text := token_text(config.get(name)))}
    eos = generation.get("eos_token_id")
    eos_ids = [
        index for index in (eos if isinstance(eos, list) else [eos]) if type(index) is int and index >= 0
    ]
    if (eos_id := backend.token_to_id(texts.get("eos_token", ""))) is not None:
        eos_ids.append(eos_id)
    added = backend.get_added_tokens_decoder()
    eos_ids += [index for index, token in added.items() if token.special and token.content in END_TOKENS]
    sources = template_sources(config.get("chat_template"), chat_template)
    bos_id = backend.token_to_id(texts["bos_token"]) if "bos_token" in texts else None
    return Tokenizer(
        backend,
        bos_id=bos_id,
        eos_ids=eos_ids,
        templates=sources,
        special_texts=texts,
        sentencepiece=sentencepiece,
        strip_space=strip_space,
    )
