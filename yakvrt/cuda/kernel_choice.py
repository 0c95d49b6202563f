"""Which of several kernels for one op fits a shape and a GPU; kernel_list.py compiles what these can answer.

No choice was measured on a GPU, but for what `yakvrt transfer` left: each follows from counts in the kernels'
own files.
"""

from __future__ import annotations

from math import isqrt

from .. import tuning
from ..kernel_build.spec import KernelSpec, kernel
from ..kernels.attend_fragments import HEAD_DIMS, head_blocks
from ..kernels.attend_prefill_cuda import ROWS as PREFILL_HEADS
from ..kernels.device_layout import TENSOR_CORE_FORMATS, device_layout
from ..kernels.higgs_layout import ROW_FORMATS
from ..kernels.matmul_bf16_cuda import OUTPUTS
from ..kernels.matmul_wgmma_cuda import ARCHITECTURE

DECODE_ROWS = (1, 2, 4, 8)
MOST_DECODE_ROWS = DECODE_ROWS[-1]
PREFILL_TILES = (32, 128)
WGMMA_TILES = (128, 256)
EXPERT_PACKS = (*DECODE_ROWS, *PREFILL_TILES)
# fewer outputs give too few blocks of one warp a row for all multiprocessors to read at once
FEW_OUTPUTS = 8192
MOST_WARPS = 4  # that share the columns of a row
DECODE_SHAPES = ((1, MOST_WARPS), *((n, 1) for n in DECODE_ROWS))
GROUPED_SHAPES = ((1, MOST_WARPS), *((n, 1) for n in DECODE_ROWS[1:]))  # an expert's matrices are small
SPLIT_TOKENS = 512  # positions worth a block of their own in decode
SCORE_TOKENS = 4096  # that a block scores
GATHER_BLOCKS = 16  # keep a link to the host busy where none was measured: a block has 16 KB under way
MOST_GATHER_BLOCKS = 1024
GATHER_LOADS = (1, 2, 4, 8)  # of 16 bytes that a lane has under way, of gathers that are timed
SCORED_PER_NS = 4080  # bytes of selector codes: 0.85 of an H200's memory
TURN_NS = 10_000  # that the launches of a further turn take
ANY_SELECTOR = "2bit"
MULTIPROCESSORS = 132
BLOCKS_AT_ONCE = 2 * MULTIPROCESSORS


def activation_form(arch: str, format_name: str, rows_at_once: int, grouped: bool) -> str:
    """The form of activations for so many rows of each matrix, which also tells the kernel: "tiles" for
    wgmma, "bf16" for mma.sync, "int8" and "f32" for decode's.
    """
    if rows_at_once > MOST_DECODE_ROWS and format_name in TENSOR_CORE_FORMATS:
        fills_a_tile = rows_at_once > PREFILL_TILES[0]
        return "tiles" if arch == ARCHITECTURE and fills_a_tile and not grouped else "bf16"
    return "f32" if device_layout(format_name).is_float else "int8"


def decode_pack(rows_at_once: int) -> int:
    """Rows that share one pass over the weights."""
    return next((n for n in DECODE_ROWS if n >= rows_at_once), MOST_DECODE_ROWS)


def prefill_tile(rows_at_once: int) -> int:
    return next((n for n in PREFILL_TILES if n >= rows_at_once), PREFILL_TILES[-1])


def wgmma_tile(n_rows: int, n_outputs: int) -> int:
    """The small one where the large one leaves multiprocessors without a block."""
    small, large = WGMMA_TILES
    n_blocks = -(-n_rows // large) * -(-n_outputs // OUTPUTS)
    return large if n_rows > small and n_blocks >= MULTIPROCESSORS else small


def expert_pack(n_pairs: int, n_experts: int, formats: set[str]) -> int:
    """Places of a pack, from an expert's share of the (token, choice) pairs and how its matrices rest."""
    share = -(-n_pairs // n_experts)
    on_tensor_cores = share > MOST_DECODE_ROWS and formats <= set(TENSOR_CORE_FORMATS)
    return prefill_tile(share) if on_tensor_cores else decode_pack(share)


def decode_matmul(format_name: str, pack: int, n_outputs: int, grouped: bool) -> tuple[KernelSpec, int]:
    """The kernel, and how many warps share the columns of a row."""
    split = MOST_WARPS if pack == 1 and (grouped or n_outputs <= FEW_OUTPUTS) else 1
    return kernel("matmul_cuda", "matmul_cuda", format_name, pack, split, grouped), split


def attends_on_tensor_cores(head_dim: int, kind: str, group: int) -> bool:
    return head_dim in HEAD_DIMS and kind != "f32" and group <= PREFILL_HEADS


def decode_splits(n_tokens: int, n_rows: int, n_kv_heads: int, group: int) -> int:
    """How many blocks share the history of a KV head in a slot of n_tokens tokens."""
    wanted = -(-BLOCKS_AT_ONCE // (n_rows * n_kv_heads * head_blocks(group)))
    return max(1, min(wanted, -(-n_tokens // SPLIT_TOKENS)))


def recall_kernel(
    head_dim: int, kind: str, selector: str, k_format: str, v_format: str, centred: bool
) -> KernelSpec:
    """Makes indexed rows exact again. The selector's codes are read where keys rest as what they leave: where
    not, any selector names the same kernel.
    """
    read = selector if ROW_FORMATS[k_format].residual else ANY_SELECTOR
    shape = head_dim, kind, read, k_format, v_format, centred
    return kernel("yakv_recall_cuda", "yakv_recall_cuda", *shape)


def fetch_turns(n_rows: int, selector_bytes: int) -> int:
    """In how many turns a batch, each row of which reads so many bytes of codes, gets its rows from the host:
    t turns hide all but a t-th part of scoring behind the link, and cost t - 1 times a turn's launches. The
    power of two below the best t.
    """
    most = isqrt(n_rows * selector_bytes // (SCORED_PER_NS * TURN_NS))
    return 1 << (max(1, min(n_rows, most)).bit_length() - 1)


def gather_blocks(device_name: str) -> int:
    """Blocks that read rows over the link: as `yakvrt transfer` measured on such a device, or the default."""
    try:
        rates = tuning.LinkRates.read(tuning.load(device_name) or {})
    except tuning.TuningError:
        rates = None
    measured = int(rates.gather_blocks) if rates else 0
    return measured if 1 <= measured <= MOST_GATHER_BLOCKS else GATHER_BLOCKS
