"""A tiny model that reads and writes text: one of tests/data with a tokenizer of single bytes."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_files import tiny_copy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def tiny_text_model(directory: Path, family: str = "qwen3") -> Path:
    """Writes it. Its answers mean nothing; without sampling they are always the same."""
    tiny_copy(family, directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {"<pad>": 0, "<s>": 1, "</s>": 2} | {piece: i for i, piece in enumerate(alphabet, 3)}
    vocab_size = json.loads((directory / "config.json").read_text())["vocab_size"]
    ids |= {f"word{i}": i for i in range(len(ids), vocab_size)}
    tokenizer = Tokenizer(models.BPE(ids, [], byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": False, "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
