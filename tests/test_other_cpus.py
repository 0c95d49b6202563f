"""The kernels as other CPUs would run them: with AVX-512 but without GFNI and matrix registers, with fast dot
products of bfloat16, with AVX2 but no AVX-512, and with nothing beyond SSE2.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from yakvrt.cpu.features import host_features

AVX2 = "+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+f16c,+fma,+avx2,+bmi,+bmi2,+lzcnt"
AVX512 = f"{AVX2},+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512cd,+avx512vnni"
# one of every way to read a tile; the rest differ only in sizes
FORMATS = "Q4_1 or Q5_0 or Q8_0 or Q2_K or Q6_K or -F16"
SELECTION = (
    f"2t and (test_matmul and 33-512 and ({FORMATS}) or matmul_gated and ({FORMATS})"
    f" or embed_reads and ({FORMATS})"
    " or attend and (3-64 or 7-48) or pack_activations or rms_norm or rope or moe"
    " or kv_append and 64)"
)


@pytest.mark.skipif(not host_features().avx512_vnni, reason="this CPU has no AVX-512 VNNI to run it")
def test_reading_tiles_without_gfni() -> None:
    run_as("cascadelake", AVX512, f"2t and test_matmul and 33-512 and ({FORMATS})", ["kernel_matmul"], 10)


@pytest.mark.skipif(not host_features().avx512_bf16, reason="this CPU has no AVX512-BF16 to run it")
def test_prompts_of_16_bit_weights_on_zen_4() -> None:
    selection = "2t and (test_matmul_bf16 or which_weights) or conversion_at_load and bf16"
    run_as("znver4", f"{AVX512},+avx512bf16,-sse4a", selection, ["kernel_matmul_bf16", "weights"], 15)


@pytest.mark.parametrize(("cpu", "flags"), [("haswell", AVX2), ("generic", "")])
def test_kernels_on_another_cpu(cpu: str, flags: str) -> None:
    files = ["kernel_matmul", "kernel_attend", "kernel_moe", "kernels_elementwise"]
    run_as(cpu, flags, SELECTION, files, 50)


def run_as(cpu: str, flags: str, selection: str, files: list[str], least: int) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", selection]
    done = subprocess.run(
        [*command, *(str(here / f"test_{name}.py") for name in files)],
        env={**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": flags},
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=here.parent,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    n_passed = int(done.stdout.rsplit(" passed", 1)[0].rsplit(None, 1)[-1])
    assert n_passed > least
