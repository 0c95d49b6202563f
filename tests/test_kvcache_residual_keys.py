"""YAKV with keys as 3 bits of what their selector codes leave: nearer to full attention than 4 bits, in fewer
bytes, whatever becomes of the slot.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from kv_slots import KvSlots
from test_kvcache_contract import activations, engine, exact, relative, scripted

from yakvrt.kvcache import open_method

FAMILY = "qwen3"
EVERYTHING = {"sparse_budget": "4096", "v_bits": "16"}


def attention(
    args: Mapping[str, str], heads: tuple[int, int, int], *, cut: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """What a slot of 300 and more tokens gives, and what full attention gives; `cut`: after tokens that are
    forgotten again, so that rows return to the window and are encoded once more.
    """
    n, n_new, n_forgotten = 300, 80, 150
    with KvSlots("yakv", args, heads=heads) as slots:
        q, k, v = activations(np.random.default_rng(heads[2]), n + n_forgotten, slots)
        q, slot = 10 * q, slots.kv.open(512)
        slots.prefill(slot, 0, q[:n], k[:n], v[:n])
        if cut:
            slots.prefill(slot, n, q[n:], k[n:], v[n:])
            assert slots.kv.truncate(slot, n + n_forgotten, n) == n
        steps = range(n, n + n_new)
        found = [slots.decode(slot, i, q[i], k[i], v[i]).reshape(-1) for i in steps]
        return np.array(found), np.array([exact(q[i], k[: i + 1], v[: i + 1]).reshape(-1) for i in steps])


@pytest.mark.parametrize(
    ("selector", "heads", "most"),
    [
        ("2bit", (8, 2, 32), 0.7),
        ("2bit", (4, 1, 80), 0.72),
        ("1.5bit", (2, 2, 128), 1.1),
        ("1bit", (3, 1, 64), 1.3),
    ],
)
def test_keys_are_as_near_as_their_bits_tell(selector: str, heads: tuple[int, int, int], most: float) -> None:
    """By the squared errors of Gaussian rows: 0.105 * 0.0305 of 2 and 3 bits, 0.27 of 1 bit, 0.008 of 4 bits.
    Keys at random have no mean that neighbours share. The rounding of scores (codeword_tables.py) adds to it.
    """
    args = {**EVERYTHING, "selector": selector}
    errors = [relative(*attention({**args, "k_bits": bits}, heads)).mean() for bits in ("r3", "4")]
    assert errors[0] < most * errors[1]


def test_rows_that_return_to_the_window_are_as_near() -> None:
    """A key that is decoded and encoded again loses twice, and no more than that."""
    heads, args = (8, 2, 32), {**EVERYTHING, "k_bits": "r3"}
    once, twice = (relative(*attention(args, heads, cut=cut)).mean() for cut in (False, True))
    assert once < twice < 1.5 * once


def test_a_model_that_reads_everything_is_near_full_attention() -> None:
    """Prompts, steps, a cut and a further prompt, which attends to decoded rows."""
    with engine(FAMILY, "full", {}) as loaded:
        full = scripted(loaded, FAMILY)
    errors = []
    for bits in ("16", "r3", "4"):
        with engine(FAMILY, "yakv", {**EVERYTHING, "k_bits": bits}) as loaded:
            errors.append(relative(scripted(loaded, FAMILY), full).mean())
    assert errors[0] < errors[1] < 0.7 * errors[2]


def test_bytes_are_those_of_three_bits() -> None:
    with KvSlots("full", {}, heads=(2, 1, 128)) as slots:
        config = slots.config
    held = {}
    for bits in ("r3", "3", "4"):
        method, parameters = open_method("yakv", {"k_bits": bits})
        held[bits] = method.pools(config, parameters, "f16", 4 + 64 * 8)
    assert held["r3"].host == held["3"].host
    assert held["r3"].host["codes"] + held["r3"].host["scales"] == 512 * 116
    assert held["4"].host["codes"] + held["4"].host["scales"] == 512 * 132
    assert held["r3"].device == held["4"].device


def test_small_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 16 numbers cannot be stored in 3 or 4 bits"):
        KvSlots("yakv", {"k_bits": "r3", "v_bits": "8"}, heads=(2, 1, 16))
