"""Grammars over the ids of a tokenizer: which tokens may come next. On llguidance, which is optional."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Any

from .grammar import Grammar, GrammarError
from .grammar_check import checked_source, import_llguidance, reason

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_SOURCES = 256
MAX_CHECKS = 4  # at a time: each may take a gigabyte
MAX_LEXER_STATES = 100_000  # of one answer: some 40 MB


class Constraint:
    """A grammar on its way through one answer. Not thread-safe."""

    __slots__ = ("_bits", "_matcher", "_n_tokens")

    def __init__(self, matcher: Any, n_tokens: int) -> None:
        import numpy as np

        self._matcher, self._n_tokens = matcher, n_tokens
        self._bits = np.zeros((n_tokens + 31) // 32, np.uint32)

    def allowed(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """bool [vocab_size]: the tokens that may come next, an end-of-text one where the text is complete.

        Raises: ValueError where the next token takes longer to find than the grammar may take.
        """
        import numpy as np

        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self.check()
        n = min(vocab_size, self._n_tokens)
        found = np.unpackbits(self._bits.view(np.uint8), bitorder="little", count=n)
        if n < vocab_size:  # rows of the output that are no token
            found = np.concatenate([found, np.zeros(vocab_size - n, np.uint8)])
        return found.view(np.bool_)

    def accept(self, token: int) -> None:
        """The token was chosen. Raises: ValueError for one that is not allowed."""
        self._matcher.consume_token(token)
        self.check()

    @property
    def is_over(self) -> bool:
        """Whether it must end here."""
        return bool(self._matcher.is_stopped())

    def check(self) -> None:
        """Raises: GrammarError when the grammar's work for this answer is too much, or nothing can follow."""
        if self._matcher.is_error():
            raise GrammarError(f"the grammar fails ({reason(self._matcher.get_error())}); simplify it")


class ConstrainedVocabulary:
    """The tokens of a tokenizer as llguidance wants them, built when first needed. Thread-safe."""

    def __init__(self, tokens: Callable[[], Tokens]) -> None:
        self._tokens = tokens
        self._lock, self._checks = Lock(), BoundedSemaphore(MAX_CHECKS)
        self._built: Any = None
        self._sources: OrderedDict[Grammar, str] = OrderedDict()  # that have been checked

    def constraint(self, grammar: Grammar) -> Constraint:
        """The grammar at its beginning.

        Raises: ValueError for a grammar that does not compile, or not soon; RuntimeError when llguidance is
            missing.
        """
        llguidance = import_llguidance()
        with self._lock:
            source = self._sources.get(grammar)
        if source is None:
            with self._checks:
                source = checked_source(grammar)
        with self._lock:
            self._sources[grammar] = source
            self._sources.move_to_end(grammar)
            if len(self._sources) > MAX_SOURCES:
                self._sources.popitem(last=False)
            if self._built is None:
                tokens = self._tokens()
                self._built = llguidance.LLTokenizer(tokens, eos_token=tokens.ends)
                tokens.greedy = self._built.greedy_tokenize
        # Copies of one matcher would be cheaper, but share what they learn: when one has met too many states,
        # so have all.
        limits = llguidance.LLParserLimits(verbose_errors=False, max_lexer_states=MAX_LEXER_STATES)
        matcher = llguidance.LLMatcher(self._built, source, log_level=0, limits=limits)
        constraint = Constraint(matcher, self._built.vocab_size)
        constraint.check()
        return constraint


class Tokens:
    """A tokenizer as llguidance asks for it (its attributes' names are llguidance's).

    Only text is matched: control tokens are no text. `encode` gives the ids of a text that follows other
    text; where they stand for another text (normalizers change it), the longest tokens are taken.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self,
        pieces: list[bytes],
        control: frozenset[int],
        ends: frozenset[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        known = [end for end in sorted(ends) if end < len(pieces)]
        # Without an end of text there, one is made up that no row of logits stands for.
        self.ends = known or [len(pieces)]
        self.tokens = pieces if known else [*pieces, b""]
        self.eos_token_id = self.ends[0]
        self.special_token_ids = sorted(control.union(self.ends))
        self.greedy: Callable[[str], list[int]] = lambda text: []
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        ids = self._encode(text)
        same = b"".join(self.tokens[i] for i in ids if i < len(self.tokens)) == text.encode("utf-8")
        return ids if same else self.greedy(text)
