"""What KV methods hold, move and give back, against closed forms written out here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from golden_values import tiny_cases, tiny_dir
from kv_slots import KvSlots

import yakvrt
from yakvrt.config import ModelConfig
from yakvrt.kvcache import METHODS, open_method

PROMPT, STEPS = 2048, 3
STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class Sizes:
    """Of a model with rows of 16 bits; `row` is the bytes of K and V of one token and head."""

    layers: int
    queries: int
    heads: int
    dim: int

    @classmethod
    def of(cls, config: ModelConfig) -> Sizes:
        return cls(config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim)

    @property
    def row(self) -> int:
        return 4 * self.dim

    @property
    def width(self) -> int:
        return self.heads * self.dim

    @property
    def equal(self) -> int:
        """Bytes of a step at 1/32 byte per token, head and channel of the prompt: METHODS' comparison."""
        return self.layers * PROMPT * self.width // 32


@dataclass(frozen=True)
class Form:
    """gross(sizes, position) in a step; device(sizes) and host(sizes) per token. Prompt: 2048 tokens."""

    gross: Callable[[Sizes, int], float]
    device: Callable[[Sizes], float]
    host: Callable[[Sizes], float]
    args: tuple[tuple[str, str], ...] = ()


def rows_on_host(s: Sizes) -> float:
    return s.layers * s.heads * s.row


def yakv(selector: Callable[[int], float], k_bits: int) -> Form:
    """A 32nd of the tokens held; codes of K and of 4 bits of V padded to 16 bytes, scales of both; a mean
    value for 64 tokens.
    """

    def row(s: Sizes) -> int:
        return -(-(k_bits + 4) * s.dim // 128) * 16 + 4

    return Form(
        lambda s, position: s.layers * s.heads * ((position + 1) // 32) * row(s),
        lambda s: s.layers * s.heads * (selector(s.dim) + 2 * s.dim / 64),
        lambda s: s.layers * s.heads * row(s),
    )


# 1.5 bits: a key has dim / 8 codes and a scale, 8 keys dim / 2 codes and a scale, 64 keys 48 unused bytes
FORMS: Mapping[str, Form] = {
    "yakv": yakv(lambda dim: dim / 4 + 2, 3),
    "yakv-1.5bit": yakv(lambda dim: dim / 8 + 2 + (dim / 2 + 2) / 8 + 48 / 64, 4),
    "yakv-paper": Form(  # one scale a token for each of K and V
        lambda s, _: s.layers * PROMPT // 32 * (s.width + 4),
        lambda s: s.layers * s.heads * (s.dim / 4 + 2),
        lambda s: s.layers * (s.width + 4),
    ),
    "quest": Form(  # 1024 tokens; two dense layers on the device
        lambda s, _: (s.layers - 2) * s.heads * 1024 * s.row,
        lambda s: s.heads * s.row * ((s.layers - 2) / 16 + 2),
        lambda s: (s.layers - 2) * s.heads * s.row,
    ),
    "quest-equal": Form(lambda s, _: s.equal, lambda s: s.layers * s.heads * s.row / 16, rows_on_host),
    "arkvale": Form(
        lambda s, _: (s.layers - 2) * s.heads * 1024 * s.row,
        lambda s: s.heads * s.row * ((s.layers - 2) / 32 + 2),
        lambda s: (s.layers - 2) * s.heads * s.row,
    ),
    "arkvale-equal": Form(lambda s, _: s.equal, lambda s: s.layers * s.heads * s.row / 16, rows_on_host),
    # values alone; of 256 chunks 4 are local and 48 outliers. U of rank min(160, width), landmarks, numbers
    "shadowkv": Form(
        lambda s, _: s.layers * s.heads * min(2048, 8 * (256 - 4 - 48)) * s.row / 2,
        lambda s: s.layers * (2 * min(160, s.width) + (2 * s.width + 4 * s.heads) / 8),
        rows_on_host,
    ),
    "shadowkv-equal": Form(
        lambda s, _: s.equal,
        lambda s: s.layers * (2 * min(160, s.width) + (2 * s.width + 4 * s.heads) / 8),
        rows_on_host,
    ),
    "lrqk": Form(  # per query head
        lambda s, _: s.layers * s.queries * 512 * s.row, lambda s: s.layers * s.queries * 16 * 2, rows_on_host
    ),
    "lrqk-equal": Form(lambda s, _: s.equal, lambda s: s.layers * s.queries * 32 * 2, rows_on_host),
    "infinigen": Form(  # dense layers are fetched
        lambda s, position: s.heads * s.row * ((s.layers - 2) * int(0.2 * PROMPT) + 2 * position),
        lambda s: (s.layers - 2) * s.heads * int(0.2 * s.dim) * 2,
        rows_on_host,
        (("alpha", "1e6"),),
    ),
    "infinigen-equal": Form(
        lambda s, _: s.equal,
        lambda s: s.layers * s.heads * int(0.2 * s.dim) * 2,
        rows_on_host,
    ),
    "oracle": Form(lambda s, _: 4 * s.equal, lambda s: 0, rows_on_host),
    "oracle-equal": Form(lambda s, _: s.equal, lambda s: 0, rows_on_host),
}


def test_every_method_has_a_closed_form() -> None:
    assert {*FORMS, "full"} == set(METHODS)


@pytest.mark.parametrize("name", FORMS)
def test_counters_are_the_closed_forms(name: str) -> None:
    form = FORMS[name]
    ids = (tiny_cases("qwen3")[3].ids * 8)[: PROMPT + STEPS]
    settings = {"cache_type": "f16", "ctx_size": PROMPT + 16, "ubatch_size": 512, "threads": 1}
    with (
        yakvrt.load(str(tiny_dir("qwen3")), kv=name, kv_args=dict(form.args), **settings) as loaded,  # type: ignore[arg-type]
        loaded.session() as session,
    ):
        session.prefill(ids[:PROMPT])
        for token in ids[PROMPT:]:
            session.decode(token)
        kv, sizes = session.kv, Sizes.of(loaded.config)
    assert kv["steps"] == STEPS
    gross, moved, hit_rate = (float(kv[key]) for key in ("gross_bytes", "moved_bytes", "hit_rate"))
    assert gross == sum(form.gross(sizes, PROMPT + step) for step in range(STEPS))
    if name == "yakv-paper":  # what a head chose alone crosses the link for all heads
        assert gross <= moved <= sizes.heads * gross
    else:
        assert moved == round(gross * (1 - hit_rate))
    method, parameters = open_method(name, dict(form.args))
    counted = method.step_bytes(loaded.config, parameters, "f16", PROMPT)
    assert counted.host == form.gross(sizes, PROMPT)
    assert counted.device >= PROMPT * form.device(sizes)
    assert kv["device_bytes_per_token"] == form.device(sizes)
    assert kv["host_bytes_per_token"] == form.host(sizes)


@pytest.mark.parametrize("name", METHODS)
def test_pools_grow_by_the_bytes_per_token(name: str) -> None:
    """Budgets that are shares of the prompt make room for what they fetch, too."""
    n = 1 << 17
    with KvSlots("full", {}, heads=(4, 2, 32), n_layers=4, ctx_size=64) as slots:
        config = slots.config
    method, parameters = open_method(name, {})
    small, large = (method.pools(config, parameters, "f16", n_tokens) for n_tokens in (n, 2 * n))
    device, host = (
        sum(getattr(large, place).values()) - sum(getattr(small, place).values())
        for place in ("device", "host")
    )
    sizes = Sizes.of(config)
    if name == "full":
        assert (device, host) == (n * rows_on_host(sizes), 0)
        return
    per_row = sizes.layers * sizes.row * n // 128
    fetched = {
        "arkvale-equal": sizes.heads * per_row,
        "shadowkv-equal": 2 * sizes.heads * per_row,
        "lrqk-equal": sizes.queries * per_row // 2,
    }
    assert host == n * FORMS[name].host(sizes)
    assert device == n * FORMS[name].device(sizes) + fetched.get(name, 0)


@pytest.mark.parametrize("name", METHODS)
def test_bytes_reported_are_those_planned(name: str) -> None:
    with KvSlots(name, {}, heads=(8, 2, 32), ctx_size=640, kind="f16") as slots:  # qwen3's kernels
        stats = slots.kv.stats()
        method, parameters = open_method(name, {})
        planned = method.pools(slots.config, parameters, "f16", 640)
    assert stats["bytes"] in (
        2 * planned.slot_bytes,
        2 * planned.slot_bytes + sum(planned.transient.values()),
    )
    for key in ("method", "type", "ctx_size", "n_slots"):
        assert key in stats


def resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not STATM.exists(), reason="the system does not say what memory a process holds")
@pytest.mark.parametrize("name", [name for name, preset in METHODS.items() if not preset.values])
def test_release_returns_every_byte(name: str) -> None:
    """A slot used again takes no more. Where a slot has memory of its own, release gives that back."""
    n, args = 3000, {"dense_layers": "0"} if name in ("quest", "arkvale", "infinigen") else {}
    q, k, v = np.random.default_rng(0).standard_normal((3, n + 1, 8, 128), np.float32)
    with KvSlots(name, args, heads=(8, 8, 128), ctx_size=n + 8) as slots:
        slot_bytes = open_method(name, args)[0].pools(slots.config, slots.parameters, "f32", n).slot_bytes
        open_bytes, released = [], []
        for _ in range(4):
            slot = slots.kv.open(n + 1)
            slots.prefill(slot, 0, q[:n], k[:n], v[:n])
            slots.decode(slot, n, q[n], k[n], v[n])
            open_bytes.append(resident_bytes())
            slots.kv.release(slot)
            released.append(resident_bytes())
        assert released[-1] - released[1] < slot_bytes / 8  # the first slots warm the heap up
        if name not in ("full", "yakv"):  # which hold all slots' memory from the start
            assert open_bytes[-1] - released[-1] > slot_bytes / 2
        first, second = slots.kv.open(n + 1), slots.kv.open(n + 1)
        with pytest.raises(RuntimeError, match="all 2 slots are in use"):
            slots.kv.open(n + 1)
        for each in (first, second):
            slots.kv.release(each)
