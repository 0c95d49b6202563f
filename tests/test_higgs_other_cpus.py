"""The HIGGS kernels as other CPUs would run them: AVX2 without AVX-512, AVX-512 without VBMI, and SSE2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_other_cpus import AVX2

AVX512 = AVX2 + ",+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512cd"
SELECTION = (
    "2t and (q4-48 or q3-64 or q8-80 or bf16-48 or 48-q4 or 64-q3 or 128-q4 or 96-q8 or 2bit-64 or 1bit-48"
    " or 1.5bit-64 or select_topk or equal or rotate and (48 or 128))"
    " or grows and 500 and (2bit-r3-64 or 1.5bit-r3-128)"
)


@pytest.mark.parametrize(
    ("cpu", "flags"), [("haswell", AVX2), ("skylake-avx512", AVX512), ("generic", "")], ids=lambda v: v[:8]
)
def test_higgs_on_another_cpu(cpu: str, flags: str) -> None:
    here = Path(__file__).parent
    names = ("higgs_rows", "higgs_selector", "higgs_score", "select_topk", "rotate", "yakv")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", SELECTION]
        + [str(here / f"test_kernel_{name}.py") for name in names],
        env={**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": flags},
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=here.parent,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    n_passed = int(done.stdout.rsplit(" passed", 1)[0].rsplit(None, 1)[-1])
    assert n_passed > 20
