"""RULER's other tasks: vt (variable tracking), cwe (common words), fwe (frequent coded words).

Source: github.com/NVIDIA/RULER: prompts, counts, and the worked example before the questions of vt and cwe.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from random import Random

from yakvrt.eval.tasks.fill import fill
from yakvrt.eval.tasks.interleave import interleave
from yakvrt.eval.tasks.ruler_niah import NOISE, Drawn

# Tokens to generate.
VT_TOKENS, CWE_TOKENS, FWE_TOKENS = 30, 120, 50
HOPS = 4
EXAMPLE_TOKENS = 500
# Below this length cwe repeats its words less often.
SHORT_LENGTH = 4096
COMMON = 10
CODED_LETTERS = 6
TOKENS_A_CODED_WORD = 50
TRACK = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above."
    " Answer: According to the chain(s) of variable assignment in the text above,"
    " {number} variables are assigned the value {value}, they are: "
)
COMMON_WORDS = (
    "Below is a numbered list of words. In these words, some appear more often than others."
    " Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
    " Answer: The top 10 words that appear most often in the list are:"
)
CODED_WORDS = (
    "Read the following coded text and track the frequency of each coded word."
    " Find the three most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'."
    " What are the three most frequently appeared words in the above coded text?"
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)


def draw_variable_tracking(limit: int, count: Callable[[str], int], rng: Random) -> Drawn:
    """One chain of five variables in lines of noise, after a worked example of its own."""
    example, names = _chain(3, rng)
    shown, _ = fill(example, EXAMPLE_TOKENS, min(EXAMPLE_TOKENS, limit // 2), count, "vt's worked example")
    question, expected = _chain(5, rng)

    def build(n: int) -> str:
        return f"{shown} {' '.join(names)}\n\n{question(n)}"

    return Drawn(build, limit, expected, " ".join(expected))


def _chain(letters: int, rng: Random) -> tuple[Callable[[int], str], list[str]]:
    """A text of n lines of noise and a chain of assignments, and the chain's variables."""
    names: list[str] = []
    while len(names) <= HOPS:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in names:
            names.append(name)
    value = rng.randint(10000, 99998)
    lines = [f"VAR {names[0]} = {value}"]
    lines += [f"VAR {names[i + 1]} = VAR {names[i]} " for i in range(HOPS)]
    places = sorted(rng.random() for _ in lines)

    def build(n: int) -> str:
        context = "\n".join(interleave([NOISE] * n, lines, places))
        return TRACK.format(context=context, value=value, number=len(names))

    return build, names


def draw_common_words(limit: int, length: int, words: Sequence[str], rng: Random) -> Drawn:
    """Ten words stand 30 times in a numbered list, the others 3 times (6 and 1 at short lengths)."""
    short = length < SHORT_LENGTH
    often, seldom = (6, 1) if short else (30, 3)
    example, shown = _word_list(rng.sample(words, 20 if short else 40), *((3, 1) if short else (10, 3)), rng)
    drawn = rng.sample(words, min(len(words), limit))
    order = rng.getrandbits(64)

    def build(n: int) -> str:
        question, _ = _word_list(drawn[: COMMON + n], often, seldom, Random(order))
        return f"{example} {_numbered(shown)}\n{question}"

    return Drawn(build, len(drawn) - COMMON, drawn[:COMMON], _numbered(drawn[:COMMON]))


def _word_list(words: Sequence[str], often: int, seldom: int, rng: Random) -> tuple[str, Sequence[str]]:
    common = words[:COMMON]
    listed = [*common] * often + [*words[COMMON:]] * seldom
    rng.shuffle(listed)
    return COMMON_WORDS.format(context=_numbered(listed)), common


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


def draw_frequent_words(limit: int, rng: Random) -> Drawn:
    """Made-up words whose counts fall with the square of their rank; the first is written as dots."""
    vocabulary: list[str] = []
    seen = set()
    while len(vocabulary) < max(limit // TOKENS_A_CODED_WORD, 5):
        word = "".join(rng.choices(string.ascii_lowercase, k=CODED_LETTERS))
        if word not in seen:
            seen.add(word)
            vocabulary.append(word)
    vocabulary[0] = "..."
    order = rng.getrandbits(64)

    def build(n: int) -> str:
        listed: list[str] = []
        for rank, word in enumerate(vocabulary, 1):
            listed += [word] * int((FEWEST_CODED + n) / rank**2 * 6 / math.pi**2)
        Random(order).shuffle(listed)
        return CODED_WORDS.format(context=" ".join(listed))

    expected = vocabulary[1:4]
    return Drawn(build, limit, expected, ", ".join(expected))


# From here on the third word asked for stands more often than the next one.
FEWEST_CODED = 100
