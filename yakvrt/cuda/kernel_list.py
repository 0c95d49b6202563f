"""All CUDA kernels that yakvrt launches, over the parameters it launches them with: what a build makes."""

from __future__ import annotations

from ..kernel_build.spec import KernelSpec, kernel
from ..kernels.device_layout import DEVICE_LAYOUTS, TENSOR_CORE_FORMATS
from ..kernels.higgs_layout import SELECTORS, row_bytes
from ..kernels.matmul_wgmma_cuda import ARCHITECTURE
from ..kernels.select_topk import RULES
from ..kernels.yakv_attend_cuda import FORMATS
from .kernel_choice import (
    DECODE_SHAPES,
    EXPERT_PACKS,
    GATHER_LOADS,
    GROUPED_SHAPES,
    PREFILL_TILES,
    WGMMA_TILES,
    recall_kernel,
)

FLOATS = ("f32", "f16", "bf16")  # number formats of embedding tables and KV rows
# head dimensions that HIGGS codes can be made of (rotate.py)
ROTATIONS = (32, 48, 64, 80, 96, 112, 128, 192, 256)
# head dimensions and KV rows of attention on tensor cores
ATTENTION = ((64, "bf16"), (64, "f16"), (128, "bf16"), (128, "f16"), (256, "bf16"))
# of attention in float32; 16 and 32 are those of the tiny models that tests run
PLAIN_ATTENTION = (
    *((64, "f32"), (80, "f16"), (96, "bf16"), (128, "f32")),
    *((size, kind) for size in (16, 32) for kind in ("f32", "bf16")),
)
# InfiniGen's share of their channels, a fifth, in whole pieces of 16 bytes
CHANNELS = tuple((-(-size // 5 // 8) * 8, kind) for size, kind in ATTENTION)
# head dimensions of the KV kernels, and query heads that share a KV head
HEADS = ((64, 4), (128, 6), (128, 8), (256, 16))
HEAD_DIMS = (64, 128, 256)
# dimension of codes in selector blocks, and whether the mean key is still to be subtracted
BLOCK_CODES = ((4, True), (8, True), (8, False))
# numbers of a token's keys in all KV heads, and the head dimension, of rows that yakv-paper decodes
PAPER_ROWS = tuple((width, size) for size in (64, 128) for width in (256, 512, 1024))
# sizes of YAKV's rows in bytes, and attention to them: with 256 numbers a head sm_80 runs out of registers
ROW_SIZES = sorted({row_bytes(size, *formats) for formats in FORMATS for size in HEAD_DIMS})
YAKV_ATTENTION = tuple((size, *formats) for formats in FORMATS for size in (64, 128))


def all_kernels(arch: str) -> list[KernelSpec]:
    """Those of an architecture."""
    return [
        kernel("rms_norm", "rms_norm_cuda"),
        kernel("rms_norm", "head_norm_cuda"),
        kernel("rope", "rope_table_cuda"),
        kernel("rope", "rope_cuda"),
        kernel("swiglu", "swiglu_cuda"),
        kernel("argmax", "argmax_cuda"),
        *(kernel("embed", "embed_cuda", kind) for kind in FLOATS),
        *(
            kernel("embed", "embed_planes_cuda", layout.name)
            for layout in DEVICE_LAYOUTS.values()
            if not layout.is_float
        ),
        *(kernel("kv_append", "kv_append_cuda", kind) for kind in FLOATS),
        kernel("pack_activations", "quantize_activations_cuda"),
        kernel("pack_activations", "round_activations_cuda"),
        *(
            kernel("matmul_cuda", "matmul_cuda", name, n_tokens, split, grouped)
            for name in DEVICE_LAYOUTS
            for grouped, shapes in ((False, DECODE_SHAPES), (True, GROUPED_SHAPES))
            for n_tokens, split in shapes
        ),
        *(
            kernel("matmul_bf16_cuda", "matmul_bf16_cuda", name, tile, grouped)
            for name in TENSOR_CORE_FORMATS
            for tile in PREFILL_TILES
            for grouped in (False, True)
        ),
        *(_of_sm_90() if arch == ARCHITECTURE else ()),
        kernel("moe_cuda", "moe_route_cuda"),
        *(kernel("moe_cuda", "moe_dispatch_cuda", n_tokens) for n_tokens in EXPERT_PACKS),
        kernel("moe_cuda", "moe_combine_cuda"),
        *(
            kernel("rotate", "rotate_cuda", size, inverse, False)
            for size in ROTATIONS
            for inverse in (False, True)
        ),
        *(kernel("select_topk_cuda", "rank_cuda", rule, group) for rule in RULES for _, group in HEADS),
        kernel("select_topk_cuda", "select_topk_cuda"),
        *(
            kernel("higgs_query_cuda", "higgs_query_cuda", selector, size, True, False)
            for selector in SELECTORS
            for size in HEAD_DIMS
        ),
        *(
            kernel("higgs_score_cuda", "higgs_score_cuda", selector, size, group)
            for selector in SELECTORS
            for size, group in HEADS
        ),
        *(
            kernel("higgs_encode_cuda", "higgs_encode_cuda", 2, 256, "bytes", size, "norm", centred, False)
            for size in HEAD_DIMS
            for centred in (False, True)
        ),
        *(
            kernel("higgs_encode_cuda", "higgs_encode_cuda", 2, 64, "sixes", size, "norm", False, False)
            for size in HEAD_DIMS
        ),
        *(
            kernel("higgs_encode_cuda", "higgs_encode_cuda", dim, 256, "blocks", size, "norm", centred, False)
            for dim, centred in BLOCK_CODES
            for size in HEAD_DIMS
        ),
        *(kernel("higgs_means_cuda", "higgs_means_cuda", "1.5bit", size, True) for size in HEAD_DIMS),
        *(
            kernel("higgs_residual_cuda", "higgs_residual_cuda", selector, size, True)
            for selector in SELECTORS
            for size in HEAD_DIMS
        ),
        kernel("yakv_tail_cuda", "log_sum_exp_cuda"),
        *(kernel("yakv_tail_cuda", "yakv_tail_cuda", group, size) for size, group in HEADS),
        *(kernel("sample_cuda", "sample_cuda", most) for most in (64, 1024)),
        kernel("yakv_leave_cuda", "yakv_lengths_cuda"),
        *(
            kernel(*named, size, kind, *centred)
            for *named, centred in (
                ("yakv_leave_cuda", "yakv_leave_cuda", (True,)),
                ("yakv_prompt_cuda", "yakv_widen_cuda", ()),
                ("yakv_prompt_cuda", "yakv_mean_key_cuda", ()),
            )
            for size in HEAD_DIMS
            for kind in ("f16", "bf16")
        ),
        *dict.fromkeys(
            recall_kernel(size, kind, selector, *formats, True)
            for size in HEAD_DIMS
            for kind in ("f16", "bf16")
            for selector in SELECTORS
            for formats in FORMATS
        ),
        kernel("keep_rows", "keep_rows_cuda"),
        *(kernel("yakv_fit", "tail_errors_cuda", size) for size in HEAD_DIMS),
        kernel("yakv_fit", "best_parts_cuda"),
        kernel("yakv_fetch_cuda", "yakv_fetch_cuda"),
        kernel("yakv_fetch_cuda", "yakv_forget_cuda"),
        kernel("yakv_fetch_cuda", "yakv_count_cuda"),
        *(kernel("yakv_gather_cuda", "yakv_gather_cuda", size) for size in ROW_SIZES),
        *(kernel("gather_rows", "gather_rows_cuda", loads) for loads in GATHER_LOADS),
        *(kernel("page_scores", "page_scores_cuda", *shape, False) for shape in CHANNELS),
        kernel("page_lengths", "page_lengths_cuda"),
        kernel("page_lengths", "page_count_cuda"),
        kernel("page_recall", "page_recall_cuda"),
        *(kernel("page_project", "page_project_cuda", size) for size in HEAD_DIMS),
        kernel("page_project", "page_near_cuda"),
        *(kernel("factor_resident", "factor_resident_cuda", *shape) for shape in ATTENTION),
        kernel("factor_solve", "factor_solve_cuda"),
        kernel("factor_descend", "factor_descend_cuda"),
        kernel("select_topk_cuda", "rank_cuda", "mean", 1),
        *(
            kernel(op, f"{op}_cuda", *shape, boxes_or_centred)
            for op in ("page_digests", "page_scores")
            for shape in ATTENTION
            for boxes_or_centred in (False, True)
        ),
        *(
            kernel("page_gather", "page_gather_cuda", 2 * size, cached)
            for size in HEAD_DIMS
            for cached in (False, True)
        ),
        kernel("chunk_lengths", "chunk_lengths_cuda"),
        kernel("chunk_values", "chunk_values_cuda"),
        *(kernel("low_rank_keys", "low_rank_keys_cuda", *shape) for shape in ATTENTION),
        *(kernel("chunk_gather", "chunk_gather_cuda", 2 * size) for size in HEAD_DIMS),
        *(kernel("higgs_query_cuda", "higgs_query_cuda", "2bit", size, False, False) for size in HEAD_DIMS),
        kernel("paper_lengths", "paper_lengths_cuda"),
        kernel("paper_fresh", "paper_fresh_cuda"),
        *(kernel("paper_exact", "paper_exact_cuda", 2 * size) for size in HEAD_DIMS),
        *(
            kernel("paper_rows", "paper_rows_cuda", *shape, kind)
            for shape in PAPER_ROWS
            for kind in ("f16", "bf16")
        ),
        kernel("pointer_chase", "pointer_chase_cuda"),
        kernel("multiply_adds", "multiply_adds_cuda"),
        *(kernel("attend_plain_cuda", "attend_plain_cuda", *shape) for shape in PLAIN_ATTENTION),
        *(
            kernel("attend_decode_cuda", "attend_decode_cuda", *shape, ring)
            for shape in ATTENTION
            for ring in (False, True)
        ),
        *(kernel("attend_prefill_cuda", "attend_prefill_cuda", *shape) for shape in ATTENTION),
        *(kernel("merge_partials", "merge_partials_cuda", size) for size in (64, 128, 256)),
        *(kernel("yakv_attend_cuda", "yakv_attend_cuda", *shape, True) for shape in YAKV_ATTENTION),
    ]


def _of_sm_90() -> list[KernelSpec]:
    return [
        kernel("activation_tiles", "round_tiles_cuda"),
        *(
            kernel("matmul_wgmma_cuda", "matmul_wgmma_cuda", name, tile)
            for name in TENSOR_CORE_FORMATS
            for tile in WGMMA_TILES
        ),
    ]
