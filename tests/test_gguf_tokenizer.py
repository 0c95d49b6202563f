from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from gguf_tools.reader import GGUFFile
from yakvrt.tokenizer import tokenizer_from_gguf

GOLDEN = json.loads(
    (Path(__file__).parent / "data" / "tokenizer" / "golden.json").read_text(encoding="utf-8")
)
HARD = [case["text"] for case in GOLDEN["qwen2_5"]["strings"]]
TRAINING = [
    *HARD,
    "I've said they'll DON'T we'D 1234567 12,345.678 ½ ² Ⅷ",
    "def f(x):\n    return x  # café cafe\u0301 naïve\r\n\r\n\tende   \n",
    "the cat sat on the mat, and the other cats sat there too!!! ... (what?) http://a.b/c?d=e&f",
] * 3

# The pre-tokenizers as the original models' tokenizer.json state them.
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_by(regex: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def original(pre: str) -> Tokenizer:
    """Train a small byte-level BPE with the pipeline of the model family that `pre` names."""
    tokenizer = Tokenizer(BPE(ignore_merges=pre == "llama-bpe"))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = {
        "llama-bpe": split_by(LLAMA3_REGEX),
        "qwen2": split_by(QWEN2_REGEX),
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words]),
        "gpt-2": words,
    }[pre]
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = BpeTrainer(
        vocab_size=900,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


def metadata_of(tokenizer: Tokenizer, pre: str, **extra: Any) -> dict[str, Any]:
    """Describe a trained tokenizer as a GGUF file does."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token.startswith("<|im_") else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "smollm", "gpt-2"])
def test_byte_level_ids_equal_the_original_tokenizer(pre: str) -> None:
    expected = original(pre)
    actual = tokenizer_from_gguf(metadata_of(expected, pre))
    for text in [*TRAINING, "<|im_start|>user\nHi<|im_end|>", "", " ", "cafe\u0301"]:
        ids = expected.encode(text).ids
        assert actual.encode(text, add_special=False) == ids
        assert actual.decode(ids, skip_special=False) == expected.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("name", "family"),
    [("llama3", "llama-bpe"), ("llama-v3", "llama-bpe"), ("deepseek-r1-qwen", "qwen2"), ("default", "gpt-2")],
)
def test_names_for_the_same_rule(name: str, family: str) -> None:
    trained = original(family)
    renamed = tokenizer_from_gguf(metadata_of(trained, name))
    assert [renamed.encode(text, add_special=False) for text in HARD] == [trained.encode(t).ids for t in HARD]


def test_bos_is_added_when_the_file_or_its_kind_says_so() -> None:
    llama, qwen = original("llama-bpe"), original("qwen2")
    assert tokenizer_from_gguf(metadata_of(llama, "llama-bpe")).encode("a")[0] == 0
    assert tokenizer_from_gguf(metadata_of(llama, "llama-bpe", add_bos_token=False)).encode("a")[0] != 0
    both = tokenizer_from_gguf(metadata_of(qwen, "qwen2", add_bos_token=True, add_eos_token=True))
    ids = both.encode("a")
    assert (ids[0], ids[-1], len(ids)) == (0, 1, 3)
    assert both.encode("a", add_special=False) == ids[1:-1]


def test_what_ends_generation() -> None:
    trained = original("gpt-2")
    metadata = metadata_of(trained, "gpt-2", eos_token_id=300, eot_token_id=301, eom_token_id=302)
    assert tokenizer_from_gguf(metadata).eos_ids == {300, 301, 302, 1}  # 1 is <|im_end|>
    metadata["tokenizer.ggml.token_type"][1] = 1  # as ordinary text it ends nothing
    assert tokenizer_from_gguf(metadata).eos_ids == {300, 301, 302}


def test_chat_templates_of_the_file() -> None:
    metadata = metadata_of(original("gpt-2"), "gpt-2")
    assert not tokenizer_from_gguf(metadata).has_chat_template
    metadata["tokenizer.chat_template"] = "{{ bos_token }}{{ eos_token }}"
    metadata["tokenizer.chat_template.tool_use"] = "tools"
    metadata["tokenizer.chat_templates"] = ["tool_use"]
    tokenizer = tokenizer_from_gguf(metadata)
    hello = [{"role": "user", "content": "Hi"}]
    assert tokenizer.render_chat(hello) == "<|im_start|><|im_end|>"
    assert tokenizer.render_chat(hello, tools=[{"name": "f"}]) == "tools"


# SentencePiece


SPM_PIECES = [
    *("▁", "a", "b", "c", "é", "t", "h", "e", "x", "1", "2", "."),
    *("ab", "bc", "abc", "▁a", "▁ab", "▁▁", "▁▁▁▁", "aa", "aaa", "aaaa", "..", "...", "ca", "cab", "éa"),
    *("▁the", "th", "he", "the", "12", "▁1"),
]


def spm_metadata(scores: list[float] | None = None, **extra: Any) -> dict[str, Any]:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *SPM_PIECES]
    values = scores if scores is not None else [-float(index) for index in range(len(SPM_PIECES))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + values,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(SPM_PIECES)],
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }


def greedy_sentencepiece(metadata: dict[str, Any], text: str) -> list[int]:
    """SentencePiece BPE as published: join the best-scored neighbours, leftmost first; bytes for the rest."""
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = {token: index for index, token in enumerate(tokens)}
    scores = metadata["tokenizer.ggml.scores"]
    symbols = list(("▁" + text if text else "").replace(" ", "▁"))
    while True:
        joined = [(a + b, at) for at, (a, b) in enumerate(pairwise(symbols)) if a + b in ids]
        if not joined:
            break
        piece, at = max(joined, key=lambda found: (scores[ids[found[0]]], -found[1]))
        symbols[at : at + 2] = [piece]
    known = ([ids[s]] if s in ids else [ids[f"<0x{byte:02X}>"] for byte in s.encode()] for s in symbols)
    return [index for group in known for index in group]


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="abc .éthex12\n漢", max_size=30), seed=st.randoms(use_true_random=False))
def test_sentencepiece_ids_equal_the_greedy_algorithm(text: str, seed: Any) -> None:
    scores = [-float(index) for index in range(len(SPM_PIECES))]
    seed.shuffle(scores)
    metadata = spm_metadata(scores)
    tokenizer = tokenizer_from_gguf(metadata)
    ids = tokenizer.encode(text, add_special=False)
    assert ids == greedy_sentencepiece(metadata, text)
    assert tokenizer.decode(ids) == text


def test_sentencepiece_space_and_special_rules() -> None:
    tokenizer = tokenizer_from_gguf(spm_metadata())
    names = spm_metadata()["tokenizer.ggml.tokens"]

    def pieces(text: str, **options: bool) -> list[str]:
        return [names[index] for index in tokenizer.encode(text, **options)]

    assert pieces("a") == ["<s>", "▁a"]
    assert pieces("") == ["<s>"]
    # Text after a special token begins a word again, as in llama.cpp.
    assert pieces("a<s>b") == ["<s>", "▁a", "<s>", "▁", "b"]
    assert "</s>" not in pieces("a</s>", parse_special=False)
    assert tokenizer.decode(tokenizer.encode("a</s>", parse_special=False)) == "a</s>"
    assert tokenizer.eos_ids == {2}
    without = tokenizer_from_gguf(spm_metadata(add_space_prefix=False, add_bos_token=False))
    assert [names[index] for index in without.encode("a")] == ["a"]
    assert without.decode(without.encode(" a")) == " a"


def test_a_continuation_keeps_its_leading_space() -> None:
    tokenizer = tokenizer_from_gguf(spm_metadata())
    (token_id,) = tokenizer.encode("a", add_special=False)
    assert tokenizer.stream().push(token_id) == "a"
    assert tokenizer.stream(continues=True).push(token_id) == " a"


# Hostile vocabularies


def changed(**changes: Any) -> dict[str, Any]:
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": ["a", "b", "ab"],
        "token_type": [1, 1, 1],
        "merges": ["a b"],
    }
    metadata |= changes
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "None is neither gpt2"),
        (changed(model="bert"), "'bert' is neither gpt2"),
        (changed(pre="nobody-knows"), "pre-tokenizer 'nobody-knows' is not one of"),
        (changed(pre=["x"]), "is not one of"),
        (changed(tokens=None), "tokens is missing"),
        (changed(tokens=[]), "tokens is empty"),
        (changed(tokens="abc"), "tokens is not a list"),
        (changed(tokens=["a", 7, "ab"]), "not text"),
        (changed(tokens=["a", "b", "a"]), "1 tokens occur twice"),
        (changed(tokens=range(1 << 60)), "more than"),
        (changed(token_type=[1]), "1 token types for 3 tokens"),
        (changed(merges=None), "merges is missing"),
        (changed(merges=["ab"]), "merge is not two tokens"),
        (changed(merges=[3]), "merge is not two tokens"),
        (changed(merges=["a z"]), "disagree"),
        (changed(merges=["b a"]), "disagree"),
        (changed(eos_token_id=3), "eos_token_id is 3, outside"),
        (changed(bos_token_id=-1), "bos_token_id is -1, outside"),
        (changed(eot_token_id="x"), "eot_token_id is 'x', outside"),
        (changed(model="llama"), "scores is missing"),
        (changed(model="llama", scores=[1.0]), "1 scores for 3 tokens"),
        (changed(model="llama", scores=[1.0, float("nan"), 0.0]), "not a finite number"),
        (changed(model="llama", scores=[1.0, None, 0.0]), "not a finite number"),
        (changed(model="llama", tokens=["a", "b", "a" * 9999], scores=[0.0] * 3), "9999 characters long"),
    ],
)
def test_bad_vocabularies_are_refused_in_one_sentence(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        tokenizer_from_gguf(metadata)
    assert "\n" not in str(caught.value)


def test_empty_tokens_are_tolerated() -> None:
    tokenizer = tokenizer_from_gguf(changed(tokens=["a", "b", "ab", "", ""], token_type=[1] * 5))
    assert (tokenizer.encode("ab"), tokenizer.vocab_size) == ([2], 5)


# Real vocabularies


def test_smollm2_golden_ids(smollm2_path: Path) -> None:
    with GGUFFile(smollm2_path) as file:
        tokenizer = tokenizer_from_gguf(file.metadata)
    for case in GOLDEN["smollm2"]["strings"]:
        assert tokenizer.encode(case["text"], add_special=False) == case["ids"]
    for case in GOLDEN["smollm2"]["llamacpp"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["text"]
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (49152, 1, {0, 2, 4})
    chat = tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    assert tokenizer.decode(chat, skip_special=False).endswith(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat[0] == 1
    assert chat.count(1) == 3


def test_qwen_coder_golden_ids(qwen_coder_path: Path) -> None:
    with GGUFFile(qwen_coder_path) as file:
        tokenizer = tokenizer_from_gguf(file.metadata)
    for case in GOLDEN["qwen2_5"]["strings"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
    for case in GOLDEN["qwen2_5"]["chats"]:
        options = {"add_generation_prompt": case["add_generation_prompt"], **case["kwargs"]}
        assert tokenizer.render_chat(case["messages"], **options) == case["rendered"]
        assert tokenizer.encode_chat(case["messages"], **options) == case["ids"]
    assert tokenizer.eos_ids == {151643, 151645, 151662, 151663, 151664}
    assert tokenizer.vocab_size == 151936
