"""A GGUF file to a Hugging Face model's directory that `transformers` loads."""

from __future__ import annotations

import json
import math
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.convert_config import hub_config
from gguf_tools.convert_rope_factors import NAME as ROPE_FACTORS
from gguf_tools.convert_rope_factors import llama3_rule
from gguf_tools.convert_vocabulary import tokenizer_files
from gguf_tools.dequantize import dequantize
from gguf_tools.formats import FORMATS
from gguf_tools.name_map import hub_names, is_query_or_key
from gguf_tools.output_path import output_path
from gguf_tools.quantize_stream import encoded, encoding_workers
from gguf_tools.reader import GGUFFile, Tensor
from gguf_tools.rope_rows import separate
from gguf_tools.safetensors_writer import MAX_SHARD_BYTES, HubPlan, index_json, sharded, write_shard
from gguf_tools.split import SplitFile

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class HubModel:
    """What will be written: JSON files by name, and for each hub tensor its source and which part of it."""

    kind: str
    files: dict[str, dict[str, Any]]
    plans: list[HubPlan]
    sources: dict[str, tuple[Tensor, int | None]]

    @property
    def source_bytes(self) -> int:
        """Bytes of weights to read."""
        return sum({t.name: t.data.nbytes for t, _ in self.sources.values()}.values())


def plan_hub_model(file: GGUFFile | SplitFile, kind: str | None, *, vocab_only: bool = False) -> HubModel:
    """Decides everything before a byte is written; kind None keeps a 16-bit type and makes F16 of others.

    Raises: ValueError for a model that has no such form.
    """
    metadata, tensors = file.metadata, file.tensors
    embedding = tensors.get("token_embd.weight")
    listed = metadata.get("tokenizer.ggml.tokens")
    if embedding is None and not (vocab_only and isinstance(listed, list)):
        raise ValueError(
            "the file has no tensor token_embd.weight; it holds no model that could be converted"
        )
    kind = kind or _own_type(tensors)
    config = hub_config(
        metadata,
        vocab_size=embedding.shape[0] if embedding is not None else len(listed or ()),
        tied="output.weight" not in tensors,
        biases="blk.0.attn_q.bias" in tensors,
    )
    if ROPE_FACTORS in tensors:
        factors = dequantize(tensors[ROPE_FACTORS].data, tensors[ROPE_FACTORS].format.name)
        if rule := llama3_rule(factors, config["rope_theta"]):
            config["rope_scaling"] = rule
    files = tokenizer_files(metadata)
    generation = files["generation_config.json"]
    config |= generation | {"torch_dtype": DTYPES[kind]}
    files = {"config.json": config, **files}
    if vocab_only:
        return HubModel(kind, files, [], {})
    sources = _sources(tensors, config.get("num_experts", 0))
    shapes = {name: t.shape if part is None else t.shape[1:] for name, (t, part) in sources.items()}
    plans = [HubPlan(name, shape, FORMATS[kind]) for name, shape in shapes.items()]
    _check_heads(config, sources)
    return HubModel(kind, files, plans, sources)


def write_hub_model(
    model: HubModel,
    output: Path,
    n_threads: int,
    count: Callable[[int], None],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes the directory, which appears under its name only when it is complete.

    Raises: ValueError when there is something of this name, or too little room.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: exists and is not an empty directory; name another one")
    target = output_path(output)
    needed = sum(plan.n_bytes for plan in model.plans)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise ValueError(f"{output}: {needed} bytes are needed, {free} are free there; make room first")
    partial = target.with_name(f"{target.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        partial.mkdir()
        for name, content in model.files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (partial / name).write_text(text + "\n", encoding="utf-8")
        _write_weights(model, partial, n_threads, count, max_shard_bytes)
        # An empty directory of this name gives way.
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_weights(
    model: HubModel, directory: Path, n_threads: int, count: Callable[[int], None], max_shard_bytes: int
) -> None:
    if not model.plans:
        return
    shards = sharded(model.plans, max_shard_bytes)
    work = [(model.sources[plan.name][0].format, plan.format, math.prod(plan.shape)) for plan in model.plans]
    with encoding_workers(n_threads, work) as workers:

        def pieces(plan: HubPlan) -> Iterator[NDArray[np.uint8]]:
            tensor, _ = model.sources[plan.name]
            data = _rows(model, plan.name)
            yield from encoded(plan.name, data, tensor.format, model.kind, workers)
            count(data.nbytes)
            tensor.release()

        for name, plans in shards:
            write_shard(directory / name, plans, map(pieces, plans))
    if len(shards) > 1:
        index = json.dumps(index_json(shards), indent=2)
        (directory / "model.safetensors.index.json").write_text(index + "\n", encoding="utf-8")


def _rows(model: HubModel, name: str) -> NDArray[np.uint8]:
    """The stored rows of a hub tensor: one expert of a stack, Q and K in the hub's order."""
    tensor, part = model.sources[name]
    config = model.files["config.json"]
    data = tensor.data if part is None else tensor.data[part]
    kind = is_query_or_key(tensor.name)
    if kind is None or config["model_type"] not in ("llama", "mistral"):
        return data
    heads = config["num_attention_heads" if kind == "q" else "num_key_value_heads"]
    rows = data if len(tensor.shape) > 1 else data.reshape(tensor.shape[0], -1)
    return separate(rows, heads)


def _own_type(tensors: Mapping[str, Tensor]) -> str:
    stored = {tensor.format.name for tensor in tensors.values() if len(tensor.shape) > 1}
    return stored.pop() if len(stored) == 1 and stored <= DTYPES.keys() else "F16"


def _sources(tensors: Mapping[str, Tensor], n_experts: int) -> dict[str, tuple[Tensor, int | None]]:
    sources: dict[str, tuple[Tensor, int | None]] = {}
    for tensor in tensors.values():
        if tensor.name == ROPE_FACTORS:
            continue
        stacked = len(tensor.shape) == 3
        names = hub_names(tensor.name, n_experts)
        if names is None or (stacked and len(names) != tensor.shape[0]) or (not stacked and len(names) != 1):
            raise ValueError(f"tensor {tensor.name[:80]!r} of shape {tensor.shape} has no name on the hub")
        sources |= {name: (tensor, part if stacked else None) for part, name in enumerate(names)}
    return sources


def _check_heads(config: Mapping[str, Any], sources: Mapping[str, tuple[Tensor, int | None]]) -> None:
    """Q and K must have the rows that config.json will announce, or they would be reordered wrongly."""
    for tensor, _ in sources.values():
        kind = is_query_or_key(tensor.name)
        heads = config["num_attention_heads" if kind == "q" else "num_key_value_heads"]
        if kind is not None and tensor.shape[0] != heads * config["head_dim"]:
            raise ValueError(
                f"tensor {tensor.name!r} has {tensor.shape[0]} rows, the metadata say {heads} heads of "
                f"{config['head_dim']}; get the file anew"
            )
