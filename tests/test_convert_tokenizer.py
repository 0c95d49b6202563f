"""tokenizer.json to GGUF keys and back: the same ids from all three."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from golden_values import text_excerpt, tiny_dir
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from gguf_tools.convert import main
from gguf_tools.convert_pretokenizer import PRE_TOKENIZERS, pre_tokenizer_json, recognised
from gguf_tools.reader import GGUFFile
from yakvrt.tokenizer import tokenizer_from_files, tokenizer_from_gguf

VOCAB_SIZE = 512
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
TEXTS = [
    *("", " ", "Hello world", "  two  spaces", "a\n\n b", "I'm 12345 and ½ o'clock", "tab\there"),
    *(
        "naïve café",
        "cafe\u0301",
        "日本語テスト",
        "🧣 scarf",
        "<|im_start|>user<|im_end|> x",
        "<s>x</s>",
        "foo<tool>bar",
    ),
]


def pre_tokenizer_of(spec: dict[str, Any]) -> pre_tokenizers.PreTokenizer:
    holder = Tokenizer(models.BPE())
    state = json.loads(holder.to_str()) | {"pre_tokenizer": spec}
    return Tokenizer.from_str(json.dumps(state)).pre_tokenizer


def byte_level(name: str) -> Tokenizer:
    """A small tokenizer trained on the text of the golden values, cutting words as the name says."""
    rule = PRE_TOKENIZERS[name]
    tokenizer = Tokenizer(models.BPE(ignore_merges=rule.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer_of(pre_tokenizer_json(rule))
    if rule.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text_excerpt(1000), *TEXTS], trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def sentencepiece() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(text_excerpt(1000).split(), trainer)
    state = json.loads(tokenizer.to_str())
    # Bytes are pieces of the vocabulary, not tokens that text may name.
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < 3]
    return Tokenizer.from_str(json.dumps(state))


def write_model(directory: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> Path:
    shutil.copytree(tiny_dir("qwen2"), directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def assert_same_ids(directory: Path, work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Converts there and back, compares all three; returns the GGUF keys and the new tokenizer_config."""
    middle, back = work / "m.gguf", work / "back"
    assert main([str(directory), "--outfile", str(middle), "--vocab-only"]) == 0
    assert main([str(middle), "--outfile", str(back), "--vocab-only"]) == 0
    first = tokenizer_from_files(directory / "tokenizer.json", directory / "tokenizer_config.json")
    last = tokenizer_from_files(back / "tokenizer.json", back / "tokenizer_config.json")
    with GGUFFile(middle) as file:
        keys = dict(file.metadata)
    between = tokenizer_from_gguf(keys)
    for text in [*TEXTS, text_excerpt(300)[:3000]]:
        ids = first.encode(text)
        assert between.encode(text) == ids, text
        assert last.encode(text) == ids, text
        assert last.decode(ids) == first.decode(ids) == between.decode(ids), text
    assert (between.bos_id, last.bos_id) == (first.bos_id, first.bos_id)
    return keys, json.loads((back / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_there_and_back(name: str, tmp_path: Path) -> None:
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": TEMPLATE,
              "add_bos_token": name == "llama-bpe"}  # fmt: skip
    tokenizer = byte_level(name)
    if name == "llama-bpe":
        from tokenizers.processors import TemplateProcessing

        bos = tokenizer.token_to_id("<|im_start|>")
        tokenizer.post_processor = TemplateProcessing("<|im_start|> $A", None, [("<|im_start|>", bos)])
    keys, back = assert_same_ids(write_model(tmp_path / "in", tokenizer, config), tmp_path)
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", name)
    assert keys["tokenizer.chat_template"] == back["chat_template"] == TEMPLATE
    assert len(keys["tokenizer.ggml.tokens"]) == VOCAB_SIZE
    assert keys["tokenizer.ggml.tokens"][-1] == "[PAD511]"
    assert keys["tokenizer.ggml.token_type"][-1] == 5
    special = keys["tokenizer.ggml.eos_token_id"]
    assert keys["tokenizer.ggml.token_type"][special : special + 2] == [3, 4]
    assert keys["tokenizer.ggml.add_bos_token"] == back["add_bos_token"] == (name == "llama-bpe")
    assert back["eos_token"] == "<|im_end|>"


def test_sentencepiece_there_and_back(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": False}
    keys, back = assert_same_ids(write_model(tmp_path / "in", sentencepiece(), config), tmp_path)
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert keys["tokenizer.ggml.add_space_prefix"] is True
    assert (keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.unknown_token_id"]) == (1, 0)
    assert back["unk_token"] == "<unk>"
    assert "chat_template" not in back


def test_every_way_of_cutting_is_recognised() -> None:
    for name, rule in PRE_TOKENIZERS.items():
        assert recognised({"pre_tokenizer": pre_tokenizer_json(rule)}) == name
    with pytest.raises(ValueError, match="--pre-tokenizer"):
        recognised({"pre_tokenizer": {"type": "Whitespace"}})


def test_named_templates_and_turn_ends(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "x"}]
    config = {"bos_token": None, "eos_token": "<|im_start|>", "chat_template": templates}
    directory = write_model(tmp_path / "in", byte_level("qwen2"), config)
    ids = [
        Tokenizer.from_file(str(directory / "tokenizer.json")).token_to_id(t)
        for t in ("<|im_start|>", "<|im_end|>")
    ]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    keys, back = assert_same_ids_of_ends(directory, tmp_path)
    assert keys["tokenizer.ggml.eot_token_id"] == ids[1]
    assert keys["tokenizer.chat_template.tool_use"] == "x"
    assert keys["tokenizer.chat_templates"] == ["tool_use"]
    assert {t["name"]: t["template"] for t in back["chat_template"]} == {"default": TEMPLATE, "tool_use": "x"}
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text())["eos_token_id"] == ids


def assert_same_ids_of_ends(directory: Path, work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    middle, back = work / "m.gguf", work / "back"
    assert main([str(directory), "--outfile", str(middle), "--vocab-only"]) == 0
    assert main([str(middle), "--outfile", str(back), "--vocab-only"]) == 0
    with GGUFFile(middle) as file:
        return dict(file.metadata), json.loads((back / "tokenizer_config.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "Unigram"}, "holds no BPE model"),
        ({"merges": None}, "no list of merges"),
        ({"merges": ["abc"]}, "each joins two tokens"),
        ({"vocab": {"a": 600}}, "vocab_size is 512"),
        ({"vocab": {"a": "x"}}, "the id x"),
    ],
)
def test_damaged_tokenizers(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_model(tmp_path / "in", byte_level("qwen2"), {})
    path = directory / "tokenizer.json"
    state = json.loads(path.read_text())
    state["model"] |= change
    path.write_text(json.dumps(state))
    assert main([str(directory), "--outfile", str(tmp_path / "m.gguf"), "--vocab-only"]) == 1
    assert message in capsys.readouterr().err
