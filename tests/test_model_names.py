from __future__ import annotations

import json

import pytest

from yakvrt import models
from yakvrt.hub_repo import HubError
from yakvrt.model_files import choose_weights
from yakvrt.model_names import MODEL_NAMES, find_name, unknown_name


@pytest.mark.parametrize(
    ("text", "repo"),
    [
        ("llama3.2-3b", "meta-llama/Llama-3.2-3B-Instruct"),
        ("llama3.2:3b", "meta-llama/Llama-3.2-3B-Instruct"),
        ("Llama3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
        ("QWEN3:30b-a3b-instruct-2507", "Qwen/Qwen3-30B-A3B-Instruct-2507"),
        (" mistral-7b-v0.3 ", "mistralai/Mistral-7B-Instruct-v0.3"),
    ],
)
def test_names_in_any_case_and_with_a_colon(text: str, repo: str) -> None:
    entry = find_name(text)
    assert entry is not None
    assert entry.repo == repo


def test_every_name_of_the_documentation_is_known() -> None:
    names = """llama3.2-1b llama3.2-3b llama3.1-8b qwen2.5-0.5b qwen2.5-1.5b qwen2.5-3b qwen2.5-7b
        qwen2.5-coder-1.5b
        qwen3-0.6b qwen3-1.7b qwen3-4b qwen3-8b qwen3-4b-instruct-2507 qwen3-4b-thinking-2507 qwen3-30b-a3b
        qwen3-30b-a3b-instruct-2507 qwen3-30b-a3b-thinking-2507 mistral-7b-v0.3 smollm2-135m smollm2-360m
        smollm2-1.7b"""
    assert set(names.split()) == set(MODEL_NAMES)


def test_packaged_files_are_the_sum_of_their_parts() -> None:
    for entry in MODEL_NAMES.values():
        if entry.packaged:
            assert sum(part.size for part in entry.packaged.parts) == entry.packaged.size == entry.size


def test_unknown_name_says_the_nearest_and_how_to_list() -> None:
    message = unknown_name("lama3.2-3b")
    assert "nearest: llama3.2-3b" in message
    assert "yakvrt models" in message
    assert "nearest" not in unknown_name("zzzzzzzzzzzz")
    assert len(unknown_name("x" * 10_000)) < 500


GGUF_REPO = [
    "README.md",
    "m-q2_k.gguf",
    "m-q4_k_m.gguf",
    "m-UD-Q4_K_M.gguf",
    "m.Q4_1.gguf",
    "Q8_0/m-Q8_0-00001-of-00002.gguf",
    "Q8_0/m-Q8_0-00002-of-00002.gguf",
    "mmproj-m-f16.gguf",
    "m-IQ4_XS.gguf",
]


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        (None, ("m-q4_k_m.gguf",)),
        ("q4_k_m", ("m-q4_k_m.gguf",)),
        ("Q4_1", ("m.Q4_1.gguf",)),
        ("Q8_0", ("Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf")),
        ("m-q2_k.gguf", ("m-q2_k.gguf",)),
    ],
)
def test_quant_chooses_the_gguf_file(quant: str | None, expected: tuple[str, ...]) -> None:
    assert choose_weights(GGUF_REPO, quant, where="repo", locate=_never) == expected


def test_unknown_quant_lists_what_there_is() -> None:
    with pytest.raises(HubError, match=r"no GGUF file of quant Q6_K: choose one of .*m-q4_k_m"):
        choose_weights(GGUF_REPO, "Q6_K", where="repo", locate=_never)


def test_safetensors_are_preferred_and_mistrals_second_copy_is_left_out() -> None:
    names = ["consolidated.safetensors", "model.safetensors", "pytorch_model.bin", "m-Q4_K_M.gguf"]
    assert choose_weights(names, None, where="repo", locate=_never) == ("model.safetensors",)
    assert choose_weights(names, "Q4_K_M", where="repo", locate=_never) == ("m-Q4_K_M.gguf",)


def test_pickled_weights_are_refused() -> None:
    with pytest.raises(HubError, match="pickled"):
        choose_weights(["config.json", "pytorch_model.bin"], None, where="repo", locate=_never)


def _never(name: str) -> object:
    raise AssertionError(f"no index to read, but {name} was asked for")


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_models_lists_every_name(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(option) == 0
    out, err = capsys.readouterr()
    assert err == ""
    if option:
        assert [row["name"] for row in json.loads(out)] == list(MODEL_NAMES)
    else:
        assert [line.split("\t")[0] for line in out.splitlines()] == list(MODEL_NAMES)
        assert "meta-llama/Llama-3.2-3B-Instruct (gated)\t6.4 GB" in out
