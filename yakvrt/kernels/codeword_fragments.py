"""Pieces of the CUDA kernel that attends to rows of codes: codes go from memory to registers as they lie, and
one at a time, as the address of a codeword, from a codebook in shared memory into a fragment.

A codebook lies there 32 times, once for every bank, so that the lanes of a warp never wait for each other:
256 bytes for each code, which is the second byte of an offset. A code takes three instructions: a permutation
of bytes or, of 6 bits, a mask; the sum with the book's address, which may shift; the load.
"""

from __future__ import annotations

from typing import Any

BOOK_PITCH = 64  # words between codewords


def make_load_words(g: Any, n_words: int, *offsets: int) -> Any:
    """An inline load(target, at, source, i): n_words from word i on, into target[at] and behind; 1, 2 or 4 at
    once, whatever divides n_words and the offsets whose multiples i is a sum of.
    """

    @g.inline
    def load_fours(target, at, source, i):  # type: ignore[no-untyped-def]
        for j in range(0, n_words, 4):
            a, b, c, d = g.load_constant_u32x4(source, i + j)
            target[at + j], target[at + j + 1], target[at + j + 2], target[at + j + 3] = a, b, c, d

    @g.inline
    def load_pairs(target, at, source, i):  # type: ignore[no-untyped-def]
        for j in range(0, n_words, 2):
            target[at + j], target[at + j + 1] = g.load_constant_u32x2(source, i + j)

    @g.inline
    def load_singles(target, at, source, i):  # type: ignore[no-untyped-def]
        for j in range(n_words):
            target[at + j] = source[i + j]

    for width, load in ((4, load_fours), (2, load_pairs)):
        if all(n % width == 0 for n in (n_words, *offsets)):
            return load
    return load_singles


def make_fill_book(g: Any, n_codes: int, threads: int) -> Any:
    """An inline fill_book(book, points, thread): points are pairs of float16 [n_codes]."""
    book_pitch = BOOK_PITCH

    @g.inline
    def fill_book(book, points, thread):  # type: ignore[no-untyped-def]
        lane = thread & 31
        for first in range(thread - lane, n_codes, threads):
            word = points[first + lane]
            for i in range(32):
                book[(first + i) * book_pitch + lane] = g.shuffle_from(word, i)

    return fill_book


def make_codewords(g: Any) -> tuple[Any, Any, Any]:
    """Inline functions; a book begins with the lane's own copy.

    codeword(book, word, i): the two numbers of byte i of a word of codes.
    four_of_bytes(book, words, at, last, j), four_of_sixes(...): those of codes 4 j to 4 j + 3, of a byte or 6
    bits, of the codes that begin with words[at]; words[last] is the last word there is.
    """

    @g.inline
    def codeword(book, word, i):  # type: ignore[no-untyped-def]
        code = g.permute_bytes(word, g.uint32(0), g.uint32(0x4404 + (i << 4)))
        return g.load_u32_at(book, code)

    @g.inline
    def four_of_bytes(book, words, at, last, j):  # type: ignore[no-untyped-def]
        word = words[at + j]
        return (
            codeword(book, word, 0),
            codeword(book, word, 1),
            codeword(book, word, 2),
            codeword(book, word, 3),
        )

    @g.inline
    def four_of_sixes(book, words, at, last, j):  # type: ignore[no-untyped-def]
        word = at + 24 * j // 32
        codes = g.funnel_right(words[word], words[min(word + 1, last)], g.uint32(24 * j % 32))
        # a shift behind the mask and the sum with the book's address are one instruction
        a = g.uint32(g.mask_bits(codes, g.uint32(0x3F)) << 8)
        b = g.uint32(g.mask_bits(codes, g.uint32(0xFC0)) << 2)
        c = g.uint32(g.mask_bits(codes, g.uint32(0x3F000)) >> g.uint32(4))
        d = g.uint32(g.mask_bits(codes, g.uint32(0xFC0000)) >> g.uint32(10))
        return g.load_u32_at(book, a), g.load_u32_at(book, b), g.load_u32_at(book, c), g.load_u32_at(book, d)

    return codeword, four_of_bytes, four_of_sixes
