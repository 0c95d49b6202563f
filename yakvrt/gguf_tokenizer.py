"""Build a `tokenizers` object from the vocabulary that a GGUF file carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

MAX_VOCAB = 1 << 20
MAX_MERGES = 1 << 22
MAX_SPM_PIECE_CHARS = 512


class TokenType(IntEnum):
    """Kind of a vocabulary entry, as GGUF numbers them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class PreRule:
    """How text is cut into words before byte-level BPE: the regex `kind`, and what goes with the name."""

    kind: str
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2 = PreRule("gpt2")
_LLAMA3 = PreRule("llama3", ignore_merges=True, add_bos=True)
_QWEN2 = PreRule("qwen2", nfc=True)
_SMOLLM = PreRule("smollm")

# Names as llama.cpp's converter writes them into tokenizer.ggml.pre.
PRE_RULES: Mapping[str, PreRule] = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "exaone4"), _GPT2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA3),
    **dict.fromkeys(("smaug-bpe", "dbrx"), PreRule("llama3")),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _SMOLLM),
    **dict.fromkeys(("exaone", "minerva-7b"), _SMOLLM),
}

# \p{N}{1,3} for Llama 3, \p{N} for Qwen: the two published regexes differ in nothing else.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class GGUFVocabulary:
    """A checked vocabulary: `tokens` and `types` by id, and the rules its file asks for."""

    model: str
    tokens: list[str]
    types: list[int]
    metadata: Mapping[str, Any]
    pre: PreRule

    def ids_of(self, kind: TokenType) -> list[int]:
        """List the ids of one token type."""
        return [index for index, value in enumerate(self.types) if value == kind]

    def special_id(self, name: str, default: int | None = None) -> int | None:
        """Read `tokenizer.ggml.<name>_token_id`.

        Raises: ValueError when the id lies outside the vocabulary.
        """
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None:
            return default if default is not None and default < len(self.tokens) else None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(self.tokens):
            raise _bad(f"{name}_token_id is {value!r}, outside the vocabulary of {len(self.tokens)} tokens")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Read the boolean `tokenizer.ggml.<name>`."""
        return bool(self.metadata.get(f"tokenizer.ggml.{name}", default))

    @property
    def is_sentencepiece(self) -> bool:
        """Whether pieces are SentencePiece text rather than byte-level BPE."""
        return self.model == "llama"

    @property
    def add_bos(self) -> bool:
        """Whether encoding begins with BOS: the file's word, else the default of its tokenizer kind."""
        return self.flag("add_bos_token", self.is_sentencepiece or self.pre.add_bos)

    @property
    def add_space_prefix(self) -> bool:
        """Whether SentencePiece text gets a leading space before it is cut."""
        return self.is_sentencepiece and self.flag("add_space_prefix", True)


def _bad(what: str) -> ValueError:
    return ValueError(f"the GGUF tokenizer is not usable: {what}; convert or download the model again")


def _column(metadata: Mapping[str, Any], name: str, limit: int) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        raise _bad(f"tokenizer.ggml.{name} is missing")
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        raise _bad(f"tokenizer.ggml.{name} is not a list")
    if len(value) > limit:
        raise _bad(f"tokenizer.ggml.{name} has {len(value)} entries, more than {limit}")
    return value.tolist() if hasattr(value, "tolist") else list(value)


def read_vocabulary(metadata: Mapping[str, Any]) -> GGUFVocabulary:
    """Check the tokenizer.ggml.* keys and gather what building needs.

    Raises: ValueError for a missing, unknown or inconsistent key.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise _bad(f"its kind {model!r} is neither gpt2 (byte-level BPE) nor llama (SentencePiece)")
    name = metadata.get("tokenizer.ggml.pre", "default")
    pre = _GPT2 if model == "llama" else PRE_RULES.get(name) if isinstance(name, str) else None
    if pre is None:
        raise _bad(f"the pre-tokenizer {name!r} is not one of {', '.join(sorted(PRE_RULES))}")
    tokens = _column(metadata, "tokens", MAX_VOCAB)
    if not tokens:
        raise _bad("tokenizer.ggml.tokens is empty")
    if not all(map(str.__instancecheck__, tokens)):
        raise _bad("tokenizer.ggml.tokens holds something that is not text")
    if "" in tokens:
        tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    types = [int(TokenType.NORMAL)] * len(tokens)
    if "tokenizer.ggml.token_type" in metadata:
        types = _column(metadata, "token_type", MAX_VOCAB)
        if len(types) != len(tokens):
            raise _bad(f"there are {len(types)} token types for {len(tokens)} tokens")
    return GGUFVocabulary(model, tokens, types, metadata, pre)


def backend_from_vocabulary(vocabulary: GGUFVocabulary) -> Backend:
    """Build the `tokenizers` object that encodes exactly as the model's own tokenizer.

    Raises: ValueError when merges, scores or tokens contradict each other.
    """
    vocab = {token: index for index, token in enumerate(vocabulary.tokens)}
    if len(vocab) != len(vocabulary.tokens):
        raise _bad(f"{len(vocabulary.tokens) - len(vocab)} tokens occur twice")
    build = _sentencepiece if vocabulary.is_sentencepiece else _byte_level
    backend = build(vocabulary, vocab)
    _add_tokens(backend, vocabulary)
    _add_post_processor(backend, vocabulary)
    return backend


def _byte_level(vocabulary: GGUFVocabulary, vocab: dict[str, int]) -> Backend:
    from tokenizers import Tokenizer, decoders, models, normalizers

    merges = _merges_from_lines(_column(vocabulary.metadata, "merges", MAX_MERGES))
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=vocabulary.pre.ignore_merges)
    except Exception as error:  # the extension raises plain Exception
        raise _bad(f"its merges and tokens disagree ({error})") from None
    backend = Tokenizer(model)
    if vocabulary.pre.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(vocabulary.pre.kind)
    backend.decoder = decoders.ByteLevel()
    return backend


def _merges_from_lines(lines: list[Any]) -> list[tuple[str, str]]:
    try:
        return [(left, right) for left, right in [line.split(" ", 1) for line in lines]]
    except (AttributeError, TypeError, ValueError):
        raise _bad("a merge is not two tokens with a space between them") from None


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

    missing = next((byte for byte in range(256) if f"<0x{byte:02X}>" not in vocab), None)
    unknown = vocabulary.special_id("unknown", 0)
    unk_token = None if unknown is None else vocabulary.tokens[unknown]
    model = models.BPE(
        vocab=vocab,
        merges=_merges_from_scores(vocabulary, vocab),
        unk_token=unk_token,
        fuse_unk=True,
        byte_fallback=missing is None,
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
    scores = _column(vocabulary.metadata, "scores", MAX_VOCAB)
    if len(scores) != len(vocab):
        raise _bad(f"there are {len(scores)} scores for {len(vocab)} tokens")
    if not all(isinstance(score, float | int) and isfinite(score) for score in scores):
        raise _bad("a token's score is not a finite number")
    found: list[tuple[float, str, str]] = []
    for piece, score, kind in zip(vocabulary.tokens, scores, vocabulary.types, strict=True):
        # Control tokens must not come out of plain text; user-defined ones are matched before merging.
        if kind != TokenType.NORMAL or len(piece) < 2:
            continue
        if len(piece) > MAX_SPM_PIECE_CHARS:
            raise _bad(f"a token is {len(piece)} characters long, more than {MAX_SPM_PIECE_CHARS}")
        pairs = [
            (vocab[piece[:cut]], vocab[piece[cut:]], cut)
            for cut in range(1, len(piece))
            if piece[:cut] in vocab and piece[cut:] in vocab
        ]
        found.extend((score, piece[:cut], piece[cut:]) for _, _, cut in sorted(pairs))
    if len(found) > MAX_MERGES:
        raise _bad(f"its scores imply {len(found)} merges, more than {MAX_MERGES}")
    found.sort(key=lambda merge: merge[0], reverse=True)
    return [(left, right) for _, left, right in found]


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
