"""Attention on a GPU, emulated: decode and prefill over resident rows, and joining partials."""

from __future__ import annotations

import pytest
from cuda_cases.attention import decode_attention, merge_partials, plain_attention, prefill_attention
from cuda_kernel import emulated_kernel, solve


@pytest.mark.parametrize(
    ("group", "head_dim", "kind", "lengths", "n_splits"),
    [
        (4, 128, "bf16", (1, 83), 2),
        (3, 64, "f16", (64, 65, 150), 3),
        (1, 64, "bf16", (17,), 1),
        (8, 64, "bf16", (40,), 1),
        (9, 64, "f16", (70,), 2),
        (16, 128, "bf16", (33,), 1),
        (2, 256, "f16", (20,), 1),
        (20, 192, "bf16", (9,), 1),
    ],
)
def test_attend_decode(group: int, head_dim: int, kind: str, lengths: tuple[int, ...], n_splits: int) -> None:
    solve(decode_attention(group, head_dim, kind, lengths, n_splits))


@pytest.mark.parametrize(
    ("group", "head_dim", "kind", "lengths", "n_splits", "ring"),
    [
        (4, 64, "bf16", (3, 4, 68, 69), 1, (4, 64)),  # sinks alone, a full window, one more
        (2, 64, "f16", (132, 133, 197, 331), 2, (5, 64)),  # the window wraps around
        (1, 128, "bf16", (300,), 1, (0, 128)),
    ],
)
def test_attend_ring(
    group: int, head_dim: int, kind: str, lengths: tuple[int, ...], n_splits: int, ring: tuple[int, int]
) -> None:
    solve(decode_attention(group, head_dim, kind, lengths, n_splits, ring=ring))


@pytest.mark.parametrize(
    ("head_dim", "n_partials", "n_heads", "n_rows"),
    [(64, 1, 3, 2), (128, 37, 2, 1), (256, 5, 1, 2), (80, 66, 2, 1), (48, 4, 1, 1), (512, 3, 1, 1)],
)
def test_merge_partials(head_dim: int, n_partials: int, n_heads: int, n_rows: int) -> None:
    solve(merge_partials(head_dim, n_partials, n_heads, n_rows))


@pytest.mark.parametrize(
    ("parameters", "told"),
    [((80, "bf16"), "64, 128, 192, 256"), ((64, "f32"), "bf16 or f16")],
)
def test_shapes_without_a_kernel_are_refused(parameters: tuple[int, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        emulated_kernel("attend_decode_cuda", "attend_decode_cuda", *parameters, False)


@pytest.mark.parametrize(
    ("group", "head_dim", "kind", "start", "n_tokens"),
    [
        (1, 64, "bf16", 0, 129),
        (5, 64, "f16", 66, 26),
        (16, 64, "bf16", 61, 9),
        (3, 128, "f16", 60, 7),
        (2, 256, "bf16", 30, 3),
        (16, 192, "f16", 0, 1),
    ],
)
def test_attend_prefill(group: int, head_dim: int, kind: str, start: int, n_tokens: int) -> None:
    solve(prefill_attention(group, head_dim, kind, start, n_tokens, 2 if head_dim == 192 else 1))


@pytest.mark.parametrize(
    ("group", "head_dim", "kind", "lengths"),
    [
        (4, 16, "f32", (1, 31, 200)),
        (1, 80, "f16", (33,)),
        (3, 112, "bf16", (130, 2)),
        (2, 256, "f32", (5,)),
        (2, 2, "bf16", (40,)),
    ],
)
def test_attend_plain(group: int, head_dim: int, kind: str, lengths: tuple[int, ...]) -> None:
    solve(plain_attention(group, head_dim, kind, lengths))


@pytest.mark.parametrize(("shape", "told"), [((7, "f32"), "even ones"), ((64, "q8"), "f32, f16 or bf16")])
def test_attend_plain_refuses_what_it_cannot_do(shape: tuple[int, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        emulated_kernel("attend_plain_cuda", "attend_plain_cuda", *shape)
