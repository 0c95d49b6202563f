"""Compiles a grammar in a process of its own first, which can be ended: llguidance bounds the work of most
grammars, but not of all, and overflows its stack over some.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .grammar import Grammar

MAX_CHECK_S: Final = 5  # on a CPU
MAX_WAIT_S: Final = 30.0  # the process is nice to others
NICE: Final = 10
MAX_CHECK_BYTES: Final = 1 << 30
STACK_BYTES: Final = 2 << 20  # a quarter of what Linux gives a thread
MAX_REASON_CHARS = 300

# As llama.cpp: a weak model would go on with white space for ever.
WHITESPACE = {"whitespace_flexible": True, "whitespace_pattern": r"( |\n{1,2}[ \t]{0,20})?"}


def import_llguidance() -> Any:
    """The package. Raises: RuntimeError when it is missing."""
    try:
        import llguidance
    except ImportError:
        raise RuntimeError(
            "grammars and JSON schemas take llguidance; install it with pip install 'yakvrt[grammar]'"
        ) from None
    return llguidance


def checked_source(grammar: Grammar) -> str:
    """The grammar as llguidance reads it, once it has compiled for a vocabulary of bytes.

    Raises: ValueError when it does not, or takes more than MAX_CHECK_S or MAX_CHECK_BYTES.
    """
    name = "JSON schema" if grammar.kind == "json_schema" else f"grammar ({grammar.kind})"
    # -P: this directory's modules must not stand in for the standard library's.
    command = [sys.executable, "-P", str(Path(__file__)), str(MAX_CHECK_S)]
    asked = json.dumps([grammar.kind, grammar.text])
    try:
        done = subprocess.run(command, input=asked, capture_output=True, encoding="utf-8", timeout=MAX_WAIT_S)
        is_late = done.returncode == -signal.SIGXCPU
    except subprocess.TimeoutExpired:
        is_late = True
    if is_late:
        raise ValueError(f"the {name} takes more than {MAX_CHECK_S} s to compile; simplify it")
    if done.returncode or not done.stdout:
        raise ValueError(f"the {name} takes too much memory or nests too deeply to compile; simplify it")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ValueError(f"the {name} does not compile ({reason(answer['error'])}); correct it")
    return str(answer["source"])


def reason(message: str) -> str:
    """An error of llguidance in one line."""
    if message.startswith("NoExtensionBias"):  # all that it says when no token can come
        return "no text fits it, as when it refers to itself alone"
    return " ".join(message.split())[:MAX_REASON_CHARS]


def _source(kind: str, text: str) -> str:
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(text, WHITESPACE)  # type: ignore[arg-type]
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    return LLMatcher.grammar_from_lark(any_to_lark(text))


class _Bytes:
    """What llguidance asks of a tokenizer, whose tokens are bytes."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = 256
    tokens = (*(bytes([byte]) for byte in range(256)), b"")
    special_token_ids = (256,)

    def __call__(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))


def _answer(kind: str, text: str) -> dict[str, str]:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    try:
        source = _source(kind, text)
    except Exception as error:  # the converter raises plain Exception
        return {"error": str(error)}
    matcher = LLMatcher(LLTokenizer(_Bytes()), source, limits=LLParserLimits(verbose_errors=False))  # type: ignore[arg-type]
    if not matcher.is_error():
        matcher.compute_bitmask()
    return {"error": matcher.get_error()} if matcher.is_error() else {"source": source}


def _main() -> None:
    import resource
    import threading

    resource.setrlimit(resource.RLIMIT_AS, (MAX_CHECK_BYTES, MAX_CHECK_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), resource.RLIM_INFINITY))
    os.nice(NICE)  # a step of all streams waits for each of its threads
    threading.stack_size(STACK_BYTES)
    kind, text = json.load(sys.stdin)
    thread = threading.Thread(target=lambda: print(json.dumps(_answer(kind, text))))
    thread.start()
    thread.join()


if __name__ == "__main__":
    _main()
