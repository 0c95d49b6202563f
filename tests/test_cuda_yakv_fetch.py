"""The cache of host rows on a GPU, emulated: places as the truth gives them, copies of what is missing."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_kernel import count, emulated_kernel, run_kernel

from yakvrt.kernels.yakv_fetch import forget_ref, yakv_fetch_ref
from yakvrt.kernels.yakv_fetch_cuda import directory_words

RNG = np.random.default_rng(41)


def empty_cache(n_places: int) -> dict[int, int]:
    """A head's cache as yakv_fetch_ref keeps it."""
    return {-1 - place: place for place in range(n_places)}


class Heads:
    """Directories of heads, and what the truth makes of them."""

    def __init__(self, n_slots: int, n_heads: int, n_places: int, n_rows: int) -> None:
        self.n_heads, self.n_places, self.n_rows = n_heads, n_places, n_rows
        self.directory = np.zeros((n_slots, n_heads, directory_words(n_places, n_rows) + 3), np.int32)
        self.caches = [[empty_cache(n_places) for _ in range(n_heads)] for _ in range(n_slots)]

    def launch(self, builder: str, slots: list[int], outputs: list[np.ndarray], *arguments: object) -> None:
        kernel = emulated_kernel("yakv_fetch_cuda", builder)
        strides = [stride // 4 for stride in self.directory.strides[:2]]
        given = (self.directory.reshape(-1), *strides, self.n_places, np.array([*slots, 0]), self.n_heads)
        n_blocks = (len(slots) + 1) * self.n_heads
        outputs = [self.directory, *outputs]
        run_kernel(kernel, n_blocks, outputs, *given, *arguments, count(len(slots)))

    def fetch(self, slots: list[int], largest: int) -> None:
        """One step of random selections, against the truth."""
        n_segments, width = (len(slots) + 1) * self.n_heads, largest + 2
        counts = RNG.integers(0, largest + 1, n_segments)
        counts[0] = largest
        ids = np.full((n_segments, width), -7, np.int32)
        for row, n in zip(ids, counts, strict=True):
            row[:n] = np.sort(RNG.choice(self.n_rows, n, replace=False))
        places, missing, targets = (np.full_like(ids, -7) for _ in range(3))
        n_missing = np.full(n_segments, -7)
        outputs = [places, missing, targets, n_missing]
        self.launch("yakv_fetch_cuda", slots, outputs, ids, width, counts, *outputs)
        for segment in range(len(slots) * self.n_heads):
            slot, head, n = slots[segment // self.n_heads], segment % self.n_heads, counts[segment]
            cache = self.caches[slot][head]
            expected, absent = yakv_fetch_ref(cache, ids[segment, :n].tolist())
            np.testing.assert_array_equal(places[segment, :n], expected)
            assert (places[segment, n:] == -7).all()
            assert n_missing[segment] == len(absent)
            assert missing[segment, : len(absent)].tolist() == absent
            assert targets[segment, : len(absent)].tolist() == [cache[row] for row in absent]
        assert (n_missing[len(slots) * self.n_heads :] == -7).all()

    def forget(self, slots: list[int], firsts: list[int], lasts: list[int]) -> None:
        self.launch("yakv_forget_cuda", slots, [], np.array([*firsts, 0]), np.array([*lasts, 9]))
        for slot, first, last in zip(slots, firsts, lasts, strict=True):
            for cache in self.caches[slot]:
                forget_ref(cache, first, last)


def test_steps_hit_replace_and_forget_as_the_truth_does() -> None:
    heads = Heads(n_slots=3, n_heads=2, n_places=37, n_rows=90)
    heads.forget([1], [3], [60])  # of an empty cache
    for step in range(5):
        heads.fetch([2, 0], 37)
        heads.fetch([0], 12)
        if step % 2:
            heads.forget([2, 0, 1], [step * 7, 64, 5], [step * 7 + 64, 80, 5])


def test_more_places_than_threads() -> None:
    heads = Heads(n_slots=1, n_heads=1, n_places=700, n_rows=1400)
    heads.fetch([0], 650)
    heads.fetch([0], 600)
    heads.forget([0], [10], [900])
    heads.fetch([0], 700)


@pytest.mark.parametrize(("row_bytes", "n_blocks"), [(64, 1), (112, 3), (512, 2)])
@pytest.mark.parametrize("packed", [False, True])
def test_gather(row_bytes: int, n_blocks: int, packed: bool) -> None:
    n_slots, n_heads, n_rows, n_places, words = 3, 2, 150, 70, row_bytes // 4
    slots = np.array([2, 0, 1])
    n_batch, n_segments = 2, 6
    rows = RNG.integers(0, 2**32, (n_slots, n_heads, n_rows, words), dtype=np.uint32)
    scales = RNG.integers(0, 2**32, (n_slots, n_heads, n_rows), dtype=np.uint32)
    counts = np.array([70, 0, 1, 33, 5, 5])
    ids, targets = np.full((n_segments, 72), -7, np.int32), np.full((n_segments, 72), -7, np.int32)
    for segment, n in enumerate(counts):
        ids[segment, :n] = RNG.choice(n_rows, n, replace=False)
        targets[segment, :n] = RNG.choice(n_places, n, replace=False)
    n_out = n_batch if packed else n_slots
    out = np.full((n_out, n_heads, n_places, words), 0xCDCDCDCD, np.uint32)
    out_scales = np.full((n_out, n_heads, n_places), 0xCDCDCDCD, np.uint32)
    expected, expected_scales = out.copy(), out_scales.copy()
    for segment in range(n_batch * n_heads):
        row, head = divmod(segment, n_heads)
        n, slot = counts[segment], slots[row]
        to = (row if packed else slot, head, np.arange(n) if packed else targets[segment, :n])
        expected[to], expected_scales[to] = (x[slot, head, ids[segment, :n]] for x in (rows, scales))

    def with_strides(x: np.ndarray) -> tuple[object, ...]:
        return (x, x.strides[0] // 4, x.strides[1] // 4)

    arrays = [part for x in (out, out_scales, rows, scales) for part in with_strides(x)]
    own_targets = None if packed else targets
    kernel = emulated_kernel("yakv_gather_cuda", "yakv_gather_cuda", row_bytes, packed)
    arguments = (slots, n_heads, ids, own_targets, 72, counts, count(n_batch))
    run_kernel(kernel, n_blocks, [out, out_scales], *arrays, *arguments)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(out_scales, expected_scales)


@pytest.mark.parametrize("row_bytes", [8, 100, 2048])
def test_rows_that_cannot_be_gathered_are_refused(row_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"rows of {row_bytes} bytes cannot be gathered: use a multiple of"):
        emulated_kernel("yakv_gather_cuda", "yakv_gather_cuda", row_bytes, True)
