"""Tokens drawn where the logits lie: a step's own kernels, so that ids alone come to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..draw import MOST_CANDIDATES, Draw, Drawn
from ..kernel_build.spec import kernel
from ..kernels.select_topk_cuda import candidates_stride
from ..ops import Buffer

if TYPE_CHECKING:
    from .recorder import CudaRecorder


def drawing_bytes(n_slots: int, n_tokens: int) -> int:
    """Scratch of the steps that decode up to n_slots rows of n_tokens logits, a power of two each."""
    rows = 1 << (n_slots - 1).bit_length()
    return 2 * rows * 4 * candidates_stride(n_tokens)


class CudaDrawing:
    """backend.Drawing. What is asked goes to the device before a step, what is found comes back behind it."""

    def __init__(self, recorder: CudaRecorder, logits: Buffer) -> None:
        """Records into the recorder's part. Raises: DeviceError."""
        self._backend = backend = recorder.backend
        self._n = n = recorder.capacity
        self._given = np.zeros(3 * n, np.int64)  # top_k, then temperature, top_p, min_p, uniform
        self._top_k, self._shares = self._given[:n], self._given[n:].view(np.float32).reshape(4, n)
        numbers = backend.array(self._given.shape, np.int64)
        self._ring = backend.upload_ring(numbers)
        self._found = backend.array((3 * n,), np.int64)  # largest, drawn, peaks
        self._read = backend.pinned((3 * n,), np.int64).array.view(np.int64)
        largest, drawn, peaks = (self._found.part(i * n, n) for i in range(3))
        rows = (logits.data, logits.width)
        recorder.launch(kernel("argmax", "argmax_cuda"), (n, 1), largest, peaks, *rows, recorder.n_rows)
        ids = recorder.scratch("drawn_ids", n * MOST_CANDIDATES, np.int32)
        counts = recorder.scratch("drawn_counts", n, np.int64)
        lengths, stride = backend.put(np.full(n, logits.width)), candidates_stride(logits.width)
        candidates = recorder.scratch("candidates", n * stride, np.uint32)
        top_k, shares = numbers.part(0, n), numbers.address + 8 * n
        recorder.launch(
            kernel("select_topk_cuda", "select_topk_cuda"),
            (n, 1),
            *(ids, MOST_CANDIDATES, counts, *rows, lengths, top_k, candidates, stride, recorder.n_rows),
        )
        recorder.launch(
            kernel("sample_cuda", "sample_cuda", MOST_CANDIDATES),
            (n, 1),
            *(drawn, *rows, ids, MOST_CANDIDATES, counts),
            *(shares + 4 * n * i for i in range(4)),
            recorder.n_rows,
        )

    def ask(self, draws: Sequence[Draw | None]) -> None:
        """For the rows of the next step. Raises: DeviceError."""
        self._top_k[:] = 1
        self._shares[:] = 0
        for row, draw in enumerate(draws):
            if draw and draw.temperature > 0:
                self._top_k[row] = draw.top_k
                self._shares[:, row] = draw[1:]
        self._ring.upload(self._given, self._backend.stream)

    def drawn(self, draws: Sequence[Draw | None]) -> list[Drawn | None]:
        """What the step found, once it has run. Raises: DeviceError."""
        stream = self._backend.stream
        self._found.download(0, self._read, stream)
        stream.synchronise()
        largest, drawn, peaks = self._read.reshape(3, self._n)
        peaks = peaks.view(np.float32)
        return [
            Drawn(int((drawn if draw.temperature > 0 else largest)[row]), float(peaks[row])) if draw else None
            for row, draw in enumerate(draws)
        ]
