"""Norms, RoPE, embedding, SwiGLU's gate, KV rows, the largest logit, a drawn token."""

from __future__ import annotations

import numpy as np

from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.argmax import argmax_ref
from yakvrt.kernels.device_layout import DEVICE_LAYOUTS
from yakvrt.kernels.embed import embed_ref
from yakvrt.kernels.kv_append import append_rows_ref
from yakvrt.kernels.rms_norm import rms_norm_ref
from yakvrt.kernels.rope import rope_ref, rope_table_ref
from yakvrt.kernels.sample_cuda import sample_ref
from yakvrt.kernels.select_topk import select_topk_ref
from yakvrt.kernels.swiglu import swiglu_ref
from yakvrt.kernels.yakv_layout import ring_place

from .arrays import RNG, blocks, count, normal, poisoned, repeated, stored
from .case import Case, Launch, Sized, compare, sized, untouched
from .weights import device_matrix, nbytes

FLOATS = ("f32", "f16", "bf16")


def rms_norm(n_rows: int, width: int) -> Case:
    """Rows of a wider array, a row too many."""
    x, weight, out = normal(n_rows + 1, width + 4, scale=3), normal(width), poisoned(n_rows + 1, width)
    launch = Launch(
        kernel("rms_norm", "rms_norm_cuda"),
        n_rows + 1,
        [out],
        (out, width, x, width + 4, weight, width, 1e-5, count(n_rows)),
        2 * n_rows * width * 4,
    )

    def check() -> float:
        untouched("further rows", out[n_rows:])
        expected = rms_norm_ref(x[:n_rows, :width], weight, 1e-5)
        return compare("out", out[:n_rows], expected, rtol=2e-6, atol=1e-6)

    return Case([launch], check)


def head_norm(n_rows: int, n_heads: int, head_dim: int) -> Case:
    width = n_heads * head_dim
    x, weight, out = normal(n_rows + 1, width), normal(head_dim), poisoned(n_rows + 1, width)
    launch = Launch(
        kernel("rms_norm", "head_norm_cuda"),
        (blocks(n_heads, 4), n_rows + 1),
        [out],
        (out, width, x, width, weight, head_dim, n_heads, 1e-6, count(n_rows)),
        2 * n_rows * width * 4,
    )

    def check() -> float:
        untouched("further rows", out[n_rows:])
        expected = rms_norm_ref(x[:n_rows].reshape(n_rows, n_heads, head_dim), weight, 1e-6)
        return compare("out", out[:n_rows], expected.reshape(n_rows, width), rtol=2e-6, atol=1e-6)

    return Case([launch], check)


def rope_table(n_rows: int, head_dim: int) -> Case:
    half = head_dim // 2
    positions = RNG.integers(0, 2**20, n_rows + 1)
    positions[0] = 0
    inv_freq = (10_000.0 ** -(np.arange(half) / half)).astype(np.float32)
    table = poisoned(n_rows + 1, head_dim)
    launch = Launch(
        kernel("rope", "rope_table_cuda"),
        (blocks(half, 128), n_rows + 1),
        [table],
        (table, positions, inv_freq, half, 1.25, count(n_rows)),
        n_rows * head_dim * 4,
    )

    def check() -> float:
        untouched("further rows", table[n_rows:])
        expected = rope_table_ref(positions[:n_rows], inv_freq, 1.25)
        return compare("table", table[:n_rows], expected, atol=2.5e-7)

    return Case([launch], check)


def rope(n_rows: int, n_heads: int, head_dim: int) -> Case:
    width, half = n_heads * head_dim, head_dim // 2
    positions = RNG.integers(0, 100_000, n_rows)
    table = rope_table_ref(positions, normal(half), 1.0).astype(np.float32)
    x, out = normal(n_rows, width), poisoned(n_rows + 1, width)
    launch = Launch(
        kernel("rope", "rope_cuda"),
        (blocks(n_heads * half, 512), n_rows + 1),
        [out],
        (out, x, width, n_heads, half, table, count(n_rows)),
        nbytes(x, x, table),
    )

    def check() -> float:
        untouched("further rows", out[n_rows:])
        expected = rope_ref(x.reshape(n_rows, n_heads, head_dim), table).reshape(n_rows, width)
        return compare("out", out[:n_rows], expected, atol=2e-6)

    return Case([launch], check)


def swiglu(n_rows: int, width: int) -> Case:
    gate, up = normal(n_rows + 1, width, scale=4), normal(n_rows + 1, width)
    gate[0, :4] = [0, -100, 100, 1e-30]
    out = poisoned(n_rows + 1, width)
    launch = Launch(
        kernel("swiglu", "swiglu_cuda"),
        (blocks(width, 1024), n_rows + 1),
        [out],
        (out, gate, up, width, count(n_rows)),
        3 * n_rows * width * 4,
    )

    def check() -> float:
        untouched("further rows", out[n_rows:])
        return compare("out", out[:n_rows], swiglu_ref(gate[:n_rows], up[:n_rows]), rtol=2e-6, atol=1e-30)

    return Case([launch], check)


def embed(kind: str, n_rows: int, width: int, n_tokens: int) -> Case:
    values, table = stored(normal(n_tokens, width), kind)
    tokens, out = RNG.integers(0, n_tokens, n_rows + 1), poisoned(n_rows + 1, width)
    tokens[:1], tokens[n_rows:] = n_tokens - 1, 10**6
    launch = Launch(
        kernel("embed", "embed_cuda", kind),
        n_rows + 1,
        [out],
        (out, table, tokens, width, count(n_rows)),
        n_rows * (table.nbytes // n_tokens + width * 4),
    )

    def check() -> float:
        untouched("further rows", out[n_rows:])
        expected = np.ascontiguousarray(embed_ref(values, tokens[:n_rows]))
        return compare("out", out[:n_rows].view(np.uint32), expected.view(np.uint32))

    return Case([launch], check)


def embed_planes(name: str, n_rows: int, width: int, n_tokens: int) -> Case:
    weights, planes = device_matrix(name, n_tokens, width)
    tokens, out = RNG.integers(0, n_tokens, n_rows + 1), poisoned(n_rows + 1, width)
    tokens[:1], tokens[n_rows:] = n_tokens - 1, 10**6
    launch = Launch(
        kernel("embed", "embed_planes_cuda", name),
        n_rows + 1,
        [out],
        (out, *planes, tokens, width, count(n_rows)),
        n_rows * (DEVICE_LAYOUTS[name].row_bytes(width) + width * 4),
    )

    def check() -> float:
        untouched("further rows", out[n_rows:])
        expected = embed_ref(weights, tokens[:n_rows] % len(weights))
        return compare("out", out[:n_rows], expected, rtol=1e-6, atol=1e-6)

    return Case([launch], check)


def kv_append(
    kind: str,
    n_heads: int,
    head_dim: int,
    slots: list[int],
    positions: list[int],
    ring: tuple[int, int] = (0, 0),
) -> Case:
    """Rows appended to caches of as many slots and positions as these take; nothing else changes. ring:
    numbers of sinks and of places behind them that positions wrap around.
    """
    places = [ring_place(p, ring[0], ring[0], ring[1]) if ring[1] else p for p in positions]
    n_rows, row, n_positions = len(slots), n_heads * head_dim, max(places) + 1
    k, v = normal(n_rows + 1, row), normal(n_rows + 1, row)
    k[0, :3] = [np.inf, 1e-7, 70_000.0]
    caches = [stored(normal(max(slots) + 1, n_heads, n_positions, head_dim), kind)[1] for _ in range(2)]
    before = [cache.copy() for cache in caches]
    where = np.array([*slots, 0]), np.array([*positions, 0])
    launch = Launch(
        kernel("kv_append", "kv_append_cuda", kind),
        (blocks(row, 1024), n_rows + 1),
        caches,
        (
            *(*caches, n_heads * n_positions * head_dim, n_positions * head_dim),
            *(k, v, row, n_heads, head_dim, *where, count(n_rows), *ring),
        ),
        2 * n_rows * row * (8 if kind == "f32" else 6),
    )

    def check() -> float:
        for cache, held, rows in zip(caches, before, (k, v), strict=True):
            words = stored(rows[:n_rows], kind)[1].reshape(n_rows, n_heads, -1)
            append_rows_ref(held, words, where[0][:n_rows], np.array(places))
            compare("cache", cache.view(np.uint32), held.view(np.uint32))
        return 0.0

    return Case([launch], check)


def argmax(n_rows: int, n_tokens: int) -> Case:
    """Logits with equal ones."""
    logits = repeated(normal(min(n_rows, 3), n_tokens).round(1), n_rows + 1)
    ids, peaks = poisoned(n_rows + 1, dtype=np.int64), poisoned(n_rows + 1)
    launch = Launch(
        kernel("argmax", "argmax_cuda"),
        n_rows + 1,
        [ids, peaks],
        (ids, peaks, logits, n_tokens, count(n_rows)),
        n_rows * n_tokens * 4,
    )

    def check() -> float:
        untouched("further rows", ids[n_rows:])
        untouched("further peaks", peaks[n_rows:])
        compare("peaks", peaks[:n_rows], logits[:n_rows].max(axis=1))
        return compare("ids", ids[:n_rows], argmax_ref(logits[:n_rows]))

    return Case([launch], check)


# top_k, temperature, top_p, min_p
SAMPLING = (
    (40, 0.8, 0.95, 0.05),
    (60, 1.5, 1, 0),
    (7, 0.3, 0.5, 0),
    (64, 1, 1, 0.2),
    (1, 1, 1, 0),
    (9, 0, 1, 0),
)


def sample(most: int, n_rows: int, n_tokens: int) -> Case:
    """Rows of several parameters; the uniform number lies well inside the share of a token."""
    logits = normal(n_rows + 1, n_tokens, scale=3).round(2)
    ids = poisoned(n_rows + 1, 70, dtype=np.int32)
    given = [SAMPLING[row % len(SAMPLING)] for row in range(n_rows + 1)]
    uniforms, expected = np.empty(n_rows + 1, np.float32), []
    for row, (top_k, *params) in enumerate(given):
        ids[row, :top_k] = select_topk_ref(logits[row], top_k)
        uniforms[row], token = _inside(logits[row], ids[row, :top_k], *params)
        expected.append(token)
    counts = np.array([top_k for top_k, *_ in given])
    columns = [np.array(column, np.float32) for column in list(zip(*given, strict=True))[1:]]
    tokens = poisoned(n_rows + 1, dtype=np.int64)
    launch = Launch(
        kernel("sample_cuda", "sample_cuda", most),
        n_rows + 1,
        [tokens],
        (tokens, logits, n_tokens, ids, 70, counts, *columns, uniforms, count(n_rows)),
        int(counts[:n_rows].sum()) * 8,
    )

    def check() -> float:
        untouched("further rows", tokens[n_rows:])
        return compare("tokens", tokens[:n_rows], np.array(expected[:n_rows]))

    return Case([launch], check)


def _inside(logits: np.ndarray, ids: np.ndarray, *params: float) -> tuple[float, int]:
    """A uniform number that a small change does not give another token, and its token."""
    numbers = (np.arange(2000) / 2000 + 1e-4).astype(np.float32)
    tokens = np.array([sample_ref(logits, ids, *params, float(number)) for number in numbers])
    steady = np.flatnonzero((tokens[1:-1] == tokens[:-2]) & (tokens[1:-1] == tokens[2:])) + 1
    chosen = RNG.choice(steady)
    return float(numbers[chosen]), int(tokens[chosen])


def small() -> list[Sized]:
    return [
        sized("rms norm", rms_norm, 2, 576),
        sized("head norm", head_norm, 2, 9, 64),
        sized("rope table", rope_table, 2, 128),
        sized("rope", rope, 2, 9, 64),
        sized("swiglu", swiglu, 2, 1020),
        sized("embed", embed, "bf16", 2, 576, 11),
        sized("embed Q4_K", embed_planes, "Q4_K", 2, 512, 5),
        sized("append", kv_append, "bf16", 3, 64, [0, 2, 2], [0, 5, 4]),
        sized("append to a ring", kv_append, "f16", 2, 64, [0, 1, 2, 2], [3, 4, 132, 70], (4, 64)),
        sized("argmax", argmax, 1, 1000),
        sized("sample", sample, 64, 3, 300),
    ]


def real() -> list[Sized]:
    made = [
        sized("rms norm", rms_norm, 8192, 4096),
        sized("head norm", head_norm, 8192, 32, 128),
        sized("rope table", rope_table, 8192, 128),
        sized("rope", rope, 8192, 32, 128),
        sized("swiglu", swiglu, 2048, 14336),
        sized("argmax", argmax, 64, 152064),
        sized("sample of 64", sample, 64, 32, 32000),
        sized("sample of 1024", sample, 1024, 32, 32000),
    ]
    slots, positions = [row % 8 for row in range(8192)], [row // 8 for row in range(8192)]
    for kind in FLOATS:
        made.append(sized(f"embed {kind}", embed, kind, 8192, 4096, 32000))
        made.append(sized(f"append {kind}", kv_append, kind, 8, 128, slots, positions))
    coded = [name for name, layout in DEVICE_LAYOUTS.items() if not layout.is_float]
    return made + [sized(f"embed {name}", embed_planes, name, 8192, 4096, 32000) for name in coded]
