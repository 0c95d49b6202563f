"""The keys that name a model and its origin: gguf-py's, for the same directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter
from gguf.metadata import Metadata
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_tools.convert_model_card import card_keys, sampling_keys
from gguf_tools.convert_model_name import model_name, title
from gguf_tools.front_matter import read_card
from gguf_tools.meta_value import MetaValue
from gguf_tools.writer import GGUFWriter as OurWriter

NAMES = [
    "Mistral-7B-Instruct-v0.2", "TheBloke/Mistral-7B-Instruct-v0.2", "SmolLM2-135M-Instruct",
    "Llama-3.2-1B", "Qwen2.5-Coder-1.5B-Instruct", "meta-llama/Llama-2-7b-hf",
    "Qwen3-30B-A3B-Instruct-2507", "Mixtral-8x7B-v0.1", "gpt2-xl", "phi-3-mini-128k-instruct", "bloom-7b1",
    "stablelm-2-1_6b", "Hermes-2-Pro-Llama-3-8B-DPO", "DeepSeek-R1-Distill-Qwen-1.5B", "llama3",
    "qwen3-moe", "Foo-v2", "v1-2-3", "./foo", "a-xl-7B", "-a--b-", "My-Model-Q4_K-7B", "Qwen1.5-MoE-A2.7B",
]  # fmt: skip

CARD = """---
license: other
license_name: qwen-research
license_link: "https://example.org/LICENSE"
language:
- en
- no
- 'zh'
pipeline_tag: text-generation
base_model: Qwen/Qwen2.5-Coder-1.5B  # a comment
tags: [code, "chat"]
library_name: transformers
author: Someone
datasets:
  - HuggingFaceTB/smol-smoltalk
  - https://example.org/data
widget:
- text: Hello
  example_title: Greeting
model-index:
- name: x
  results: []
---
# A model

license: not this one
"""

NO_END = "---\nlicense: mit\n"


def written(path: Path, keys: dict[str, MetaValue]) -> dict[str, object]:
    with OurWriter(path, keys, []):
        pass
    return contents(path)


def contents(path: Path) -> dict[str, object]:
    fields = GGUFReader(path).fields.items()
    return {key: field.contents() for key, field in fields if not key.startswith("GGUF.")}


def reference(
    directory: Path, path: Path, n_weights: int, given_name: str | None = None
) -> dict[str, object]:
    metadata = Metadata.load(None, directory, given_name, n_weights)
    metadata.size_label = metadata.size_label or "9K"
    writer = GGUFWriter(path, "llama")
    metadata.set_gguf_meta_model(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = contents(path)
    del found["general.architecture"]
    return found


def directory_of(root: Path, name: str, card: str | None, config: dict[str, object]) -> Path:
    directory = root / name
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    if card is not None:
        (directory / "README.md").write_text(card, encoding="utf-8")
    return directory


@pytest.mark.parametrize("n_weights", [0, 300, 135_000_000, 7_000_000_000])
@pytest.mark.parametrize("name", NAMES)
def test_names_come_apart_as_in_gguf_py(name: str, n_weights: int) -> None:
    ours = model_name(name, n_weights)
    parts = (ours.name, ours.organization, ours.basename, ours.finetune, ours.version, ours.size_label)
    assert parts == Metadata.get_model_id_components(name, n_weights)
    assert title(name) == Metadata.id_to_title(name)


@given(
    st.from_regex(
        r"([A-Za-z]{1,3}/)?[A-Za-z]([-.]?([a-z]{1,4}|[v]?[0-9]{1,2}|[0-9]x?[0-9][BMK]|Instruct)){0,5}",
        fullmatch=True,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_name(name: str) -> None:
    ours = model_name(name.strip(), 10**7)
    parts = (ours.name, ours.organization, ours.basename, ours.finetune, ours.version, ours.size_label)
    assert parts == Metadata.get_model_id_components(name.strip(), 10**7)


@pytest.mark.parametrize(
    "card", [None, "", "no head\n", "---\nlicense: mit\n", CARD, CARD.replace("\n", "\r\n")]
)
@pytest.mark.parametrize("config", [{}, {"_name_or_path": "Qwen/Qwen2.5-7B"}, {"_name_or_path": "/a/b/c"}])
def test_same_keys_as_gguf_py(tmp_path: Path, card: str | None, config: dict[str, object]) -> None:
    directory = directory_of(tmp_path, "SmolLM2-135M-Instruct", card, config)
    ours = written(tmp_path / "ours.gguf", card_keys(directory, None, 134_515_008, "9K"))
    if card == NO_END:
        assert "general.license" not in ours  # a head without an end is none
    else:
        assert ours == reference(directory, tmp_path / "theirs.gguf", 134_515_008)


def test_a_given_name_stays_as_it_is(tmp_path: Path) -> None:
    directory = directory_of(tmp_path, "x", None, {})
    ours = written(tmp_path / "ours.gguf", card_keys(directory, "my own-name", 0, "9K"))
    assert ours == reference(directory, tmp_path / "theirs.gguf", 0, "my own-name")


def test_sampling_keys_are_gguf_pys(tmp_path: Path) -> None:
    directory = directory_of(tmp_path, "x", None, {})
    generation = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "do_sample": True}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    keys = {**sampling_keys(generation), **card_keys(directory, None, 0, "9K")}
    assert written(tmp_path / "ours.gguf", keys) == reference(directory, tmp_path / "theirs.gguf", 0)
    assert sampling_keys({"temperature": "warm", "top_k": 1.5, "top_p": float("inf"), "min_p": True}) == {}


@pytest.mark.parametrize(
    "head",
    ["license: |\n  long\n  text", "license: {a: b}", "license:\n  name: x", "license: &a mit", "license: ~",
     "license: [a, [b]]", "license:\n- a\n- b: c", "license: '", "  license: mit", "? license\n: mit"],
)  # fmt: skip
def test_what_is_no_text_is_passed_over(tmp_path: Path, head: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{head}\nauthor: me\n---\n")
    assert read_card(tmp_path / "README.md") == {"author": "me"}


def test_a_card_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert read_card(tmp_path / "README.md") == {}
    (tmp_path / "folder").mkdir()
    assert read_card(tmp_path / "folder") == {}


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_head_is_read(tmp_path_factory: pytest.TempPathFactory, head: str) -> None:
    path = tmp_path_factory.mktemp("card") / "README.md"
    path.write_text(f"---\n{head}\n---\n", encoding="utf-8", errors="ignore")
    for value in read_card(path).values():
        assert value
        assert all(isinstance(text, str) and text for text in ([value] if isinstance(value, str) else value))
