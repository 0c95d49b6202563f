"""The numpy oracle against logits that transformers computed, so that it may judge the model's kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden_values import TINY_FAMILIES, tiny_cases
from oracle import forward
from tiny_gguf import interleave_rows, llama3_factors, tiny_config, tiny_weights, write_tiny_gguf

from yakvrt.config import config_from_json


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_logits_equal_transformers(family: str) -> None:
    weights, config = tiny_weights(family), config_from_json(tiny_config(family))
    for case in tiny_cases(family):
        logits = forward(config, weights, case.ids, np.float32)
        np.testing.assert_allclose(logits[-len(case.logits) :], case.logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_greedy_ids_equal_transformers(family: str) -> None:
    weights, config = tiny_weights(family), config_from_json(tiny_config(family))
    case = tiny_cases(family)[1]
    logits = forward(config, weights, case.ids + case.greedy_ids[:-1])
    assert logits[len(case.ids) - 1 :].argmax(axis=-1).tolist() == case.greedy_ids


def test_stored_rope_factors_equal_the_configs_scaling() -> None:
    config = tiny_config("llama3")
    weights, plain = (
        tiny_weights("llama3"),
        config_from_json({**config, "rope_parameters": {"rope_theta": 5e5}}),
    )
    ids = tiny_cases("llama3")[2].ids
    from_tensor = forward(plain, {**weights, "rope_freqs.weight": llama3_factors(config)}, ids)
    np.testing.assert_allclose(
        from_tensor, forward(config_from_json(config), weights, ids), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_gguf_holds_the_same_weights(family: str, tmp_path: Path) -> None:
    from gguf import GGUFReader

    stored = {t.name: t.data for t in GGUFReader(write_tiny_gguf(family, tmp_path / "model.gguf")).tensors}
    config = tiny_config(family)
    interleaved = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, array in tiny_weights(family).items():
        n_heads = interleaved.get(name.split(".")[-2]) if config["model_type"] == "llama" else None
        expected = interleave_rows(array, n_heads) if n_heads else array
        np.testing.assert_array_equal(stored.pop(name), expected)
    assert set(stored) <= {"rope_freqs.weight"}
