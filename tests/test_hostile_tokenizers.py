"""Tokenizers that do not fit their model's weights, and chat templates that run wild."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_files import tiny_copy
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

import yakvrt
from yakvrt import tokenizer as yakvrt_tokenizer
from yakvrt.model_source import open_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_copy("qwen3", tmp_path / "model")


def write_tokenizer(path: Path, n_added: int) -> None:
    """A byte-level tokenizer of 256 bytes and some added tokens <0>, <1> ..."""
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([f"<{i}>" for i in range(n_added)])
    tokenizer.save(str(path))


def test_more_tokens_than_the_embedding_has_rows(model: Path) -> None:
    write_tokenizer(model / "tokenizer.json", 1000)
    with yakvrt.load(str(model), ctx_size=64, threads=1, offline=True) as engine:
        assert engine.tokenizer.vocab_size > engine.config.vocab_size
        with pytest.raises(
            ValueError, match=r"token id 1255 is outside the vocabulary; ids run from 0 to 511"
        ):
            list(engine.generate("a <999>", raw=True, max_tokens=2))
        with engine.session() as session:
            session.prefill([1, 2])
            for token in (512, -1, 1 << 31):
                with pytest.raises(ValueError, match="outside the vocabulary"):
                    session.decode(token)
            assert len(session.ids) == 2
        with pytest.raises(ValueError, match="the model's last one is 511"):
            list(engine.generate([1, 2], max_tokens=2, logit_bias={700: 1.0}))


def test_fewer_tokens_than_the_embedding_has_rows(model: Path) -> None:
    write_tokenizer(model / "tokenizer.json", 0)
    with yakvrt.load(str(model), ctx_size=64, threads=1, offline=True) as engine:
        silent = engine.generate("a", raw=True, max_tokens=4, temperature=0, logit_bias={400: 1e9})
        assert list(silent) == []
        assert silent.ids == [400] * 4


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(10**9) %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include 'self' %}",
        "{% extends 'self' %}",
        "{{ 'x' * 10**12 }}",
        "{% for %}",
        "{{" * 10_000,
        "{{ messages[0].content.rjust(10**12) }}",
    ],
)
def test_templates_that_run_wild(model: Path, template: str) -> None:
    write_tokenizer(model / "tokenizer.json", 0)
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with open_model(str(model), offline=True) as source:
        assert isinstance(source.tokenizer, yakvrt_tokenizer.Tokenizer)
        with pytest.raises(ValueError, match="the chat template cannot render these messages") as caught:
            source.tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert len(str(caught.value)) < 500
