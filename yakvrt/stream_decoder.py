"""Token ids to text, one token at a time."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Final


def _byte_alphabet() -> dict[str, int]:
    """Map each character of the GPT-2 byte alphabet to the byte it stands for.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (byte-level BPE).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    table = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if chr(byte) not in table]
    table.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return table


_BYTE_OF_CHAR: Final = _byte_alphabet()


def byte_level_piece(token: str) -> bytes:
    """Turn a byte-level BPE token into its bytes."""
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in token])
    except KeyError:
        # Added tokens are stored as plain text, not in the byte alphabet.
        return token.encode("utf-8")


def sentencepiece_piece(token: str) -> bytes:
    """Turn a SentencePiece token into its bytes: `<0x0A>` is one byte, "▁" is a space."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace("\u2581", " ").encode("utf-8")


class StreamDecoder:
    """Turn a stream of token ids into text that never ends inside a character.

    The pieces pushed and flushed, joined, equal the decoding of all ids at once. Each push costs O(1):
    at most three bytes wait for the rest of their character.
    """

    __slots__ = ("_decoder", "_piece", "_strip_space")

    def __init__(self, piece: Callable[[int], bytes], *, strip_space: bool) -> None:
        """Decode with `piece` (id to bytes, empty for a skipped token), less one leading space if asked."""
        self._piece = piece
        self._strip_space = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Return the text that became complete with this token, often empty."""
        piece = self._piece(token_id)
        if self._strip_space and piece:
            self._strip_space = False
            piece = piece.removeprefix(b" ")
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """Return what is left: a U+FFFD when the stream ended inside a character."""
        return self._decoder.decode(b"", True)
