"""The system's clocks, as kernels read them."""

from __future__ import annotations

import time
from typing import Any

from numba.core import types

WALL = time.CLOCK_MONOTONIC
OWN = time.CLOCK_THREAD_CPUTIME_ID  # what the calling thread has run

# clock_gettime(clock, address of two int64: seconds and nanoseconds)
clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))
