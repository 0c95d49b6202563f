"""A whole decode step of YAKV on the CUDA backend against numpy: on the fake driver, and on a real GPU."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
from cuda_cases.arrays import selector_grids, stored
from cuda_cases.attention import exact_positions
from cuda_cases.case import Mismatch, compare

from yakvrt.cuda import record_yakv
from yakvrt.cuda.backend import CudaBackend
from yakvrt.cuda.yakv_pools import RowPool, YakvPools, YakvRows
from yakvrt.higgs_grids import load_grid
from yakvrt.kernels.higgs_layout import BLOCK_TOKENS, SELECTORS, row_bytes
from yakvrt.kernels.higgs_residual import encode_residuals_ref, estimate_ref
from yakvrt.kernels.higgs_rows import decode_rows_ref, encode_rows_ref
from yakvrt.kernels.higgs_score import score_ref
from yakvrt.kernels.higgs_selector import encode_selector_ref
from yakvrt.kernels.yakv_attend import attend_yakv_ref
from yakvrt.kernels.yakv_layout import Budget, YakvShape, indexed_end, ring_place
from yakvrt.kernels.yakv_select import RATIO_BITS, budget_of

RNG = np.random.default_rng(53)
N_KV_HEADS, N_SLOTS = 2, 3
SHAPE = YakvShape(
    group=4,
    head_dim=64,
    kind="bf16",
    selector="2bit",
    k_format="r3",
    v_format="q4",
    n_sinks=4,
    window=64,
    rule="sum",
    centred=True,
    tail=True,
)
BUDGET = Budget(ratio=round(0.1 * 2**RATIO_BITS), at_least=5, min_len=0)
K_GRIDS, V_GRID = {"r3": load_grid("d2n64"), "q4": load_grid("d2n256")}, load_grid("d2n256")


class Head:
    """One head of a slot of n tokens, the last of them new: its rows, and what the indexed become."""

    def __init__(self, shape: YakvShape, n: int) -> None:
        self.shape, self.n, self.grids = shape, n, selector_grids(SELECTORS[shape.selector])
        size = (n, shape.head_dim)
        shift = RNG.standard_normal(shape.head_dim)
        self.k, self.v = (
            stored((RNG.standard_normal(size) + x).astype(np.float32), shape.kind)[0] for x in (shift, 0)
        )
        sinks = shape.n_sinks
        self.end = indexed_end(n - 1, sinks, shape.window)
        # the mean of what the ring held when the first block left
        self.mean = self.k[sinks : sinks + shape.window + BLOCK_TOKENS].mean(axis=0)
        self.blocks, self.k_codes, self.k_scales = self.encode_keys(self.k[sinks : self.end])
        self.v_codes, self.v_scales = encode_rows_ref("q4", self.v[sinks : self.end], V_GRID)
        self.values = self.v[sinks : self.end].reshape(-1, BLOCK_TOKENS, shape.head_dim).mean(axis=1)
        self.parts = RNG.random(shape.group).astype(np.float32)

    def encode_keys(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Selector blocks, codes and scales of rows."""
        blocks = encode_selector_ref(self.shape.selector, keys, *self.grids, self.mean, "norm")
        k_format = self.shape.k_format
        if k_format == "r3":
            estimates = estimate_ref(self.shape.selector, blocks, *keys.shape, *self.grids)
            return blocks, *encode_residuals_ref(keys, estimates, K_GRIDS[k_format], self.mean)
        return blocks, *encode_rows_ref(k_format, keys, K_GRIDS[k_format], self.mean)

    def attend(self, q: np.ndarray, budget: Budget) -> np.ndarray:
        """Shapes: q [G, D] -> [G, D]."""
        exact = exact_positions(self.n, self.shape.n_sinks, self.shape.window)
        n_indexed = self.end - self.shape.n_sinks
        scale = self.shape.head_dim**-0.5
        given = (self.shape.selector, q, self.blocks, n_indexed, scale, *self.grids, self.mean)
        logits = score_ref(*given, rounding="int8")
        k_format = self.shape.k_format
        k = decode_rows_ref(k_format, self.k_codes, self.k_scales, K_GRIDS[k_format], rotated=False)
        v = decode_rows_ref("q4", self.v_codes, self.v_scales, V_GRID, rotated=False)
        residual = k_format == "r3"
        if not residual:
            k += self.mean
        selected = budget_of(self.n, n_indexed, budget.ratio, budget.at_least, budget.min_len)
        rows, tail = (self.k[exact], self.v[exact]), self.parts if self.shape.tail else 0.0
        indexed = ((k, v), self.values, selected, "sum", tail)
        return attend_yakv_ref(q, rows, logits, *indexed, residual=residual)[0]


def put_slots(backend: CudaBackend, rows: YakvRows, heads: dict[int, list[Head]]) -> None:
    """Writes what the tokens before the new one left in the pools."""
    shape, stream = rows.shape, backend.stream
    ring_len = shape.window + BLOCK_TOKENS
    rings = [np.full(rows.ring_k.shape, 0xFFFFFFFF, np.uint32) for _ in range(2)]
    selectors, values = (np.full(x.shape, 0xFFFFFFFF, np.uint32) for x in (rows.selectors, rows.values))
    means, parts = (np.full(x.shape, np.nan, np.float32) for x in (rows.means, rows.tail_parts))
    n_rows, size = rows.rows.n_rows, row_bytes(shape.head_dim, shape.k_format, shape.v_format)
    codes = np.full((N_SLOTS, N_KV_HEADS, n_rows, size), 0xFF, np.uint8)
    scales = np.full((N_SLOTS, N_KV_HEADS, n_rows, 2), np.nan, np.float16)
    for slot, own in heads.items():
        for i, head in enumerate(own):
            held = exact_positions(head.n, shape.n_sinks, shape.window)[:-1]
            places = [ring_place(int(p), shape.n_sinks, shape.n_sinks, ring_len) for p in held]
            for ring, numbers in zip(rings, (head.k, head.v), strict=True):
                ring[slot, i, places] = stored(numbers[held], shape.kind)[1]
            n_blocks, n = len(head.values), head.end - shape.n_sinks
            selectors[slot, i, :n_blocks] = head.blocks.view(np.uint32)
            values[slot, i, :n_blocks] = head.values.astype(np.float16).view(np.uint32)
            if n_blocks:
                means[slot, i] = head.mean
            parts[slot, i] = head.parts
            both = np.hstack([head.k_codes, head.v_codes])
            codes[slot, i, :n, : both.shape[1]] = both
            scales[slot, i, :n] = np.stack([head.k_scales, head.v_scales], axis=1)
    arrays = (rows.ring_k, rows.ring_v, rows.selectors, rows.values, rows.means, rows.tail_parts)
    for array, numbers in zip(arrays, (*rings, selectors, values, means, parts), strict=True):
        array.put(numbers, stream)
    put_pool(backend, rows.rows, codes.view(np.uint32), scales.view(np.uint32)[..., 0])


def put_pool(backend: CudaBackend, pool: RowPool, codes: np.ndarray, scales: np.ndarray) -> None:
    for memory, numbers in ((pool.codes, codes), (pool.scales, scales)):
        if hasattr(memory, "array"):  # of the host
            memory.array[:] = numbers.reshape(-1).view(np.uint8)
        else:
            memory.put(numbers, backend.stream)  # type: ignore[attr-defined]


def pool_codes(backend: CudaBackend, pool: RowPool) -> np.ndarray:
    if hasattr(pool.codes, "array"):
        return pool.codes.array.view(np.uint32).reshape(N_SLOTS, N_KV_HEADS, pool.n_rows, -1)  # type: ignore[no-any-return]
    return pool.codes.get(N_SLOTS, backend.stream)  # type: ignore[attr-defined,no-any-return]


def yakv_step(
    backend: CudaBackend, selector: str, k_format: str, on_host: bool, tail: bool, n_turns: int = 1
) -> tuple[float, np.ndarray]:
    """Slots whose block leaves in this step, a later one or the first, and one that keeps its own; rows from
    the host come in `n_turns`.

    Returns the error as a part of what is allowed, and the output. Raises: Mismatch.
    """
    shape = replace(SHAPE, selector=selector, k_format=k_format, tail=tail)
    lengths = {2: 4 + 64 * 4, 1: 4 + 64 * 2, 0: 4 + 64 * 3 + 7}
    heads = {slot: [Head(shape, n) for _ in range(N_KV_HEADS)] for slot, n in lengths.items()}
    sizes = (1, N_SLOTS, N_KV_HEADS, 4 + 64 * 5)
    rows = YakvPools(backend, *sizes, shape, BUDGET, on_host=on_host, n_places=48).layers[0]
    put_slots(backend, rows, heads)
    n_heads = N_KV_HEADS * shape.group
    recorder = backend.record(
        4, inv_freq=np.ones(32), rope_scale=1.0, heads=(n_heads, N_KV_HEADS, shape.head_dim)
    )
    q, k, v = (recorder.buffer(n * shape.head_dim) for n in (n_heads, N_KV_HEADS, N_KV_HEADS))
    out = recorder.buffer(n_heads * shape.head_dim)
    with patch.object(record_yakv, "fetch_turns", lambda *_: n_turns):
        recorder.attend_yakv(out, q, k, v, rows)
    queries = RNG.standard_normal((3, N_KV_HEADS, shape.group, shape.head_dim)).astype(np.float32)
    backend.write(q, queries.reshape(3, -1))
    for buffer, name in ((k, "k"), (v, "v")):
        new = np.array([[getattr(head, name)[-1] for head in own] for own in heads.values()])
        backend.write(buffer, new.reshape(3, -1))
    step = backend.finish(recorder)
    step.batch.slots[:3], step.batch.n_rows[0] = list(lengths), 3
    step.batch.positions[:3] = [n - 1 for n in lengths.values()]
    step.run()
    found, worst = backend.read(out, 0, 3).reshape(queries.shape).copy(), 0.0
    for row, own in enumerate(heads.values()):
        for i, head in enumerate(own):
            expected = head.attend(queries[row, i], BUDGET)
            allowed = 4e-3 * float(np.abs(expected).max())
            worst = max(worst, compare(f"row {row}, head {i}", found[row, i], expected, atol=allowed))

    codes = pool_codes(backend, rows.rows)
    selectors = rows.selectors.get(N_SLOTS, backend.stream)
    values = rows.values.get(N_SLOTS, backend.stream)
    for slot in (1, 2):  # the encoded block, as the encoders' own tests compare their codes
        for i, head in enumerate(heads[slot]):
            block, first = len(head.values), head.end
            held = slice(first, first + BLOCK_TOKENS)
            expected_block, k_codes, _ = head.encode_keys(head.k[held])
            mostly_same("selectors", selectors[slot, i, block].view(np.uint8), expected_block[0])
            v_codes, _ = encode_rows_ref("q4", head.v[held], V_GRID)
            expected_codes = np.hstack([k_codes, v_codes])
            own_codes = codes[slot, i, block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS].view(np.uint8)
            mostly_same("codes", own_codes[:, : expected_codes.shape[1]], expected_codes)
            halves = values[slot, i, block].view(np.float16)
            compare("mean values", halves, head.v[held].mean(axis=0), rtol=2e-3, atol=2e-3)
    return worst, found


def mostly_same(what: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Raises: Mismatch where more than a hundredth of the codes differ: ties fall either way."""
    if (part := float((found == expected).mean())) <= 0.99:
        raise Mismatch(f"{what}: only {part:.1%} of the codes are those expected")
