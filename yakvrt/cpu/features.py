"""Which instruction sets the kernels may use on this machine."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import llvmlite.binding as llvm

from .amx_permission import amx_permitted


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """The compilation target: LLVM's cpu name and features, and those that choose a code path."""

    cpu_name: str
    flags: str
    x86: bool
    avx512: bool
    avx512_vnni: bool
    avx512_vbmi: bool
    avx512_gfni: bool
    avx512_bf16: bool
    amx_bf16: bool
    amx_int8: bool
    avx2: bool
    f16c: bool

    @property
    def fast_bf16_dots(self) -> bool:
        """Whether vdpbf16ps beats float32: on AMD's cores, which are said to start one wherever they start a
        multiply-add (unmeasured here); on an Intel Xeon it was slower. LLVM names a CPU after CPUID's vendor
        and family.
        """
        return self.avx512_bf16 and self.cpu_name.startswith("znver")

    @property
    def fast_permutations(self) -> bool:
        """Whether a permutation of 128 bytes is as fast as a dot product of bytes: a cycle each on Zen 4
        (measured). Intel's cores take two on the one port that permutes.
        """
        complete = self.avx512_vbmi and self.avx512_vnni and self.avx512_gfni
        return complete and self.cpu_name.startswith("znver")


def host_features() -> CpuFeatures:
    """The features of this CPU, or those NUMBA_CPU_NAME and NUMBA_CPU_FEATURES force.

    Numba reads the same two variables, so a test that sets them runs another machine's code path.
    """
    cpu_name = os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name()
    flags = os.environ.get("NUMBA_CPU_FEATURES")
    if flags is None:
        flags = "" if cpu_name == "generic" else llvm.get_host_cpu_features().flatten()
    enabled = {flag[1:] for flag in flags.split(",") if flag.startswith("+")}
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return CpuFeatures(
        cpu_name=cpu_name,
        flags=flags,
        x86=x86,
        avx512=x86 and {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= enabled,
        avx512_vnni=x86 and {"avx512f", "avx512bw", "avx512vnni"} <= enabled,
        avx512_vbmi=x86 and {"avx512f", "avx512bw", "avx512vbmi"} <= enabled,
        avx512_gfni=x86 and {"avx512f", "avx512bw", "gfni"} <= enabled,
        avx512_bf16=x86 and {"avx512f", "avx512bw", "avx512bf16"} <= enabled,
        amx_bf16=x86 and {"avx512f", "avx512bw", "amx-tile", "amx-bf16"} <= enabled and amx_permitted(),
        amx_int8=x86 and {"avx512f", "avx512bw", "amx-tile", "amx-int8"} <= enabled and amx_permitted(),
        avx2=x86 and "avx2" in enabled,
        f16c=x86 and "f16c" in enabled,
    )
