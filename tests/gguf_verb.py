"""Runs verbs of gguf_tools in this process, on small models; for tests only."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
from gguf_files import model_bytes, write
from numpy.typing import NDArray

from gguf_tools.__main__ import main

Tensors = Mapping[str, tuple[str, NDArray[np.float32]]]

CHAT_METADATA: Mapping[str, object] = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "general.license": "mit",
    "llama.block_count": 1,
    "llama.rope.freq_base": 1e-5,
    "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "a", "\x1b[2J", "é", "`|`", "b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "old {{ x }}\n\x07end",
    "tokenizer.chat_templates": ["tool"],
    "tokenizer.chat_template.tool": "old tool",
    "deep": [[1, 2], [3]],
}


def run(*args: str | Path) -> tuple[int, str, str]:
    """The exit code and what was printed on stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(str(stop.code))
    return code, out.getvalue(), err.getvalue()


def weights(seed: int, *shape: int) -> NDArray[np.float32]:
    """Normally distributed numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save(path: Path, metadata: Mapping[str, object], tensors: Tensors, alignment: int = 32) -> Path:
    """Writes a model as writers do: the last tensor is filled up to the alignment too."""
    raw = model_bytes(metadata, tensors, alignment=alignment)
    write(path, raw + bytes(-len(raw) % alignment))
    return path


def save_chat_model(path: Path) -> Path:
    """A model with every kind of metadata and three tensors."""
    tensors = {
        "token_embd.weight": ("Q8_0", weights(1, 8, 32)),
        "blk.0.attn_q.weight": ("F32", weights(2, 4, 8)),
        "output_norm.weight": ("F32", weights(3, 8)),
    }
    return save(path, CHAT_METADATA, tensors)


def seven_layers() -> dict[str, tuple[str, NDArray[np.float32]]]:
    """Seven tensors of growing size."""
    return {f"blk.{i}.attn_q.weight": ("Q8_0", weights(i, 4, 32 * (i + 1))) for i in range(7)}


def save_seven_layers(path: Path, alignment: int = 32) -> Path:
    """A model of seven tensors, with a vocabulary."""
    metadata: dict[str, object] = {"general.architecture": "llama", "tokenizer.ggml.tokens": ["a", "b"]}
    if alignment != 32:
        metadata["general.alignment"] = alignment
    return save(path, metadata, seven_layers(), alignment)


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())
