"""Tensors of safetensors files under their GGUF names, one read at a time.

The header is checked by the safetensors library: offsets, sizes and overlaps are validated before any data is
read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
_EXPERT = re.compile(r"mlp\.experts\.([0-9]{1,5})\.(gate|up|down)_proj")
MAX_HEADER_BYTES = 32 << 20  # 36,000 tensors of the largest mixtures take 5 MB
MAX_NAME = 100  # characters shown
_FORMATS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}


class SafetensorsError(ValueError):
    """A safetensors file that cannot be used; the message names it."""


def gguf_name(name: str) -> tuple[str, int | None] | None:
    """(GGUF name, expert or None) of a hub name like model.layers.3.mlp.up_proj.weight; None for tensors
    nobody needs.
    """
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}", None
    match = re.fullmatch(r"model\.layers\.([0-9]{1,5})\.(.+)", stem)
    if match is None:
        return None
    layer, rest = match.groups()
    if rest in _LAYER:
        return f"blk.{layer}.{_LAYER[rest]}.{kind}", None
    expert = _EXPERT.fullmatch(rest)
    if expert is None:
        return None
    return f"blk.{layer}.ffn_{expert[2]}_exps.{kind}", int(expert[1])


@dataclass(frozen=True, slots=True)
class _Place:
    file: Any
    name: str
    shape: tuple[int, ...]
    format: str


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor under its GGUF name; `read()` gives its bytes.

    Shapes: shape (rows, cols), experts (n_experts, rows, cols), vectors (n,).
    """

    name: str
    shape: tuple[int, ...]
    format: str
    _places: tuple[_Place, ...]

    def read(self) -> np.ndarray:
        """uint8, shape[:-1] + (row bytes,)."""
        parts = [place.file.get_tensor(place.name).view(np.uint8) for place in self._places]
        stacked = len(self.shape) == 3
        data: np.ndarray = np.stack(parts) if stacked else parts[0]
        return data.reshape(*self.shape[:-1], -1)

    def release(self) -> None:
        """Nothing to do: read() copies."""


class SafetensorsSource:
    """The tensors of one model's safetensors files.

    Raises: SafetensorsError for a damaged file, a duplicate tensor, a missing expert or an unknown number
    type.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        import ml_dtypes  # registers bfloat16 with numpy, which safetensors needs
        from safetensors import SafetensorError, safe_open

        assert ml_dtypes.bfloat16
        self.hub_names: list[str] = []
        single: dict[str, _Place] = {}
        experts: dict[str, dict[int, _Place]] = {}
        for path in paths:
            try:
                _check_header(path)
                file: Any = safe_open(path, "np")
                names = list(file.keys())
            except (SafetensorError, OSError, ValueError) as error:
                raise SafetensorsError(
                    f"{path} is not a valid safetensors file ({error}); fetch it again"
                ) from error
            self.hub_names += names
            for name in names:
                place = gguf_name(name)
                if place is None:
                    continue
                mapped, expert = place
                described = file.get_slice(name)
                dtype, shape = str(described.get_dtype()), tuple(described.get_shape())
                if dtype not in _FORMATS:
                    raise SafetensorsError(f"{path}: {name} has type {dtype}; yakvrt reads F32, F16 and BF16")
                if not 1 <= len(shape) <= 2 or 0 in shape:
                    raise SafetensorsError(
                        f"{path}: {name} has {len(shape)} dimensions or an empty one; fetch the model again"
                    )
                stored = _Place(file, name, shape, _FORMATS[dtype])
                group: dict[Any, _Place] = single if expert is None else experts.setdefault(mapped, {})
                key: Any = mapped if expert is None else expert
                if key in group:
                    raise SafetensorsError(f"{path}: {name} occurs twice; fetch the model again")
                group[key] = stored
        self.tensors: Mapping[str, StoredTensor] = {
            **{name: StoredTensor(name, p.shape, p.format, (p,)) for name, p in single.items()},
            **{name: _stack(name, places) for name, places in experts.items()},
        }

    def close(self) -> None:
        self.tensors = {}


def _check_header(path: Path) -> None:
    """Bounds the header and refuses a name that occurs twice: the library would silently take the last one.

    Raises: ValueError, OSError.
    """
    with path.open("rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
        if n_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {n_bytes} bytes, at most {MAX_HEADER_BYTES} are read")
        header = file.read(n_bytes)
    try:
        json.loads(header, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None


def _distinct(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"{name[:MAX_NAME]!r} occurs twice in its header")
        seen.add(name)


def _stack(name: str, places: dict[int, _Place]) -> StoredTensor:
    n_experts = max(places) + 1
    if len(places) != n_experts:
        raise SafetensorsError(
            f"{name} lacks {n_experts - len(places)} of its experts; fetch the model again"
        )
    ordered = tuple(places[i] for i in range(n_experts))
    first = ordered[0]
    if any(p.shape != first.shape or p.format != first.format for p in ordered):
        raise SafetensorsError(f"the experts of {name} differ in shape or type; fetch the model again")
    return StoredTensor(name, (n_experts, *first.shape), first.format, ordered)
