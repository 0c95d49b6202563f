"""yakv-paper against the paper's rules written out once more, token by token, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from kv_slots import KvSlots

from yakvrt.cpu.coded_rows import CodedRows
from yakvrt.higgs_grids import load_grid
from yakvrt.kernels.higgs_code import HiggsCode, coded_width, nearest
from yakvrt.kernels.higgs_encode import nearest_ref
from yakvrt.kernels.rope import rope_ref, rope_table_ref

SHAPES = [(4, 2, 16), (9, 3, 64), (9, 3, 48), (8, 1, 80), (2, 2, 256)]
MSE = {"d2n256": 0.00776, "d4n256": 0.0965}  # of a unit Gaussian


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def hadamard(n: int) -> np.ndarray:
    """The entry of row i, column j is -1 to the number of ones in i & j."""
    return np.array([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)])


@cache
def rotation_of(width: int) -> np.ndarray:
    """Hadamard of a power of two; for 3, 5 or 7 times one of at least 16 the Kronecker product with a cosine
    transform; else Hadamard of the next power of two.
    """
    power = width & -width
    odd = width // power
    if power < 16 or odd not in (1, 3, 5, 7):
        odd, power = 1, 1 << (width - 1).bit_length()
    cosines = np.array(
        [[np.cos(np.pi * k * (2 * j + 1) / (2 * odd)) for j in range(odd)] for k in range(odd)]
    )
    cosines /= np.linalg.norm(cosines, axis=1, keepdims=True)
    return np.kron(cosines, hadamard(power) / power**0.5)


def through_codes(row: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """What a row becomes: u_hat = (s / g) H c with s = |u|, as the paper writes it."""
    turn = rotation_of(len(row))
    padded = np.zeros(len(turn))
    padded[: len(row)] = row
    scale = np.linalg.norm(padded) / len(turn) ** 0.5
    y = (turn @ padded / scale).reshape(-1, grid.shape[1])
    nearest_points = grid[((y[:, None] - grid) ** 2).sum(axis=2).argmin(axis=1)]
    return (turn.T @ nearest_points.reshape(-1) * float(np.float16(scale)))[: len(row)]


@dataclass
class Straight:
    """Attention by the paper's rules over keys before RoPE and values. Shapes: k and v [n, Hk, D]."""

    k: np.ndarray
    v: np.ndarray
    inv_freq: np.ndarray
    rule: str = "max"

    def __post_init__(self) -> None:
        pairs, quads = (load_grid(name).astype(np.float64) for name in ("d2n256", "d4n256"))
        shape = self.k.shape
        self.exact = self.turned(self.k)
        coded = [
            np.array([through_codes(row.reshape(-1), pairs) for row in rows]) for rows in (self.k, self.v)
        ]
        self.k_coded, self.v_coded = self.turned(coded[0].reshape(shape)), coded[1].reshape(shape)
        self.selector = np.array([[through_codes(row, quads) for row in rows] for rows in self.exact])

    def turned(self, k: np.ndarray) -> np.ndarray:
        return rope_ref(k, rope_table_ref(np.arange(len(k)), self.inv_freq, 1.0))

    def attend(
        self, q: np.ndarray, position: int, *, budget: int, first: int, end: int, coded_end: int = 0
    ) -> np.ndarray:
        """Tokens first .. end - 1 are indexed; of the others those before coded_end come from codes."""
        group = len(q) // self.k.shape[1]
        out = np.empty(q.shape)
        for head in range(self.k.shape[1]):
            queries = q[head * group : (head + 1) * group].astype(np.float64)
            scaled = queries @ self.selector[first:end, head].T / q.shape[1] ** 0.5
            chosen = first + np.argsort(-self.weights(scaled))[:budget]
            others = [i for i in range(position + 1) if not first <= i < end]
            exact = [i for i in others if i < first or i >= coded_end]
            coded = [*chosen, *(i for i in others if first <= i < coded_end)]
            k = np.concatenate([self.exact[exact, head], self.k_coded[coded, head]])
            v = np.concatenate([self.v[exact, head], self.v_coded[coded, head]])
            scores = queries @ k.T / q.shape[1] ** 0.5
            out[head * group : (head + 1) * group] = probabilities(scores) @ v
        return out

    def weights(self, scaled: np.ndarray) -> np.ndarray:
        if self.rule == "mean":
            return scaled.mean(axis=0)
        odds = probabilities(scaled) if scaled.size else scaled
        return odds.max(axis=0) if self.rule == "max" else odds.sum(axis=0)


def probabilities(scores: np.ndarray) -> np.ndarray:
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def activations(rng: np.random.Generator, n: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    n_heads, n_kv_heads, dim = shape
    q = rng.standard_normal((n, n_heads, dim), np.float32)
    k, v = rng.standard_normal((2, n, n_kv_heads, dim), np.float32)
    return q, k, v


def opened(args: dict[str, str], shape: tuple[int, int, int], k: np.ndarray) -> tuple[Any, int, np.ndarray]:
    """A slot, and the keys after RoPE."""
    slots = KvSlots("yakv-paper", args, heads=shape)
    turned = rope_ref(k, rope_table_ref(np.arange(len(k)), slots.inv_freq, 1.0)).astype(np.float32)
    return slots, slots.kv.open(512), turned


@pytest.mark.parametrize(
    ("shape", "rule", "prefix"),
    [*((shape, "max", 0) for shape in SHAPES), ((4, 2, 16), "sum", 3), ((9, 3, 64), "mean", 4)],
)
def test_attention_is_the_papers(
    rng: np.random.Generator, shape: tuple[int, int, int], rule: str, prefix: int
) -> None:
    n, n_new, budget = 170, 5, 20
    q, k, v = activations(rng, n + n_new, shape)
    args = {"sparse_budget": str(budget), "rule": rule, "prefix_budget": str(prefix)}
    slots, slot, turned = opened(args, shape, k)
    straight = Straight(k, v, slots.inv_freq, rule)
    with slots:
        slots.prefill(slot, 0, q[:n], turned[:n], v[:n])
        for position in range(n, n + n_new):
            found = slots.decode(slot, position, q[position], turned[position], v[position])
            expected = straight.attend(q[position], position, budget=budget, first=prefix, end=n - 64)
            np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_budget_is_a_share_of_the_prompt(rng: np.random.Generator) -> None:
    """Rounded down; what was generated neither joins it nor leaves the device."""
    n, n_new = 250, 70
    q, k, v = activations(rng, n + n_new, (4, 2, 16))
    slots, slot, turned = opened({"sparse_budget": "0.05"}, (4, 2, 16), k)
    straight = Straight(k, v, slots.inv_freq)
    with slots:
        slots.prefill(slot, 0, q[:n], turned[:n], v[:n])
        for position in range(n, n + n_new):
            found = slots.decode(slot, position, q[position], turned[position], v[position])
        expected = straight.attend(q[-1], n + n_new - 1, budget=12, first=0, end=n - 64)
        np.testing.assert_allclose(found, expected, atol=2e-3)
        assert slots.kv.stats()["rows_read"] == 2 * sum(12 + 64 + i + 1 for i in range(n_new))


def test_a_further_prompt_leaves_what_one_prompt_does(rng: np.random.Generator) -> None:
    q, k, v = activations(rng, 300, (4, 2, 16))
    found = []
    for steps in ([(0, 280)], [(0, 130), (140, 141), (141, 280)], [(0, 10), (20, 280)]):
        slots, slot, turned = opened({"sparse_budget": "24"}, (4, 2, 16), k)
        with slots:
            held = 0
            for first, last in steps:
                for position in range(held, first):
                    slots.decode(slot, position, q[position], turned[position], v[position])
                slots.prefill(slot, first, q[first:last], turned[first:last], v[first:last])
                held = last
            found.append(
                [slots.decode(slot, i, q[i], turned[i], v[i]) for i in range(280, 290)]  # in one slot
            )
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)


@pytest.mark.parametrize("cut", [250, 190, 100, 63, 5, 2])
def test_what_a_cut_moves_back_comes_from_codes(rng: np.random.Generator, cut: int) -> None:
    n, first = 240, 4
    q, k, v = activations(rng, n + 20, (4, 2, 16))
    slots, slot, turned = opened({"sparse_budget": "24", "prefix_budget": str(first)}, (4, 2, 16), k)
    straight = Straight(k, v, slots.inv_freq)
    with slots:
        slots.prefill(slot, 0, q[:n], turned[:n], v[:n])
        for position in range(n, n + 20):
            slots.decode(slot, position, q[position], turned[position], v[position])
        assert slots.kv.truncate(slot, n + 20, cut) == cut
        found = slots.decode(slot, cut, q[cut], turned[cut], v[cut])
        first, coded_end = min(first, cut), n - 64
        end = min(coded_end, max(first, cut - 64))
        expected = straight.attend(
            q[cut], cut, budget=24, first=first, end=end, coded_end=min(coded_end, cut)
        )
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_share_of_a_prompt_that_was_cut(rng: np.random.Generator) -> None:
    """A cut prompt counts as long as it is; what is generated behind it does not join it."""
    q, k, v = activations(rng, 260, (4, 2, 16))
    slots, slot, turned = opened({"sparse_budget": "0.1"}, (4, 2, 16), k)
    with slots:
        slots.prefill(slot, 0, q[:240], turned[:240], v[:240])
        slots.kv.truncate(slot, 240, 150)
        for position in range(150, 170):
            slots.decode(slot, position, q[position], turned[position], v[position])
        assert slots.kv.stats()["rows_read"] == 2 * sum(15 + 64 + i + 1 for i in range(20))


def test_bytes_are_those_of_codes_and_scales(rng: np.random.Generator) -> None:
    """Heads that choose the same tokens move what the paper counts; others more, as a row spans all heads."""
    n, budget, (n_heads, n_kv_heads, dim) = 200, 10, (9, 3, 48)
    q, k, v = activations(rng, n, (n_heads, n_kv_heads, dim))
    q[:], k[:] = q[:, :1], k[:, :1]
    for alike in (True, False):
        slots, slot, turned = opened({"sparse_budget": str(budget)}, (n_heads, n_kv_heads, dim), k)
        with slots:
            slots.prefill(slot, 0, q, turned, v)
            query = q[-1] if alike else rng.standard_normal(q[-1].shape).astype(np.float32)
            straight = Straight(k, v, slots.inv_freq)
            chosen = set[int]()
            for head in range(n_kv_heads):
                queries = query[3 * head : 3 * head + 3]
                scaled = queries @ straight.selector[: n - 64, head].T / dim**0.5
                chosen |= set(np.argsort(-straight.weights(scaled))[:budget].tolist())
            assert (len(chosen) == budget) == alike
            slots.decode(slot, n, query, turned[-1], v[-1])
            stats = slots.kv.stats()
        token = 2 * (256 // 2 + 2)  # 144 coordinates are padded to 256, two to a byte; scales of 2 bytes
        assert stats["gross_bytes"] == budget * token
        assert stats["moved_bytes"] == len(chosen) * token
        assert stats["host_bytes_per_token"] == token
        assert stats["device_bytes_per_token"] == n_kv_heads * (dim // 4 + 2)
        assert stats["rows_read"] == n_kv_heads * (budget + 64 + 1)


@pytest.mark.parametrize("width", [16, 64, 80, 144, 192, 240, 1024])
def test_codes_keep_rows_to_the_grids_error(rng: np.random.Generator, width: int) -> None:
    """With a corner of a larger Hadamard matrix in place of a rotation 144 numbers would lose a third."""
    rows = rng.standard_normal((600, width), np.float32) * np.exp(rng.standard_normal((600, 1))).astype("f4")
    for name, mse in MSE.items():
        code = HiggsCode.of(name, width)
        codes, scales = code.encode(rows)
        assert codes.shape == (600, coded_width(width) // load_grid(name).shape[1])
        found = code.decode(codes, scales, slice(None))
        expected = mse * width / coded_width(width)  # the padding's share of the error is cut off
        np.testing.assert_allclose(((found - rows) ** 2).sum() / (rows**2).sum(), expected, rtol=0.15)
        np.testing.assert_allclose(code.decode(codes, scales, slice(3, 9)), found[:, 3:9], atol=1e-4)
        again, doubled = code.encode(2 * rows)
        np.testing.assert_array_equal(again, codes)
        np.testing.assert_array_equal(doubled, 2 * scales)
        nothing = code.decode(*code.encode(0 * rows[:2]), slice(None))
        np.testing.assert_array_equal(nothing, 0)


@pytest.mark.parametrize("name", MSE)
def test_nearest_points(rng: np.random.Generator, name: str) -> None:
    """Float32 may choose another point only where both are equally near."""
    grid, y = load_grid(name), 1.5 * rng.standard_normal((700, 24), np.float32)

    def distances(codes: np.ndarray) -> np.ndarray:
        points = grid[codes].astype(np.float64)
        return ((points - y.reshape(points.shape)) ** 2).sum(axis=-1)

    parts = y.reshape(700, -1, grid.shape[1])
    np.testing.assert_allclose(distances(nearest(y, grid)), distances(nearest_ref(parts, grid)), atol=1e-5)


@pytest.mark.parametrize("n", [1, 700])
def test_dots_are_those_of_decoded_rows(rng: np.random.Generator, n: int) -> None:
    rows = CodedRows(HiggsCode.of("d4n256", 48), 2, 3, n)
    rows.write(1, 0, rng.standard_normal((3, n, 48), np.float32))
    q = rng.standard_normal((3, 4, 48), np.float32)
    first = n // 2
    decoded = np.stack([rows.take(1, head, np.arange(first, n), slice(None)) for head in range(3)])
    np.testing.assert_allclose(rows.dots(1, q, first, n), q @ decoded.swapaxes(1, 2), atol=1e-4)
