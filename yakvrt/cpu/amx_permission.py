"""Whether this process may use the tile registers of AMX, which Linux grants on request."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18


@functools.cache
def amx_permitted() -> bool:
    """Whether this process may use tile registers. Asks Linux, once, for all its threads, later ones too."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    return int(syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)) == 0
