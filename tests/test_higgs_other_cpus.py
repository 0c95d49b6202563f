"""The HIGGS kernels as other CPUs would run them: AVX2 without AVX-512, AVX-512 without VBMI, all of AVX-512
without matrix registers, Zen 4, and SSE2.
"""

from __future__ import annotations

import pytest
from test_other_cpus import AVX2, run_as

from yakvrt.cpu.features import host_features

AVX512 = AVX2 + ",+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512cd"
SELECTION = (
    "2t and (q4-48 or q3-64 or q8-80 or bf16-48 or 48-q4 or 64-q3 or 128-q4 or 96-q8 or 2bit-64 or 1bit-48"
    " or 1.5bit-64 or select_topk or equal or rotate and (48 or 128))"
    " or grows and 500 and (2bit-r3-64 or 1.5bit-r3-128)"
)


@pytest.mark.skipif(
    not (host_features().avx512_vbmi and host_features().avx512_gfni),
    reason="this CPU has no AVX-512 VBMI and GFNI to run it",
)
@pytest.mark.parametrize("cpu", ["icelake-server", "znver4"])
def test_scores_without_matrix_registers(cpu: str) -> None:
    if cpu == "znver4" and host_features().fast_permutations:
        pytest.skip("the tests of this CPU run it")
    flags = f"{AVX512},+avx512vbmi,+avx512vnni,+gfni"
    run_as(cpu, f"{flags},-sse4a", "2t and test_score", ["kernel_higgs_score"], 10)


@pytest.mark.parametrize(
    ("cpu", "flags"), [("haswell", AVX2), ("skylake-avx512", AVX512), ("generic", "")], ids=lambda v: v[:8]
)
def test_higgs_on_another_cpu(cpu: str, flags: str) -> None:
    names = ("higgs_rows", "higgs_selector", "higgs_score", "select_topk", "rotate", "yakv")
    run_as(cpu, flags, SELECTION, [f"kernel_{name}" for name in names], 20)
