"""Build a `tokenizers` object from the vocabulary that a GGUF file carries."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Any

from yakvrt.gguf_vocabulary import MAX_VOCAB, GGUFVocabulary, TokenType, column, unusable

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

MAX_MERGES = 1 << 22
MAX_SPM_PIECE_CHARS = 512

# \p{N}{1,3} for Llama 3, \p{N} for Qwen: the two published regexes differ in nothing else.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def backend_from_vocabulary(vocabulary: GGUFVocabulary) -> Backend:
    """Build the `tokenizers` object that encodes exactly as the model's own tokenizer.

    Raises: ValueError when merges, scores or tokens contradict each other.
    """
    vocab = {token: index for index, token in enumerate(vocabulary.tokens)}
    if len(vocab) != len(vocabulary.tokens):
        raise unusable(f"{len(vocabulary.tokens) - len(vocab)} tokens occur twice")
    build = _sentencepiece if vocabulary.is_sentencepiece else _byte_level
    backend = build(vocabulary, vocab)
    _add_tokens(backend, vocabulary)
    _add_post_processor(backend, vocabulary)
    return backend


def _byte_level(vocabulary: GGUFVocabulary, vocab: dict[str, int]) -> Backend:
    from tokenizers import Tokenizer, decoders, models, normalizers

    merges = _merges_from_lines(column(vocabulary.metadata, "merges", MAX_MERGES))
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=vocabulary.pre.ignore_merges)
    except Exception as error:  # the extension raises plain Exception
        raise unusable(f"its merges and tokens disagree ({error})") from None
    backend = Tokenizer(model)
    if vocabulary.pre.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(vocabulary.pre.kind)
    backend.decoder = decoders.ByteLevel()
    return backend


@contextmanager
def _collector_paused() -> Iterator[None]:
    # A hundred thousand new tuples set off full collections that take longer than all the rest.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _merges_from_lines(lines: list[Any]) -> list[tuple[str, str]]:
    try:
        with _collector_paused():
            return [(left, right) for left, right in [line.split(" ", 1) for line in lines]]
    except (AttributeError, TypeError, ValueError):
        raise unusable("a merge is not two tokens with a space between them") from None


def _pre_tokenizer(kind: str) -> PreTokenizer:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if kind == "gpt2":
        return ByteLevel(add_prefix_space=False, use_regex=True)
    if kind == "smollm":
        words = ByteLevel(add_prefix_space=False, use_regex=True)
        return Sequence([Digits(individual_digits=True), words])
    numbers = r"\p{N}{1,3}" if kind == "llama3" else r"\p{N}"
    split = Split(Regex(_SPLIT % numbers), behavior="isolated", invert=False)
    return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])


def _sentencepiece(vocabulary: GGUFVocabulary, vocab: dict[str, int]) -> Backend:
    from tokenizers import Tokenizer, decoders, models, normalizers

    missing = {f"<0x{byte:02X}>" for byte in range(256)} - vocab.keys()
    unknown = vocabulary.special_id("unknown", 0)
    unk_token = None if unknown is None else vocabulary.tokens[unknown]
    merges = _merges_from_scores(vocabulary, vocab)
    model = models.BPE(
        vocab=vocab, merges=merges, unk_token=unk_token, fuse_unk=True, byte_fallback=not missing
    )
    backend = Tokenizer(model)
    steps: list[Normalizer] = [normalizers.Replace(" ", "\u2581")]
    undo: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_space_prefix:
        steps.insert(0, normalizers.Prepend("\u2581"))
        undo.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(undo)
    return backend


def _merges_from_scores(vocabulary: GGUFVocabulary, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Order every pair of tokens that joins into a token by the score of what it makes, best first."""
    scores = column(vocabulary.metadata, "scores", MAX_VOCAB)
    if len(scores) != len(vocab):
        raise unusable(f"there are {len(scores)} scores for {len(vocab)} tokens")
    if not all(isinstance(score, float | int) and isfinite(score) for score in scores):
        raise unusable("a token's score is not a finite number")
    with _collector_paused():
        found = _scored_merges(vocabulary, vocab, scores)
    found.sort(key=lambda merge: merge[0], reverse=True)
    return [(left, right) for _, left, right in found]


def _scored_merges(
    vocabulary: GGUFVocabulary, vocab: dict[str, int], scores: list[float]
) -> list[tuple[float, str, str]]:
    found: list[tuple[float, str, str]] = []
    for piece, score, kind in zip(vocabulary.tokens, scores, vocabulary.types, strict=True):
        # Control tokens must not come out of plain text; user-defined ones are matched before merging.
        if kind != TokenType.NORMAL or len(piece) < 2:
            continue
        if len(piece) > MAX_SPM_PIECE_CHARS:
            raise unusable(f"a token is {len(piece)} characters long, more than {MAX_SPM_PIECE_CHARS}")
        pairs = [
            (vocab[piece[:cut]], vocab[piece[cut:]], cut)
            for cut in range(1, len(piece))
            if piece[:cut] in vocab and piece[cut:] in vocab
        ]
        found.extend((score, piece[:cut], piece[cut:]) for _, _, cut in sorted(pairs))
        if len(found) > MAX_MERGES:
            raise unusable(f"its scores imply more than {MAX_MERGES} merges")
    return found


def _add_tokens(backend: Backend, vocabulary: GGUFVocabulary) -> None:
    from tokenizers import AddedToken

    def added(ids: Sequence[int], special: bool) -> list[AddedToken]:
        return [AddedToken(vocabulary.tokens[i], special=special, normalized=False) for i in ids]

    control = vocabulary.ids_of(TokenType.CONTROL) + vocabulary.ids_of(TokenType.UNKNOWN)
    backend.add_special_tokens(added(control, True))
    backend.add_tokens(added(vocabulary.ids_of(TokenType.USER_DEFINED), False))


def _add_post_processor(backend: Backend, vocabulary: GGUFVocabulary) -> None:
    from tokenizers.processors import TemplateProcessing

    ends = {
        "BOS": vocabulary.special_id("bos", 1 if vocabulary.is_sentencepiece else None),
        "EOS": vocabulary.special_id("eos", 2 if vocabulary.is_sentencepiece else None),
    }
    wanted = {"BOS": vocabulary.add_bos, "EOS": vocabulary.flag("add_eos_token", False)}
    used = {name: index for name, index in ends.items() if wanted[name] and index is not None}
    if not used:
        return
    single = [name for name in ("BOS", "$A", "EOS") if name == "$A" or name in used]
    # Aliases, because a token's own text may hold the template's ":" and "$".
    special = [
        {"id": name, "ids": [index], "tokens": [vocabulary.tokens[index]]} for name, index in used.items()
    ]
    backend.post_processor = TemplateProcessing(single=single, pair=None, special_tokens=special)


def chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Of a GGUF file, by name."""
    # By key, because the values of a GGUF file are decoded when asked for.
    names = {
        key: key.removeprefix("tokenizer.chat_template").removeprefix(".") or "default"
        for key in metadata
        if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template.")
    }
    return {name: source for key, name in names.items() if isinstance(source := metadata[key], str)}
