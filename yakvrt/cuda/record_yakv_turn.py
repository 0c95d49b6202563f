"""Records a turn of YAKV's attention: some rows of a batch are scored and selected together, their selected
rows fetched, and attended to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..kernel_build.spec import kernel
from ..kernels.attend_fragments import head_blocks
from ..kernels.higgs_layout import BLOCK_TOKENS, SELECTORS, row_bytes
from ..kernels.select_topk_cuda import candidates_stride
from ..ops import Buffer
from .kernel_choice import SCORE_TOKENS
from .record_codes import pool_words
from .yakv_pools import RowPool, YakvRows

if TYPE_CHECKING:
    from .device_array import DeviceArray
    from .recorder import CudaRecorder
    from .yakv_scratch import YakvScratch


def cache_words(rows: YakvRows, n_kv_heads: int) -> tuple[Any, ...]:
    """The directory of the cache of rows from the host, its strides, and how many rows a head has there."""
    assert rows.cached
    assert rows.directory
    head = rows.directory.shape[2]
    return rows.directory, n_kv_heads * head, head, rows.cached.n_rows


@dataclass(frozen=True, slots=True)
class YakvTurn:
    """Rows `first`, first + 1, ... of a batch. totals: as yakv_lengths_cuda writes them; n_splits: shares of
    the selected rows, whose partial results lie behind that of the ring.
    """

    recorder: CudaRecorder
    rows: YakvRows
    held: YakvScratch
    first: int
    totals: DeviceArray
    n_splits: int
    n_partials: int

    @property
    def _n_rows(self) -> int:
        return len(self.held.lse)

    @property
    def _n_tokens(self) -> int:
        return self.rows.n_blocks * BLOCK_TOKENS

    @property
    def _slots(self) -> DeviceArray:
        return self.recorder.device_batch.slots.part(self.first, self._n_rows)

    @property
    def _n_segments(self) -> int:
        return self._n_rows * self.recorder.n_kv_heads

    def select(self) -> None:
        """The logits of all indexed keys, the normaliser of every query, and the rows that it leaves best."""
        rows, shape, held, n_kv_heads = self.rows, self.rows.shape, self.held, self.recorder.n_kv_heads
        n_tokens, n_queries = self._n_tokens, self._n_rows * self.recorder.n_heads
        n_shares = -(-n_tokens // SCORE_TOKENS)
        head = rows.n_blocks * SELECTORS[shape.selector].block_bytes(shape.head_dim) // 4
        self.recorder.launch(
            kernel("higgs_score_cuda", "higgs_score_cuda", shape.selector, shape.head_dim, shape.group),
            (n_shares, self._n_segments),
            *(held.logits, n_tokens, held.parts, n_shares, 0, held.queries, held.records, rows.selectors),
            *(n_kv_heads * head, head, self._slots, n_kv_heads, held.lengths, *rows.selector_words),
            self.totals,
        )
        self.recorder.launch(
            kernel("yakv_tail_cuda", "log_sum_exp_cuda"),
            (-(-n_queries // 4), 1),
            *(held.lse, held.parts, n_shares, held.stats, self.n_partials, 1, self.totals.address + 16),
        )
        self.recorder.launch(
            kernel("select_topk_cuda", "rank_cuda", shape.rule, shape.group),
            (-(-n_tokens // 1024), self._n_segments),
            *(held.weights, n_tokens, held.logits, n_tokens, held.lse, held.lengths),
        )
        self.recorder.launch(
            kernel("select_topk_cuda", "select_topk_cuda"),
            (self._n_segments, 1),
            *(held.ids, rows.most_selected, held.counts, held.weights, n_tokens, held.lengths, held.budgets),
            *(held.candidates, candidates_stride(n_tokens), self.totals.address + 8),
        )

    def fetch(self, cached: RowPool) -> None:
        """Brings what is missing into the cache, beside what is recorded up to its join."""
        rows, held, n_kv_heads = self.rows, self.held, self.recorder.n_kv_heads
        self.recorder.launch(
            kernel("yakv_fetch_cuda", "yakv_fetch_cuda"),
            (self._n_segments, 1),
            *(*cache_words(rows, n_kv_heads), self._slots, n_kv_heads, held.ids, rows.most_selected),
            *(held.counts, held.places, held.missing, held.targets, held.n_missing, self.totals),
        )
        shape = rows.shape
        size = row_bytes(shape.head_dim, shape.k_format, shape.v_format)
        self.recorder.launch_beside(
            kernel("yakv_gather_cuda", "yakv_gather_cuda", size),
            (self.recorder.gather_blocks, 1),
            *(*pool_words(rows, cached, n_kv_heads), *pool_words(rows, rows.rows, n_kv_heads)),
            *(self._slots, n_kv_heads, held.missing, held.targets, rows.most_selected, held.n_missing),
            self.totals,
        )

    def attend(self, q: Buffer) -> None:
        """To the selected rows, in the cache where there is one."""
        rows, shape, held, head_dim = self.rows, self.rows.shape, self.held, self.rows.shape.head_dim
        n_kv_heads = self.recorder.n_kv_heads
        places = held.places if rows.cached else held.ids
        self.recorder.launch(
            kernel(
                *("yakv_attend_cuda", "yakv_attend_cuda", head_dim),
                *(shape.k_format, shape.v_format, shape.centred),
            ),
            (n_kv_heads * self.n_splits * head_blocks(shape.group), self._n_rows),
            *(held.sums, held.stats, 1, self.n_partials, self.n_splits),
            *(q.data.part(self.first, self._n_rows), q.width),
            *pool_words(rows, rows.cached or rows.rows, n_kv_heads),
            *(rows.k_grid.address("halves"), rows.v_grid.address("halves")),
            *(rows.means, n_kv_heads * head_dim, head_dim, held.logits, self._n_tokens),
            *(held.ids, places, rows.most_selected, held.counts, self._slots, self.totals, n_kv_heads),
            *(shape.group, head_dim**-0.5),
        )
