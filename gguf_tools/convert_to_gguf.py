"""A Hugging Face model's directory to one GGUF file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gguf_tools.convert_config import HubConfig, model_keys, read_config
from gguf_tools.convert_model_card import card_keys, sampling_keys
from gguf_tools.convert_rope_factors import NAME as ROPE_FACTORS
from gguf_tools.convert_rope_factors import llama3_factors
from gguf_tools.convert_tokenizer import read_tokenizer_files, tokenizer_keys
from gguf_tools.formats import FORMATS
from gguf_tools.meta_value import MetaValue, ValueType, scalar, string
from gguf_tools.part_writer import write_parts
from gguf_tools.quantize_file import QUANTIZATION_VERSION
from gguf_tools.quantize_mix import FILE_TYPES, MixOptions, ModelFacts, tensor_types
from gguf_tools.quantize_stream import Workers, encoded, encoding_workers
from gguf_tools.safetensors_tensors import HubTensor, hub_tensors, weight_files
from gguf_tools.size_label import size_label
from gguf_tools.writer import GGUFWriter, TensorPlan

_LAYER: Final = re.compile(r"blk\.(\d+)\.(.+)")
_FIRST: Final = (ROPE_FACTORS, "token_embd.weight")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What will be written: keys, tensors, and the mix they follow."""

    config: HubConfig
    mix: str
    metadata: dict[str, MetaValue]
    plans: list[TensorPlan]
    tensors: Mapping[str, HubTensor]

    @property
    def source_bytes(self) -> int:
        """Bytes of weights to read."""
        return sum(tensor.source_bytes for tensor in self.tensors.values())


def plan_conversion(
    directory: Path,
    mix: str | None,
    *,
    name: str | None = None,
    pre_tokenizer: str | None = None,
    vocab_only: bool = False,
) -> Conversion:
    """Reads a model's directory; mix None keeps its 16-bit type.

    Raises: ValueError for a directory or model that cannot be converted.
    """
    config = read_config(directory)
    tensors = {} if vocab_only else _ordered(hub_tensors(weight_files(directory), config))
    if not vocab_only:
        _check(config, tensors)
    mix = mix or _own_type(tensors)
    tokenizer = read_tokenizer_files(directory)
    n_weights = sum(math.prod(tensor.shape) for tensor in tensors.values())
    size = size_label(tensors.values()) if tensors else None
    metadata = {
        "general.architecture": string(config.arch),
        "general.type": string("model"),
        **sampling_keys(tokenizer.generation),
        **card_keys(directory, name, n_weights, size),
        **model_keys(config),
        "general.file_type": scalar(ValueType.UINT32, FILE_TYPES[mix][0]),
        **tokenizer_keys(tokenizer, config, pre_tokenizer),
        "general.quantization_version": scalar(ValueType.UINT32, QUANTIZATION_VERSION),
    }
    return Conversion(config, mix, metadata, _plans(config, tensors, mix), tensors)


def write_gguf(
    conversion: Conversion,
    paths: Sequence[Path],
    parts: Sequence[Sequence[TensorPlan]],
    n_threads: int,
    count: Callable[[int], None],
) -> None:
    """Writes one file or, where there are several paths, the parts; `count` hears of source bytes done.

    Raises: ValueError for weights that the chosen type cannot hold.
    """
    tensors = conversion.tensors
    work = [
        (tensors[p.name].format, p.format, math.prod(p.shape)) for p in conversion.plans if p.name in tensors
    ]
    with encoding_workers(n_threads, work) as workers:

        def write(writer: GGUFWriter, plan: TensorPlan) -> None:
            _write_tensor(conversion, writer, plan, workers)
            count(conversion.tensors[plan.name].source_bytes if plan.name in tensors else 0)

        if len(paths) > 1:
            write_parts(paths, parts, conversion.metadata, None, write)
            return
        with GGUFWriter(paths[0], conversion.metadata, conversion.plans) as writer:
            for plan in conversion.plans:
                write(writer, plan)


def _write_tensor(conversion: Conversion, writer: GGUFWriter, plan: TensorPlan, workers: Workers) -> None:
    if plan.name == ROPE_FACTORS:
        config = conversion.config
        factors = llama3_factors(config.rope, config.rope_theta, config.head_dim)
        writer.write_tensor(plan.name, factors.view("u1"))
        return
    tensor = conversion.tensors[plan.name]
    writer.write_tensor(
        plan.name, encoded(plan.name, tensor.read(), tensor.format, plan.format.name, workers)
    )
    tensor.release()


def _own_type(tensors: Mapping[str, HubTensor]) -> str:
    first = next((t.format.name for t in tensors.values() if len(t.shape) > 1), "BF16")
    return "F16" if first == "F16" else "BF16"


def _ordered(tensors: Mapping[str, HubTensor]) -> dict[str, HubTensor]:
    """Embedding, layers by number, then what follows them."""

    def place(name: str) -> tuple[int, int]:
        match = _LAYER.match(name)
        return (1, int(match[1])) if match else (0 if name in _FIRST else 2, 0)

    return {name: tensors[name] for name in sorted(tensors, key=place)}


def _check(config: HubConfig, tensors: Mapping[str, HubTensor]) -> None:
    embedding = tensors.get("token_embd.weight")
    if embedding is None or embedding.shape != (config.vocab_size, config.numbers["embedding_length"]):
        held = "is missing" if embedding is None else f"has the shape {embedding.shape}"
        raise ValueError(
            f"model.embed_tokens.weight {held}, which config.json contradicts; fetch the model again"
        )
    layers: dict[int, set[str]] = {}
    for name in tensors:
        if match := _LAYER.match(name):
            layers.setdefault(int(match[1]), set()).add(match[2])
    wanted = set().union(*layers.values())
    for index in range(config.numbers["block_count"]):
        missing = wanted - layers.get(index, set())
        if missing or not wanted:
            what = f"lacks {sorted(missing)[0]}" if missing else "has no weights"
            raise ValueError(f"layer {index} {what}; the model is incomplete, fetch it again")
    if len(layers) > config.numbers["block_count"]:
        raise ValueError(
            f"there are {len(layers)} layers, config.json says {config.numbers['block_count']}; fetch anew"
        )
    if not config.tied and "output.weight" not in tensors:
        raise ValueError("lm_head.weight is missing, but config.json does not tie it; fetch the model again")


def _plans(config: HubConfig, tensors: Mapping[str, HubTensor], mix: str) -> list[TensorPlan]:
    # Tensors that no rule quantises are stored as F32 whatever they came as.
    described = [(tensor.name, tensor.shape, "F32") for tensor in tensors.values()]
    facts = ModelFacts(
        config.arch, config.numbers["block_count"], config.n_heads // config.n_kv_heads, config.n_experts
    )
    types = tensor_types(described, facts, mix, MixOptions())
    plans = [TensorPlan(t.name, t.shape, FORMATS[types[t.name]]) for t in tensors.values()]
    if tensors and config.rope.get("rope_type") == "llama3":
        plans.insert(0, TensorPlan(ROPE_FACTORS, (config.head_dim // 2,), FORMATS["F32"]))
    return plans
