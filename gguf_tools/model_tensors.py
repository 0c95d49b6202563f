"""The tensors of a model in any format: GGUF, split or not, or safetensors under GGUF names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gguf_tools.chunks import Stored
from gguf_tools.split import open_split, part_paths
from gguf_tools.terminal import shown

# Tensors that converters compute from config.json, so that no Hugging Face model holds them.
COMPUTED: Final = frozenset({"rope_freqs.weight"})


def is_hub_model(path: Path) -> bool:
    """Whether the path stands for safetensors files."""
    return path.is_dir() or path.name.endswith((".safetensors", ".safetensors.index.json"))


def missing(
    a: Mapping[str, Stored], b: Mapping[str, Stored], a_label: str, b_label: str, allowed: Collection[str]
) -> list[str]:
    """Tensors that one side lacks (`allowed` ones excepted) or whose shapes differ, one line each."""
    wrong = [f"{shown(name)}: only in {a_label}" for name in a if name not in b and name not in allowed]
    wrong += [f"{shown(name)}: only in {b_label}" for name in b if name not in a and name not in allowed]
    for name in a:
        if name in b and a[name].shape != b[name].shape:
            wrong.append(f"{shown(name)}: shape {a[name].shape} in {a_label}, {b[name].shape} in {b_label}")
    return wrong


def computed(*paths: Path) -> Collection[str]:
    """Names that may be missing because one of the models is a Hugging Face one."""
    return COMPUTED if any(map(is_hub_model, paths)) else ()


@contextmanager
def open_tensors(path: Path) -> Iterator[Mapping[str, Stored]]:
    """Opens a .gguf file (all parts of a split one), a .safetensors file or a directory of them.

    Raises: ValueError when it is none of these or malformed.
    """
    if is_hub_model(path):
        from gguf_tools.safetensors_tensors import open_safetensors

        yield open_safetensors(path)
    else:
        with open_split(part_paths(path)) as model:
            yield model.tensors
