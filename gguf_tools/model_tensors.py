"""The tensors of a model in any format: GGUF, split or not, or safetensors under GGUF names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gguf_tools.chunks import Stored
from gguf_tools.split import open_split, part_paths


@contextmanager
def open_tensors(path: Path) -> Iterator[Mapping[str, Stored]]:
    """Opens a .gguf file (all parts of a split one), a .safetensors file or a directory of them.

    Raises: ValueError when it is none of these or malformed.
    """
    if path.is_dir() or path.name.endswith((".safetensors", ".safetensors.index.json")):
        from gguf_tools.safetensors_tensors import open_safetensors

        yield open_safetensors(path)
    else:
        with open_split(part_paths(path)) as model:
            yield model.tensors
