"""YAKV's kernels: what is stored, what a decode step makes of it, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from kernel_team import SCORE_ROUNDING

from yakvrt.cpu.backend import CpuBackend
from yakvrt.cpu.memory import aligned_array
from yakvrt.cpu.yakv_pools import YakvPools
from yakvrt.higgs_grids import load_grid
from yakvrt.kernel_build.spec import KernelSpec, kernel
from yakvrt.kernels.higgs_layout import ROW_FORMATS, SELECTORS
from yakvrt.kernels.higgs_residual import encode_residuals_ref, estimate_ref
from yakvrt.kernels.higgs_rows import decode_rows_ref, encode_rows_ref
from yakvrt.kernels.higgs_score import score_ref
from yakvrt.kernels.higgs_selector import encode_selector_ref
from yakvrt.kernels.yakv_attend import attend_yakv_ref
from yakvrt.kernels.yakv_layout import Budget, YakvShape, indexed_end, ring_place
from yakvrt.kernels.yakv_select import RATIO_BITS, budget_of
from yakvrt.ops import Buffer, KvRows

N_KV_HEADS, N_TOKENS, SLOT = 2, 700, 1
BASE = YakvShape(
    group=3,
    head_dim=64,
    kind="f32",
    selector="2bit",
    k_format="q4",
    v_format="q4",
    n_sinks=4,
    window=64,
    rule="sum",
    centred=True,
    tail=True,
)
SHAPES = [
    BASE,
    replace(BASE, group=6, head_dim=128, kind="f16", k_format="q8", v_format="q3"),
    replace(BASE, group=1, head_dim=96, kind="bf16", selector="1bit", n_sinks=0, tail=False),
    replace(BASE, selector="1.5bit", k_format="bf16", v_format="bf16", rule="max", centred=False),
    replace(BASE, group=4, n_sinks=17, window=128, rule="mean", tail=False),
    replace(BASE, k_format="r3"),
    replace(BASE, group=5, head_dim=128, kind="f16", selector="1.5bit", k_format="r3", v_format="q8"),
    replace(BASE, group=1, head_dim=48, selector="1bit", k_format="r3", v_format="q3", centred=False),
]
RESIDUAL = SHAPES[-3:]
BUDGET = Budget(ratio=round(0.1 * 2**RATIO_BITS), at_least=5, min_len=100)


@dataclass
class Slot:
    """A slot under test: its pools, and the exact rows that went in, [tokens, Hk, D]."""

    shape: YakvShape
    backend: CpuBackend
    staging: KvRows
    pools: YakvPools
    k: np.ndarray
    v: np.ndarray

    def tail_parts(self, head: int) -> np.ndarray | float:
        return self.pools.tail_parts(0, SLOT)[head] if self.shape.tail else 0.0

    def stage(self, first: int, last: int) -> None:
        """Writes exact rows where a prompt's lie."""
        shape = self.shape
        keys, values = staged(self.staging, shape)
        for p in range(first, last):
            keys[:, p // 16, :, p % 16] = to_kind(self.k[p], shape.kind)
            values[:, p] = to_kind(self.v[p], shape.kind)

    def prompt(self, held: int, n: int) -> None:
        self.stage(held, n)
        self.pools.store(0, SLOT, held, n)

    def decode(self, position: int, q: np.ndarray) -> np.ndarray:
        shape, dim = self.shape, self.shape.head_dim
        recorder = self.backend.record(
            1,
            inv_freq=np.ones(dim // 2, np.float32),
            rope_scale=1.0,
            heads=(N_KV_HEADS * shape.group, N_KV_HEADS, dim),
        )
        buffers = [recorder.buffer(n * dim) for n in (N_KV_HEADS * shape.group, N_KV_HEADS, N_KV_HEADS)]
        for buffer, rows in zip(buffers, (q, self.k[position], self.v[position]), strict=True):
            buffer.data[0, : buffer.width] = rows.reshape(-1)
        out = Buffer(aligned_array((3, N_KV_HEADS * shape.group * dim), np.float32), 0, buffers[0].n_rows)
        out = replace(out, width=out.data.shape[1])
        out.data[:] = np.nan
        recorder.attend_yakv(out, *buffers, self.pools.layers[0])
        step = self.backend.finish(recorder)
        step.batch.n_rows[0], step.batch.positions[0], step.batch.slots[0] = 1, position, SLOT
        step.run()
        return np.array(out.data[0]).reshape(N_KV_HEADS, shape.group, dim)


def to_kind(x: np.ndarray, kind: str) -> np.ndarray:
    import ml_dtypes

    return x.astype({"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[kind])


def staged(rows: KvRows, shape: YakvShape) -> tuple[np.ndarray, np.ndarray]:
    """Views [Hk, tiles, D, 16] and [Hk, positions, D] of exact rows."""
    dtype = to_kind(np.zeros(1), shape.kind).dtype
    keys, values = (part.reshape(N_KV_HEADS, -1).view(dtype) for part in (rows.k, rows.v))
    dim = shape.head_dim
    return keys.reshape(N_KV_HEADS, -1, dim, 16), values.reshape(N_KV_HEADS, -1, dim)


def make_slot(backend: CpuBackend, shape: YakvShape, n_tokens: int = N_TOKENS) -> Slot:
    rng = np.random.default_rng(shape.head_dim)
    staging = replace(
        backend.kv_rows(1, 1, N_KV_HEADS, n_tokens, shape.head_dim, shape.kind)[0], slot_bytes=0
    )
    pools = backend.yakv_pools(1, 2, N_KV_HEADS, n_tokens, shape, BUDGET, [staging])
    pools.set_tail_parts(0, SLOT, rng.integers(0, 5, (N_KV_HEADS, shape.group)) / 4)
    k, v = rng.standard_normal((2, n_tokens, N_KV_HEADS, shape.head_dim)).astype(np.float32)
    k += 2 * rng.standard_normal((N_KV_HEADS, shape.head_dim)).astype(np.float32)  # a mean worth subtracting
    exact = (to_kind(x, shape.kind).astype(np.float32) for x in (k, v))
    return Slot(shape, backend, staging, pools, *exact)


@pytest.fixture(scope="module", params=[1, 2])
def backend(request: pytest.FixtureRequest) -> Iterator[CpuBackend]:
    backend = CpuBackend(request.param)
    yield backend
    backend.close()


def grid_of(name: str | None) -> np.ndarray | None:
    return load_grid(name) if name else None


@dataclass
class Indexed:
    """What the truth makes of the indexed keys and values of one head."""

    logits: np.ndarray
    k: np.ndarray
    v: np.ndarray
    mean_values: np.ndarray


def indexed_truth(slot: Slot, head: int, mean: np.ndarray | None, end: int, q: np.ndarray) -> Indexed:
    shape, sinks = slot.shape, slot.shape.n_sinks
    k, v = slot.k[sinks:end, head], slot.v[sinks:end, head]
    selector = SELECTORS[shape.selector]
    grids = grid_of(selector.grid), grid_of(selector.mean_grid)
    assert grids[0] is not None
    blocks = encode_selector_ref(shape.selector, k, grids[0], grids[1], mean, "norm")
    factor = shape.head_dim**-0.5
    logits = score_ref(
        shape.selector, q, blocks, len(k), factor, grids[0], grids[1], mean, rounding=SCORE_ROUNDING
    )
    decoded = []
    for rows, name, centre in ((k, shape.k_format, mean), (v, shape.v_format, None)):
        row_format = ROW_FORMATS[name]
        grid = grid_of(row_format.grid)
        if row_format.residual:
            assert grid is not None
            estimates = estimate_ref(shape.selector, blocks, len(k), shape.head_dim, *grids)
            codes, scales = encode_residuals_ref(rows, estimates, grid, mean)
        else:
            codes, scales = encode_rows_ref(name, rows, grid, centre)
        back = decode_rows_ref(name, codes, scales, grid, rotated=False)
        added = centre is not None and row_format.rotated and not row_format.residual
        decoded.append(back + centre if added else back)
    return Indexed(logits, decoded[0], decoded[1], v.reshape(-1, 64, shape.head_dim).mean(axis=1))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.selector}-{s.k_format}-{s.head_dim}")
@pytest.mark.parametrize("prompt", [(500,), (30, 300), (0,)], ids=str)
def test_a_slot_that_grows(backend: CpuBackend, shape: YakvShape, prompt: tuple[int, ...]) -> None:
    """Prompts in parts, then tokens one by one, blocks leaving the window on the way."""
    slot, held, errors = make_slot(backend, shape), 0, []
    mean: np.ndarray | None = None

    def note_mean(n: int) -> None:
        nonlocal mean
        if mean is None and shape.centred and indexed_end(n, shape.n_sinks, shape.window) > shape.n_sinks:
            mean = slot.k[shape.n_sinks : n].mean(axis=0, dtype=np.float64).astype(np.float32)

    for n in prompt:
        if n:
            slot.prompt(held, n)
            note_mean(n)
            held = n
    rng = np.random.default_rng(5)
    for position in range(held, held + 140):
        q = rng.standard_normal((N_KV_HEADS, shape.group, shape.head_dim)).astype(np.float32) * 1.5
        out = slot.decode(position, q)
        if position % 18 and position < held + 137:
            note_mean(position + 1)
            continue
        end = indexed_end(position, shape.n_sinks, shape.window)
        exact = np.r_[0 : min(shape.n_sinks, position + 1), end : position + 1]
        for head in range(N_KV_HEADS):
            head_mean = mean[head] if mean is not None else None
            truth = indexed_truth(slot, head, head_mean, end, q[head])
            n = position + 1
            k = budget_of(n, end - shape.n_sinks, BUDGET.ratio, BUDGET.at_least, BUDGET.min_len)
            rows = slot.k[exact, head], slot.v[exact, head]
            expected, _ = attend_yakv_ref(
                q[head],
                rows,
                truth.logits,
                (truth.k, truth.v),
                truth.mean_values,
                k,
                shape.rule,
                slot.tail_parts(head) if k < end - shape.n_sinks else 0.0,
                residual=shape in RESIDUAL,
            )
            error = np.linalg.norm(out[head] - expected) / np.linalg.norm(expected)
            errors.append(error)
        note_mean(position + 1)
    # a code or a weight that rounds the other way may exchange two rows of nearly equal rank;
    # a step of a weight is 0.0054 in a logit
    assert np.median(errors) < 2.5e-3
    assert max(errors) < 0.25


@pytest.mark.parametrize("shape", [BASE, *SHAPES[3:6]], ids=lambda s: f"{s.rule}-{s.k_format}")
@pytest.mark.parametrize("n", [64 * 16 + 4 + 64, 64 * 35 + 4 + 64], ids=str)
def test_runs_of_blocks_join(backend: CpuBackend, shape: YakvShape, n: int) -> None:
    """Runs of 16 blocks whose largest logits differ widely, the last one not full; the same with any team."""
    slot = make_slot(backend, shape, n + 8)
    slot.k[:] *= np.linspace(0.3, 3, n + 8, dtype=np.float32)[::-1, None, None] ** 2
    slot.prompt(0, n)
    q = 2 * np.random.default_rng(n).standard_normal((N_KV_HEADS, shape.group, shape.head_dim), np.float32)
    out = slot.decode(n, q)
    alone = CpuBackend(1)
    single = replace(slot, backend=alone).decode(n, q)
    alone.close()
    np.testing.assert_array_equal(out, single)
    end = indexed_end(n, shape.n_sinks, shape.window)
    exact = np.r_[0 : shape.n_sinks, end : n + 1]
    for head in range(N_KV_HEADS):
        mean = slot.k[shape.n_sinks : n, head].mean(axis=0, dtype=np.float64).astype(np.float32)
        truth = indexed_truth(slot, head, mean if shape.centred else None, end, q[head])
        k = budget_of(n + 1, end - shape.n_sinks, BUDGET.ratio, BUDGET.at_least, BUDGET.min_len)
        rows, indexed = (slot.k[exact, head], slot.v[exact, head]), (truth.k, truth.v)
        parts, residual = slot.tail_parts(head), shape in RESIDUAL
        expected, _ = attend_yakv_ref(
            q[head], rows, truth.logits, indexed, truth.mean_values, k, shape.rule, parts, residual=residual
        )
        assert np.linalg.norm(out[head] - expected) / np.linalg.norm(expected) < 0.02


@pytest.mark.parametrize("shape", [*SHAPES[:2], *RESIDUAL], ids=str)
def test_restore_brings_back_what_is_known(backend: CpuBackend, shape: YakvShape) -> None:
    slot, n = make_slot(backend, shape), 400
    slot.prompt(0, n)
    slot.staging.k[:], slot.staging.v[:] = 0xFF, 0xFF
    slot.pools.restore(0, SLOT, n)
    keys, values = (x.astype(np.float32) for x in staged(slot.staging, shape))
    keys = keys.transpose(0, 1, 3, 2).reshape(N_KV_HEADS, -1, shape.head_dim)
    end = indexed_end(n, shape.n_sinks, shape.window)
    for back, rows, bits in ((keys, slot.k, shape.k_format), (values, slot.v, shape.v_format)):
        rows = rows[:n].transpose(1, 0, 2)
        exact = np.r_[0 : shape.n_sinks, end:n]
        np.testing.assert_array_equal(back[:, exact], rows[:, exact])
        coded = slice(shape.n_sinks, end)
        error = np.linalg.norm(back[:, coded] - rows[:, coded]) / np.linalg.norm(rows[:, coded])
        assert (
            error
            < {"q3": 0.19, "q4": 0.1, "q8": 0.02, "r3": 0.14 if shape.selector == "1bit" else 0.06}[bits]
        )


def test_refill_brings_blocks_back_to_the_window(backend: CpuBackend) -> None:
    """A slot that forgets its last tokens attends as before, but for the rows that were codes meanwhile."""
    slot, shape = make_slot(backend, SHAPES[3]), SHAPES[3]
    q = np.random.default_rng(1).standard_normal((N_KV_HEADS, 3, 64)).astype(np.float32)
    slot.prompt(0, 300)
    before = slot.decode(300, q)
    slot.prompt(300, 600)
    held, end = 600, indexed_end(300, shape.n_sinks, shape.window)
    slot.pools.refill(0, SLOT, held, end, min(300, indexed_end(held, shape.n_sinks, shape.window)))
    np.testing.assert_allclose(slot.decode(300, q), before, atol=0.02)


def test_kernels_of_pools_compile_with_those_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when a first prompt is stored."""
    backend = CpuBackend(1)
    asked: list[KernelSpec] = []
    monkeypatch.setattr(backend._cache, "load", lambda specs, _: asked.extend(specs))
    slot = make_slot(backend, BASE)
    backend.prepare([kernel("timestamp", "timestamp_cpu")])
    assert [spec.symbol.split("_")[:2] for spec in asked] == [
        ["timestamp"],
        ["yakv", "store"],
        ["yakv", "recall"],
    ]
    assert all(tape.specs[0] in asked for tape in (slot.pools._store[0], slot.pools._restore[0]))
    backend.close()


def test_slots_do_not_touch_each_other(backend: CpuBackend) -> None:
    slot = make_slot(backend, BASE)
    slot.prompt(0, 500)
    words = dict(slot.pools._pools)  # every pool is [layers, slots, heads, bytes]
    assert all(not pool[0, 0].any() for pool in words.values())
    assert all(pool[0, SLOT].any() for pool in words.values())


@pytest.mark.parametrize(("n_sinks", "window"), [(0, 64), (4, 64), (17, 128)])
def test_every_exact_position_has_its_own_place(n_sinks: int, window: int) -> None:
    sink_places, ring_len = -(-n_sinks // 16) * 16, window + 64
    for n in range(1, 600):
        end = indexed_end(n - 1, n_sinks, window)
        exact = [*range(min(n, n_sinks)), *range(end, n)]
        places = {ring_place(p, n_sinks, sink_places, ring_len) for p in exact}
        assert len(places) == len(set(exact))
        assert max(places) < sink_places + ring_len
        assert (end - n_sinks) % 64 == 0
        assert end <= max(n, n_sinks)
