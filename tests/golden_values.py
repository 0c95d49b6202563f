"""Reads tests/data: tiny random-weight models and golden values of real ones, by transformers in float32."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

DATA = Path(__file__).parent / "data"
TINY_FAMILIES = ("llama3", "llama32-tied", "qwen2", "qwen3", "qwen3-moe")

SMOLLM2_FLOAT32 = "smollm2_hf_float32"
SMOLLM2_LLAMACPP = "smollm2_llamacpp_q4_1"
QWEN25_CODER_FLOAT32 = "qwen25coder15b_hf_float32"


@dataclass(frozen=True, slots=True)
class TinyCase:
    """One id sequence through a tiny model.

    Shapes: logits [R, V] float32, of the last R positions (R is len(ids), or 8 for 700 ids).
    """

    ids: list[int]
    logits: npt.NDArray[np.float32]
    greedy_ids: list[int]


@dataclass(frozen=True, slots=True)
class GoldenPrompt:
    """One prompt through a real model; greedy_margins are top1 - top2 of every greedy step, EOS ignored."""

    text: str
    prompt_ids: list[int]
    top5_ids: list[int]
    top5_logits: list[float]
    logits_first8: list[float]
    greedy_ids: list[int]
    greedy_margins: list[float]
    greedy_text: str


@dataclass(frozen=True, slots=True)
class GoldenNll:
    """Mean negative log-likelihood (nats) of the first n_tokens tokens of the text, one pass, no BOS.

    ids is None where only their hash is kept: see matches().
    """

    n_tokens: int
    mean_nll: float
    first16_logprobs: list[float]
    ids: list[int] | None
    ids_sha256: str | None

    def matches(self, ids: list[int]) -> bool:
        """Whether these are the ids the value was made with."""
        digest = hashlib.sha256(np.array(ids, dtype="<i4").tobytes()).hexdigest()
        return self.ids_sha256 is None or digest == self.ids_sha256


@dataclass(frozen=True, slots=True)
class Golden:
    """The golden values of one real model by one program; nll is keyed by the number of tokens."""

    prompts: list[GoldenPrompt]
    nll: dict[int, GoldenNll]


def tiny_dir(family: str) -> Path:
    """The directory of a tiny model as on the hub: config.json, BF16 safetensors (qwen3-moe: two shards)."""
    return DATA / "tiny" / family


def tiny_cases(family: str) -> list[TinyCase]:
    """The four id sequences (1, 7, 64 and 700 tokens) of a tiny model with their logits and 16 greedy ids."""
    cases = json.loads((tiny_dir(family) / "golden.json").read_text())["cases"]
    with np.load(tiny_dir(family) / "golden.npz") as arrays:
        return [TinyCase(case["ids"], arrays[case["logits_key"]], case["greedy16"]) for case in cases]


def golden(name: str) -> Golden:
    """The golden values named SMOLLM2_FLOAT32, SMOLLM2_LLAMACPP or QWEN25_CODER_FLOAT32."""
    stored = json.loads((DATA / "golden" / f"{name}.json").read_text(encoding="utf-8"))
    return Golden(
        prompts=[_prompt(prompt) for prompt in stored["prompts"]],
        nll={int(n): _nll(value) for n, value in stored["nll"].items()},
    )


def text_excerpt(n_tokens: int) -> str:
    """The text of the NLL values: tokenize it without BOS and keep the first n_tokens (at most 4096) ids."""
    path = DATA / "golden" / "room_with_a_view_excerpt.txt"
    return path.read_text(encoding="utf-8")[: n_tokens * 12]


def _prompt(stored: dict[str, Any]) -> GoldenPrompt:
    return GoldenPrompt(
        text=stored["text"],
        prompt_ids=stored["prompt_ids"],
        top5_ids=stored["top5"]["ids"],
        top5_logits=stored["top5"]["logits"],
        logits_first8=stored["logits_first8"],
        greedy_ids=stored["greedy_ids"],
        greedy_margins=stored["greedy_margins"],
        greedy_text=stored["greedy_text"],
    )


def _nll(stored: dict[str, Any]) -> GoldenNll:
    return GoldenNll(
        n_tokens=stored["n_tokens"],
        mean_nll=stored["mean_nll"],
        first16_logprobs=stored["first16_logprobs"],
        ids=stored.get("ids"),
        ids_sha256=stored.get("ids_sha256"),
    )
