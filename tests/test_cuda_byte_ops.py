"""The emulator's ops on bits and bytes, against numpy."""

from __future__ import annotations

from typing import Any

import cuda_emulated_tensor  # noqa: F401 (adds to the vocabulary)
import numpy as np
import pytest
from cuda_emulated_memory import EmulationError
from cuda_emulated_ops import emulated as g
from cuda_emulator import launch

from yakvrt.kernels.cuda_kernel import CudaKernel

RNG = np.random.default_rng(23)


def test_bits_bytes_and_words() -> None:
    def kernel(out: Any, words: Any) -> None:
        if g.thread() == 0:
            out[0] = g.count_ones(words[0])
            out[1] = g.permute_bytes(words[1], words[2], 0x7041)
            out[2] = g.load_u32_at(words, 12)
            out[3], out[4] = (g.funnel_right(words[1], words[2], n) for n in (0, 20))
            out[5] = g.mask_bits(words[1], 0xFF00FF)

    out = np.zeros(6, np.uint32)
    words = np.array([0xF0000001, 0x33221100, 0x77665544, 99], np.uint32)
    launch(CudaKernel(kernel, "u32* u32*", 32), 1, out, words)
    assert out.tolist() == [5, 0x77004411, 99, 0x33221100, 0x65544332, 0x220000]

    def wrong(out: Any) -> None:
        out[0] = g.permute_bytes(1, 2, 0x8000)

    with pytest.raises(EmulationError, match="permutes bytes by 0x8000, whose digits must be 0 to 7"):
        launch(CudaKernel(wrong, "u32*", 32), 1, out)

    def too_far(out: Any) -> None:
        out[0] = g.funnel_right(1, 2, 32)

    with pytest.raises(EmulationError, match="shifts two words by 32: it must be 0 to 31"):
        launch(CudaKernel(too_far, "u32*", 32), 1, out)


def test_powers_that_are_no_normal_numbers_become_0() -> None:
    assert g.exp2(np.float32(-126)) == np.float32(2**-126)
    assert g.exp2(np.float32(-127)) == g.exp2(np.float32(-np.inf)) == 0


def test_a_product_of_byte_tiles() -> None:
    """The fragments as the PTX manual lays them out."""
    a, b = RNG.integers(0, 256, (16, 32)), RNG.integers(-128, 128, (32, 8))
    c = RNG.integers(-1000, 1000, (16, 8)).astype(np.int32)
    out = c.copy()
    a_words = a.astype(np.uint8).view(np.uint32)
    b_words = np.ascontiguousarray(b.T).astype(np.int8).view(np.uint32)

    def kernel(out: Any, a: Any, b: Any) -> None:
        row, column = g.lane() // 4, g.lane() % 4
        places = [row * 8 + column * 2, row * 8 + column * 2 + 1]
        places += [place + 64 for place in places]
        words = [a[(row + down) * 8 + column + right] for right in (0, 4) for down in (0, 8)]
        words += [b[row * 8 + column], b[row * 8 + column + 4]]
        sums = g.mma_m16n8k32_u8_s8(*words, *(out[place] for place in places))
        for place, total in zip(places, sums, strict=True):
            out[place] = total

    launch(CudaKernel(kernel, "i32* u32* u32*", 32), 1, out, a_words, b_words)
    np.testing.assert_array_equal(out, a @ b + c)
