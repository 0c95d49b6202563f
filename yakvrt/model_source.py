"""A model's files, opened: its configuration, tensors and tokenizer, wherever they come from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.dequantize import dequantize
from gguf_tools.split import open_split

from .config import ConfigError, ModelConfig, config_from_gguf, config_from_json
from .gguf_source import gguf_tensors
from .hub import resolve
from .model_files import ModelFiles, is_gguf
from .no_tokenizer import NoTokenizer
from .safetensors_source import SafetensorsSource
from .sampler import SamplingParams
from .tokenizer import Tokenizer, tokenizer_from_files, tokenizer_from_gguf
from .weights import SourceTensor

MAX_JSON_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class ModelSource:
    """An opened model. interleaved_rope: Q and K rows pair dimensions (2i, 2i+1), as GGUF's llama does."""

    name: str
    config: ModelConfig
    tensors: Mapping[str, SourceTensor]
    tokenizer: Tokenizer | NoTokenizer
    sampling_defaults: SamplingParams
    interleaved_rope: bool = False
    weight_files: tuple[Path, ...] = ()  # none where the weights are random

    def rope_factors(self) -> np.ndarray | None:
        """The divisors of the rotary frequencies that some files store as a tensor."""
        if not self.config.rope_factors_tensor:
            return None
        tensor = self.tensors["rope_freqs.weight"]
        factors = dequantize(tensor.read(), tensor.format)
        if factors.shape != (self.config.head_dim // 2,) or not (factors > 0).all():
            raise ConfigError(f"rope_freqs.weight must hold {self.config.head_dim // 2} positive numbers")
        return factors


@contextmanager
def open_model(
    model: str, *, load_format: str = "auto", offline: bool = False, progress: bool = False
) -> Iterator[ModelSource]:
    """Opens a model by name or path; the tensors are valid inside the `with`.

    Raises: ValueError, HubError or OSError with a sentence that says what to do.
    """
    if load_format not in ("auto", "dummy"):
        raise ValueError(f"load format {load_format!r} is not known; choose auto or dummy")
    if load_format == "dummy":
        yield _dummy(Path(model))
        return
    files = resolve(model, offline=offline, progress=progress)
    if is_gguf(files.weights[0]):
        with open_split(files.weights) as file:
            config = config_from_gguf(file.metadata, file.tensors)
            architecture = file.metadata["general.architecture"]
            yield ModelSource(
                files.name,
                config,
                gguf_tensors(file),
                _gguf_tokenizer(file.metadata, config),
                SamplingParams(),
                interleaved_rope=architecture == "llama",
                weight_files=tuple(files.weights),
            )
        return
    source = SafetensorsSource(files.weights)
    try:
        yield _from_safetensors(files, source)
    finally:
        source.close()


def _from_safetensors(files: ModelFiles, source: SafetensorsSource) -> ModelSource:
    assert files.config is not None
    config = config_from_json(read_json(files.config), source.hub_names)
    generation = read_json(files.generation_config) if files.generation_config else {}
    tokenizer: Tokenizer | NoTokenizer
    if files.tokenizer:
        tokenizer = tokenizer_from_files(
            files.tokenizer, files.tokenizer_config, files.chat_template, generation
        )
    else:
        tokenizer = _no_tokenizer(generation, config)
    defaults = SamplingParams.from_generation_config(generation)
    return ModelSource(
        files.name, config, source.tensors, tokenizer, defaults, weight_files=tuple(files.weights)
    )


def _gguf_tokenizer(metadata: Mapping[str, Any], config: ModelConfig) -> Tokenizer | NoTokenizer:
    if metadata.get("tokenizer.ggml.model", "none") != "none":
        return tokenizer_from_gguf(metadata)
    return _no_tokenizer({"eos_token_id": metadata.get("tokenizer.ggml.eos_token_id")}, config)


def _no_tokenizer(generation: Mapping[str, Any], config: ModelConfig) -> NoTokenizer:
    eos = generation.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [eos]
    return NoTokenizer(frozenset(i for i in ids if type(i) is int and i >= 0), config.vocab_size)


def _dummy(path: Path) -> ModelSource:
    """Random weights of the shapes a config.json or a GGUF file describes."""
    from .dummy_weights import dummy_tensors

    file = path / "config.json" if path.is_dir() else path
    if not path.exists():
        raise ValueError(
            f"{str(path)!r} is neither a file nor a directory here; --load-format dummy fetches nothing, "
            "give it a directory with a config.json or the path of a config.json"
        )
    if not file.is_file():
        raise ValueError(f"{path} holds no config.json; --load-format dummy needs a directory with one")
    if is_gguf(file):
        with open_split((file,)) as gguf:
            config = config_from_gguf(gguf.metadata, gguf.tensors)
    else:
        config = config_from_json(read_json(file))
    config = replace(config, rope_factors_tensor=False)  # random weights need no tensor of factors
    name = path.resolve().name
    return ModelSource(name, config, dummy_tensors(config), _no_tokenizer({}, config), SamplingParams())


def read_json(path: Path) -> dict[str, Any]:
    """Raises: ValueError naming the file when it is too large, no JSON, or no object."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} is over {MAX_JSON_BYTES >> 20} MiB; no real one is, fetch it again")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object; fetch it again")
    return value
