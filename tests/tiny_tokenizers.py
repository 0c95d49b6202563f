"""Real tokenizers of about 500 tokens, byte-level and SentencePiece."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from yakvrt.tokenizer import Tokenizer as OurTokenizer
from yakvrt.tokenizer import tokenizer_from_files

TEXT = [
    '{"name": "get", "arguments": {"city": "Paris", "n": 12}}',
    "hello there, the world: 3.5\n",
    "é漢🙂 true",
]
SPECIAL = ("<s>", "<|end|>", "<|im_end|>", "<|python_tag|>")
VOCAB_SIZE = 500  # about


def byte_level(directory: Path, config: Mapping[str, Any] | None = None) -> OurTokenizer:
    """As Qwen's and Llama 3's: <tool_call> is an added token that is no control token."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXT * 4, trainer)
    return _loaded(backend, directory / "byte_level.json", config)


def sentencepiece(directory: Path, config: Mapping[str, Any] | None = None) -> OurTokenizer:
    """As Llama 2's: a space in front of a text, and bytes where there is no character."""
    backend = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)]
    )
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=names, show_progress=False)
    backend.train_from_iterator(TEXT * 4, trainer)
    # The trainer makes control tokens of the bytes, which they are not.
    stored = json.loads(backend.to_str())
    stored["added_tokens"] = stored["added_tokens"][:1]
    return _loaded(Tokenizer.from_str(json.dumps(stored)), directory / "sentencepiece.json", config)


def _loaded(backend: Tokenizer, path: Path, config: Mapping[str, Any] | None) -> OurTokenizer:
    backend.add_special_tokens(list(SPECIAL))
    backend.add_tokens([AddedToken(text, special=False) for text in ("<tool_call>", "</tool_call>")])
    backend.save(str(path))
    return tokenizer_from_files(path, {"bos_token": "<s>", "eos_token": "<|end|>", **(config or {})})
