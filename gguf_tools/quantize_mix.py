"""Which tensor of a model gets which type, by llama-quantize's rules.

Names, numbers and rules are those of llama.cpp's llama-quantize without an importance matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from gguf_tools.formats import FORMATS

# Name: (the number stored as general.file_type, the type of most tensors).
FILE_TYPES: Final[Mapping[str, tuple[int, str]]] = MappingProxyType(
    {
        "F32": (0, "F32"),
        "F16": (1, "F16"),
        "BF16": (32, "BF16"),
        "Q4_0": (2, "Q4_0"),
        "Q4_1": (3, "Q4_1"),
        "Q5_0": (8, "Q5_0"),
        "Q5_1": (9, "Q5_1"),
        "Q8_0": (7, "Q8_0"),
        "Q2_K": (10, "Q2_K"),
        "Q3_K_S": (11, "Q3_K"),
        "Q3_K_M": (12, "Q3_K"),
        "Q3_K_L": (13, "Q3_K"),
        "Q4_K_S": (14, "Q4_K"),
        "Q4_K_M": (15, "Q4_K"),
        "Q5_K_S": (16, "Q5_K"),
        "Q5_K_M": (17, "Q5_K"),
        "Q6_K": (18, "Q6_K"),
    }
)
ALIASES: Final[Mapping[str, str]] = MappingProxyType({"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"})
# A K type whose 256 values do not divide the row: the type of 32 values that takes its place.
_NARROWER: Final[Mapping[str, str]] = MappingProxyType(
    {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
)
_UNQUANTIZED: Final = frozenset({"F32", "F16", "BF16"})
# Weights that cost little and matter much, or that no program reads quantised.
_KEPT: Final = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|altup|laurel|per_layer_model_proj|position_embd\.weight|"
    r"token_types\.weight|ssm_conv1d|shortconv\.conv\.weight|time_mix_|attn_rel_b\.weight"
)
_LAYER: Final = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class MixOptions:
    """What the user asked for beyond the mix; `overrides` are (pattern, type), the first match counts."""

    overrides: Sequence[tuple[re.Pattern[str], str]] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    pure: bool = False
    leave_output: bool = False


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The numbers of a model that the rules look at."""

    arch: str
    n_layers: int
    n_gqa: int
    n_experts: int

    @property
    def is_70b(self) -> bool:
        """Eighty layers with grouped heads: attention values are shared widely and kept finer."""
        return self.n_layers == 80 and (self.arch == "qwen2" or (self.arch == "llama" and self.n_gqa > 1))


def file_type(name: str) -> str:
    """The mix named as on llama-quantize's command line: a name, an alias or a number.

    Raises: ValueError for an unknown one.
    """
    upper = name.upper()
    known = ALIASES.get(upper, upper)
    if known not in FILE_TYPES:
        by_number = {str(number): mix for mix, (number, _) in FILE_TYPES.items()}
        if name not in by_number:
            raise ValueError(
                f"quantisation type {name!r} is not known; choose one of {', '.join(FILE_TYPES)}"
            )
        known = by_number[name]
    return known


def model_facts(metadata: Mapping[str, Any]) -> ModelFacts:
    """The numbers of a GGUF file's metadata; absent ones count as 0 or 1."""
    arch = str(metadata.get("general.architecture", ""))

    def number(key: str) -> int:
        value = metadata.get(f"{arch}.{key}", 0)
        value = max(value, default=0) if isinstance(value, list) else value
        return value if type(value) is int and value > 0 else 0

    n_heads = number("attention.head_count")
    n_kv_heads = number("attention.head_count_kv") or n_heads
    return ModelFacts(arch, number("block_count"), n_heads // max(n_kv_heads, 1), number("expert_count"))


def tensor_types(
    tensors: Iterable[tuple[str, tuple[int, ...], str]],
    facts: ModelFacts,
    mix: str,
    options: MixOptions,
) -> dict[str, str]:
    """The type of every tensor, given (name, shape, present type) of each.

    Shapes: in numpy order, (rows, cols).
    """
    described = sorted(tensors, key=lambda tensor: _layer_of(tensor[0], 1 << 30))
    names = [name for name, _, _ in described]
    counter = _Counter(facts, mix, names)
    types = {}
    for name, shape, present in described:
        if not _may_change(name, shape, options):
            types[name] = present
            continue
        wanted = counter.type_of(name, shape, options)
        types[name] = fitting(wanted, shape[-1])
    return types


def fitting(wanted: str, n_cols: int) -> str:
    """The type itself, or what takes its place where its blocks do not divide a row."""
    if n_cols % FORMATS[wanted].block_len:
        wanted = _NARROWER.get(wanted, "F16")
    return wanted if n_cols % FORMATS[wanted].block_len == 0 else "F16"


def _may_change(name: str, shape: tuple[int, ...], options: MixOptions) -> bool:
    if options.leave_output and name == "output.weight":
        return False
    return name.endswith("weight") and len(shape) >= 2 and _KEPT.search(name) is None


def _layer_of(name: str, default: int) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else default


def _finer(index: int, count: int) -> bool:
    """The first and last eighth of the layers and every third one between get more bits."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


class _Counter:
    """The rules, with the running numbers of attention values and of ffn_down that they depend on."""

    __slots__ = ("base", "facts", "mix", "n_down", "n_values", "next_down", "next_value", "tied")

    def __init__(self, facts: ModelFacts, mix: str, names: Sequence[str]) -> None:
        self.facts = facts
        self.mix = mix
        self.base = FILE_TYPES[mix][1]
        self.tied = "output.weight" not in names
        self.n_values = sum(
            "attn_v.weight" in n or "attn_qkv.weight" in n or "attn_kv_b." in n for n in names
        )
        self.n_down = facts.n_layers
        self.next_value = self.next_down = 0

    def type_of(self, name: str, shape: tuple[int, ...], options: MixOptions) -> str:
        if name == "token_embd.weight" and options.embedding_type:
            return options.embedding_type
        if name == "output.weight" and options.output_type:
            return options.output_type
        manual = next((kind for pattern, kind in options.overrides if pattern.search(name)), None)
        if options.pure or self.base in _UNQUANTIZED:
            return manual or self.base
        by_rule = self._by_rule(name, shape[-1], options)
        return manual or by_rule

    def _by_rule(self, name: str, n_cols: int, options: MixOptions) -> str:
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            if options.output_type:
                return options.output_type
            divides = n_cols % FORMATS[self.base].block_len == 0
            return "Q6_K" if divides and self.base != "Q8_0" else "Q8_0"
        if "attn_v.weight" in name:
            return self._attention_value()
        if "attn_k.weight" in name and self.facts.n_experts == 8:
            return "Q8_0"
        if "ffn_down" in name:
            return self._down(name)
        if "attn_output.weight" in name:
            return self._attention_output()
        if "attn_qkv.weight" in name:
            fused = {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}
            return fused.get(self.mix, self.base)
        return self.base

    def _attention_value(self) -> str:
        index, self.next_value = self.next_value, self.next_value + 1
        shared = self.facts.n_gqa >= 4
        kind = self.base
        if self.mix == "Q2_K":
            kind = "Q4_K" if shared else "Q3_K"
        elif self.mix == "Q3_K_M":
            kind = "Q5_K" if index < 2 else "Q4_K"
        elif self.mix == "Q3_K_L" or (self.mix == "Q4_K_S" and index < 4):
            kind = "Q5_K"
        elif self.mix in ("Q4_K_M", "Q5_K_M") and _finer(index, self.n_values):
            kind = "Q6_K"
        if self.facts.is_70b and kind in ("Q3_K", "Q4_K"):
            kind = "Q5_K"
        return "Q8_0" if self.facts.n_experts == 8 else kind

    def _down(self, name: str) -> str:
        index, self.next_down = self.next_down, self.next_down + 1
        if self.facts.n_experts > 1:
            # Shared and routed experts are several tensors a layer: the layer's own number counts.
            index = _layer_of(name, index)
        count = self.n_down
        if self.mix == "Q2_K":
            return "Q3_K"
        if self.mix == "Q3_K_M":
            return "Q5_K" if index < count // 16 else "Q4_K"
        if self.mix == "Q3_K_L" or (self.mix == "Q4_K_S" and index < count // 8):
            return "Q5_K"
        if self.mix in ("Q4_K_M", "Q5_K_M") and _finer(index, count):
            return "Q6_K"
        return self.base

    def _attention_output(self) -> str:
        if self.facts.n_experts == 8:
            finer = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M")
            return "Q5_K" if self.mix in finer else self.base
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self.mix, self.base)
