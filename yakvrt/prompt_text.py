"""Prompts as text: from a flag, a file or stdin."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yakvrt.no_tokenizer import NoTokenizer
    from yakvrt.tokenizer import Tokenizer

    AnyTokenizer = Tokenizer | NoTokenizer

MAX_TEXT_BYTES = 256 << 20
ESCAPE = re.compile(rb"\\(x[0-9A-Fa-f]{2}|[ntr\\'\"])")
SURROGATE = re.compile("[\udc80-\udcff]")
ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"\\": b"\\", b"'": b"'", b'"': b'"'}


def unescape(text: str) -> str:
    r"""Replace \n, \t, \r, \", \', \\ and \xHH, a byte, as llama.cpp does; any other backslash stays.

    Raises: ValueError where the bytes are no UTF-8.
    """

    def byte(found: re.Match[bytes]) -> bytes:
        return ESCAPED.get(found[1]) or bytes([int(found[1][1:], 16)])

    data = ESCAPE.sub(byte, text.encode("utf-8", "surrogatepass"))
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise ValueError(
            rf"an escape \x{data[error.start]:02x} begins no UTF-8 character; --no-escape takes -p and -r "
            "letter by letter"
        ) from None


def argument_text(text: str) -> str:
    """The text of an argument, which Python gives as surrogates where the locale has no such characters."""
    try:
        return os.fsencode(text).decode("utf-8") if SURROGATE.search(text) else text
    except UnicodeError:
        return text  # whoever encodes it says what is wrong


def read_text(args: argparse.Namespace) -> str | None:
    """The text of -p, -p - or -f; None when none was given.

    Raises: ValueError when it is too large, or it or its escapes are not UTF-8.
    """
    if args.prompt is not None and args.prompt != "-":
        text = str(args.prompt)
        return unescape(text) if args.escape else text
    if args.prompt == "-":
        if sys.stdin is None:  # a service may close it
            raise ValueError("stdin is closed; give the text with -p or -f")
        return decode_text(sys.stdin.buffer.read(MAX_TEXT_BYTES + 1), "stdin")
    return None if args.file is None else read_file(Path(args.file))


def read_file(path: Path) -> str:
    """The file's text, less one newline at its end (as llama.cpp does).

    Raises: ValueError when it cannot be read, is too large or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path} cannot be read ({reason}); give a readable text file") from None
    return decode_text(data, str(path))


def decode_text(data: bytes, source: str) -> str:
    """The text of some bytes, less one newline at its end."""
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError(f"{source} is larger than {MAX_TEXT_BYTES >> 20} MB; give a smaller text")
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text (byte {error.start}); convert it first") from None


def chat_tokenizer(tokenizer: AnyTokenizer, template_file: str | None) -> AnyTokenizer:
    """The model's tokenizer, with the file's chat template in place of the model's when one is named."""
    if template_file is None:
        return tokenizer
    source = read_file(Path(template_file))
    return tokenizer.with_chat_template(source)
