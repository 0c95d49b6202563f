"""Digests of pages and logits with them on a GPU, emulated, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases import pages
from cuda_cases.pages import page_digests, page_scores
from cuda_kernel import emulated_kernel, solve

from yakvrt.kernels.page_digests import page_digests_ref
from yakvrt.kernels.page_scores import page_scores_ref

RNG = np.random.default_rng(37)
KINDS = ("f32", "f16", "bf16")


def test_a_box_is_scored_by_its_best_point() -> None:
    k, q = RNG.standard_normal((2, 12, 3), np.float32), RNG.standard_normal((2, 4, 3), np.float32)
    digests = page_digests_ref(k, 4, False)
    corners = np.stack(np.meshgrid(*[[0, 1]] * 3), axis=-1).reshape(-1, 3).astype(bool)
    points = np.where(corners[:, None, None], digests[..., :3], digests[..., 3:])  # [8, H, n, D]
    best = np.einsum("hgd,chnd->chgn", q, points).max(axis=0)
    np.testing.assert_allclose(page_scores_ref(q, digests, True), best, rtol=1e-5, atol=1e-6)
    assert (page_scores_ref(q, k, False).reshape(2, 4, 3, 4).max(axis=3) <= best + 1e-5).all()


def test_centred_boxes_lie_within_the_extremes() -> None:
    k = RNG.standard_normal((2, 12, 3), np.float32)
    outer, inner = page_digests_ref(k, 4, False), page_digests_ref(k, 4, True)
    assert inner.shape == (2, 3, 6)
    assert (inner[..., :3] <= outer[..., :3] + 1e-6).all()
    assert (inner[..., 3:] >= outer[..., 3:] - 1e-6).all()
    np.testing.assert_allclose(inner[..., :3] + inner[..., 3:], outer[..., :3] + outer[..., 3:], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize("boxes", [True, False])
def test_scores(head_dim: int, kind: str, boxes: bool) -> None:
    solve(page_scores(head_dim, kind, boxes, 2, [5, 0, 3, 2]))


@pytest.mark.parametrize("group", [1, 3, 4, 16])
@pytest.mark.parametrize("boxes", [True, False])
def test_scores_of_groups(group: int, boxes: bool) -> None:
    solve(page_scores(64, "bf16", boxes, group, [2, 1]))


@pytest.mark.parametrize("head_dim", [2, 24, 30, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_other_head_dimensions(head_dim: int, kind: str) -> None:
    """With 24, keys are read 8 numbers at a time; with 30, two."""
    for boxes in (True, False):
        solve(page_scores(head_dim, kind, boxes, 1, [3], 1))


@pytest.mark.parametrize("n", [0, 1, 127, 128, 129])
def test_scores_of_lengths(n: int) -> None:
    solve(page_scores(16, "bf16", False, 1, [n, 130, n, n]))


def test_units_repeat_in_large_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "DISTINCT", 3)
    solve(page_scores(16, "f16", True, 2, [7, 8]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize("centred", [True, False])
def test_digests(head_dim: int, kind: str, centred: bool) -> None:
    """A page that begins among the sinks, none, and one that wraps around."""
    solve(page_digests(head_dim, kind, centred, 4, [7, 8, 23], (5, 9)))


@pytest.mark.parametrize("position", [7, 15, 23, 31, 39, 103])
def test_digests_of_rings_of_one_page(position: int) -> None:
    """Every place of a ring that holds no more than a page."""
    solve(page_digests(16, "f16", True, 8, [position], (8, 8), 1))
    solve(page_digests(16, "f16", True, 8, [position], (3, 11), 1))


@pytest.mark.parametrize("centred", [True, False])
def test_digests_of_wide_heads(centred: bool) -> None:
    solve(page_digests(256, "bf16", centred, 3, [2, 3, 8], (4, 5), 1))


@pytest.mark.parametrize("op", ["page_scores", "page_digests"])
def test_rows_without_a_kernel_are_refused(op: str) -> None:
    for head_dim in (0, 65, 258):
        with pytest.raises(ValueError, match=rf"heads of {head_dim} numbers: use even ones up to 256"):
            emulated_kernel(op, f"{op}_cuda", head_dim, "bf16", True)
    with pytest.raises(ValueError, match="pages of q8 rows: use f32, f16 or bf16"):
        emulated_kernel(op, f"{op}_cuda", 64, "q8", True)
