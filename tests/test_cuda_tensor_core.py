"""Tensor core ops in a small matmul: the emulator against numpy, the machine code against its promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emulated_ops import emulated
from cuda_kernel import run_kernel

from yakvrt.kernels.cuda_kernel import CudaKernel

RNG = np.random.default_rng(17)
# C [16, 8 * n] = A [16, K] B, a warp for each 8 columns
K, N_WARPS, STEP = 64, 4, 32
PITCH = STEP + 8  # numbers between rows in shared memory: their 16-byte pieces hit different banks
PITCH_T = 8 * N_WARPS + 8


def small_matmul(g: Any, by_rows: bool) -> CudaKernel:
    """B rests as [columns, K], or `by_rows` as [K, columns], which ldmatrix transposes."""
    n_columns = 8 * N_WARPS
    a_size, b_size = 16 * PITCH, max(n_columns * PITCH, STEP * PITCH_T)
    a_pieces, b_pieces = 16 * STEP // 8, n_columns * STEP // 8
    threads = N_WARPS * 32

    def kernel(out, a, b, n_valid):  # type: ignore[no-untyped-def]
        held_a, held_b = g.shared_u16(a_size), g.shared_u16(b_size)
        thread, lane, warp = g.thread(), g.lane(), g.thread() // 32
        c0, c1, c2, c3 = g.float32(0), g.float32(0), g.float32(0), g.float32(0)
        for k in range(0, K, STEP):
            for i in range(thread, a_pieces, threads):
                row, column = i // (STEP // 8), i % (STEP // 8) * 8
                g.copy_async_or_zero(held_a, row * PITCH + column, a, row * K + k + column, row < n_valid)
            for i in range(thread, b_pieces, threads):
                if by_rows:
                    row, column = i // N_WARPS, i % N_WARPS * 8
                    g.copy_async(held_b, row * PITCH_T + column, b, (k + row) * n_columns + column)
                else:
                    row, column = i // (STEP // 8), i % (STEP // 8) * 8
                    g.copy_async(held_b, row * PITCH + column, b, row * K + k + column)
            g.copy_async_commit()
            g.copy_async_wait(0)
            g.sync_threads()
            for part in range(0, STEP, 32):
                for j in range(part, part + 32, 16):
                    a0, a1, a2, a3 = g.load_matrix_x4(held_a, lane % 16 * PITCH + j + lane // 16 * 8)
                    if by_rows:
                        b0, b1 = g.load_matrix_x2_transposed(held_b, (j + lane % 16) * PITCH_T + warp * 8)
                    else:
                        place = (warp * 8 + lane % 8) * PITCH + j + lane // 8 % 2 * 8
                        b0, b1 = g.load_matrix_x2(held_b, place)
                    c0, c1, c2, c3 = g.mma_m16n8k16_bf16(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3)
            g.sync_threads()
        at = lane // 4 * n_columns + warp * 8 + lane % 4 * 2
        out[at], out[at + 1] = c0, c1
        out[at + 8 * n_columns], out[at + 8 * n_columns + 1] = c2, c3

    promised = ("HMMA.16816.F32.BF16", "LDSM.16", "LDGSTS.E.BYPASS")
    return CudaKernel(kernel, "f32* u16* u16* i32", threads, opcodes=promised)


def bf16(x: np.ndarray) -> np.ndarray:
    import ml_dtypes

    return x.astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("by_rows", [False, True])
def test_a_small_matmul(by_rows: bool) -> None:
    n_valid, n_columns = 13, 8 * N_WARPS
    a, b = bf16(RNG.standard_normal((16, K))), bf16(RNG.standard_normal((K, n_columns)))
    out = np.full((16, n_columns), np.nan, np.float32)
    held_b = np.ascontiguousarray(b if by_rows else b.T).view(np.uint16)
    run_kernel(small_matmul(emulated, by_rows), 1, [out], out, a.view(np.uint16), held_b, n_valid)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(out[:n_valid], expected[:n_valid], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(out[n_valid:], 0)


@pytest.mark.parametrize("transposed", [False, True])
def test_four_matrices_at_once(transposed: bool) -> None:
    """Word m of lane l is row l/4, columns 2(l%4) and the next, of matrix m."""
    load = emulated.load_matrix_x4_transposed if transposed else emulated.load_matrix_x4

    def kernel(out, x):  # type: ignore[no-untyped-def]
        held, lane = emulated.shared_u16(256), emulated.lane()
        for i in range(lane * 8, lane * 8 + 8):
            held[i] = x[i]
        emulated.sync_warp()
        for m, word in enumerate(load(held, lane * 8)):
            out[m * 32 + lane] = word

    x = RNG.integers(0, 2**16, (4, 8, 8)).astype(np.uint16)
    out = np.zeros((4, 32), np.uint32)
    run_kernel(CudaKernel(kernel, "u32* u16*", 32), 1, [out], out, x)
    matrices = x.transpose(0, 2, 1) if transposed else x
    np.testing.assert_array_equal(out, np.ascontiguousarray(matrices).reshape(4, 64).view(np.uint32))


def test_a_matrix_is_transposed_between_lanes() -> None:
    def kernel(out, x):  # type: ignore[no-untyped-def]
        out[emulated.lane()] = emulated.transpose_matrix(x[emulated.lane()])

    x, out = RNG.integers(0, 2**16, (8, 8)).astype(np.uint16), np.zeros(32, np.uint32)
    run_kernel(CudaKernel(kernel, "u32* u32*", 32), 1, [out], out, x.reshape(-1).view(np.uint32))
    np.testing.assert_array_equal(out.view(np.uint16).reshape(8, 8), x.T)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_one_product_of_each_format(kind: str) -> None:
    import ml_dtypes

    mma = getattr(emulated, f"mma_m16n8k16_{kind}")

    def kernel(out, a, b, c):  # type: ignore[no-untyped-def]
        lane = emulated.lane()
        row, column = lane // 4, lane % 4
        words = [a[row * 8 + column + down * 64 + right * 4] for right in (0, 1) for down in (0, 1)]
        pair = [b[row * 8 + column + down * 4] for down in (0, 1)]
        at = [(row + 8 * down) * 8 + column * 2 + e for down in (0, 1) for e in (0, 1)]
        for place, value in zip(at, mma(*words, *pair, *(c[i] for i in at)), strict=True):
            out[place] = value

    number = np.float16 if kind == "f16" else ml_dtypes.bfloat16
    a, b = RNG.standard_normal((16, 16)).astype(number), RNG.standard_normal((8, 16)).astype(number)
    c, out = RNG.standard_normal((16, 8)).astype(np.float32), np.full((16, 8), np.nan, np.float32)
    words = [x.reshape(-1).view(np.uint32) for x in (a, b)]
    run_kernel(CudaKernel(kernel, "f32* u32* u32* f32*", 32), 1, [out], out, *words, c)
    np.testing.assert_allclose(out, a.astype(np.float64) @ b.astype(np.float64).T + c, rtol=0, atol=1e-5)


def test_bytes_are_permuted_and_words_reached_by_bytes() -> None:
    def kernel(out, x):  # type: ignore[no-untyped-def]
        if emulated.lane() == 0:
            out[0] = emulated.permute_bytes(0x44332211, 0x88776655, 0x5410)
            out[1] = emulated.permute_bytes(0x44332211, 0x88776655, 0x7632)
            out[2] = emulated.permute_bytes(0xDDCCBBAA, 0x0000007C, 0x5524)
            out[3] = emulated.load_u32_at(x, 8)
            out[4], out[5] = emulated.load_constant_u32x2(x, 2)

    out = np.zeros(6, np.uint32)
    run_kernel(CudaKernel(kernel, "u32* u32*", 32), 1, [out], out, np.arange(10, 14, dtype=np.uint32))
    assert [hex(word) for word in out[:3]] == ["0x66552211", "0x88774433", "0xcc7c"]
    assert out[3:].tolist() == [12, 12, 13]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_the_machine_code_uses_tensor_cores(arch: str) -> None:
    from yakvrt.cuda import device_ops
    from yakvrt.cuda.compile import assemble, make_ptx, read_resources
    from yakvrt.cuda.disassembly import count_instructions

    for by_rows in (False, True):
        built = small_matmul(device_ops, by_rows)
        code, log = assemble(make_ptx(built, "small_matmul"), arch)
        resources = read_resources(log)
        assert resources.spill_bytes == resources.stack_bytes == 0
        counts = count_instructions([code], arch)
        assert counts
        (counted,) = counts
        for promised in built.opcodes:
            assert any(name.startswith(promised) for name in counted), f"no {promised} in {counted}"
