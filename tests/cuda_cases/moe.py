"""Mixture of experts: routing, packs of tokens per expert, grouped matmuls, the weighted sum."""

from __future__ import annotations

import numpy as np

from yakvrt.cuda.kernel_choice import EXPERT_PACKS, decode_matmul
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.device_layout import DEVICE_LAYOUTS, TENSOR_CORE_FORMATS
from yakvrt.kernels.matmul import GATE, WRITE, matmul_ref
from yakvrt.kernels.matmul_bf16_cuda import OUTPUTS
from yakvrt.kernels.matmul_cuda import ROWS_AT_ONCE, WARPS
from yakvrt.kernels.moe import combine_ref, dispatch_ref, max_packs, route_ref
from yakvrt.kernels.swiglu import swiglu_ref

from .arrays import RNG, bf16_words, blocks, count, normal, poisoned, repeated, sample
from .case import COPY, PRODUCT, Case, Launch, Sized, compare, sized, untouched
from .weights import device_matrix, int8_activations, nbytes


def route(n_rows: int, n_experts: int, n_used: int, renormalise: bool) -> Case:
    """Rows with equal logits, of which the lowest come first."""
    logits = normal(n_rows + 1, n_experts, scale=3)
    if n_rows > 1:
        logits[1, 1:4] = logits[1].max() + 1
    ids, weights = poisoned(n_rows + 1, n_used, dtype=np.int32), poisoned(n_rows + 1, n_used)
    launch = Launch(
        kernel("moe_cuda", "moe_route_cuda"),
        n_rows + 1,
        [ids, weights],
        (ids, weights, logits, n_experts, n_used, int(renormalise), count(n_rows)),
        n_rows * (n_experts + 2 * n_used) * 4,
    )

    def check() -> float:
        untouched("further ids", ids[n_rows:])
        untouched("further weights", weights[n_rows:])
        expected_ids, expected_weights = route_ref(logits[:n_rows], n_used, renormalise)
        compare("ids", ids[:n_rows], expected_ids)
        return compare("weights", weights[:n_rows], expected_weights, rtol=2e-6)

    return Case([launch], check)


class Packs:
    """The packs of random choices of experts: their launch, and what it has to leave."""

    def __init__(self, ids: np.ndarray, n_experts: int, n_tokens: int, spare_rows: int = 0) -> None:
        n_rows, n_used = ids.shape
        n_packs = max_packs(n_rows + spare_rows, n_used, n_experts, n_tokens)
        self.expert = poisoned(n_packs, dtype=np.int32)
        self.row = poisoned(n_packs * n_tokens, dtype=np.int32)
        self.place_of_pair, self.n_places = poisoned(ids.size, dtype=np.int32), poisoned(1, dtype=np.int64)
        self.experts, self.pairs = dispatch_ref(ids, n_experts, n_tokens)
        self.outputs = [self.expert, self.row, self.place_of_pair, self.n_places]
        self.tokens = np.array([pair // n_used if pair >= 0 else -1 for pair in self.pairs])
        self.launch = Launch(
            kernel("moe_cuda", "moe_dispatch_cuda", n_tokens),
            n_experts,
            self.outputs,
            (*self.outputs, ids.astype(np.int32), n_experts, n_used, count(n_rows)),
            nbytes(*self.outputs) + ids.size * 4,
        )

    def check(self) -> float:
        n_packs, n_places = len(self.experts), len(self.pairs)
        compare("number of places", self.n_places, np.array([n_places]))
        compare("experts of packs", self.expert[:n_packs], np.array(self.experts))
        compare("rows of packs", self.row[:n_places], self.tokens)
        found = np.array(self.pairs)[self.place_of_pair]
        compare("places of pairs", found, np.arange(len(found)))
        untouched("further packs", self.expert[n_packs:])
        return untouched("further places", self.row[n_places:])


def chosen_experts(n_rows: int, n_experts: int, n_used: int) -> np.ndarray:
    """Nobody visits the last expert but one, where there are others."""
    usable = np.arange(n_experts)
    if n_experts - 1 > n_used:
        usable = np.delete(usable, n_experts - 2)
    return np.stack([RNG.permutation(usable)[:n_used] for _ in range(n_rows)])


def dispatch(n_rows: int, n_experts: int, n_used: int, n_tokens: int) -> Case:
    packs = Packs(chosen_experts(n_rows, n_experts, n_used), n_experts, n_tokens)
    return Case([packs.launch], packs.check)


def combine(n_rows: int, n_used: int, width: int) -> Case:
    results = repeated(normal(min(n_rows * n_used + 4, 1021), width), n_rows * n_used + 4)
    places = RNG.permutation(n_rows * n_used + 4)[: n_rows * n_used].astype(np.int32)
    weights, out = RNG.random((n_rows, n_used)).astype(np.float32), normal(n_rows + 1, width)
    before = out.copy()
    launch = Launch(
        kernel("moe_cuda", "moe_combine_cuda"),
        (blocks(width, 512), n_rows + 1),
        [out],
        (out, width, results, width, places, weights, width, n_used, count(n_rows)),
        n_rows * (n_used + 2) * width * 4,
    )

    def check() -> float:
        rows = sample(n_rows, 256)
        taken = results[places.reshape(n_rows, n_used)[rows]]
        compare("further rows", out[n_rows:].view(np.uint32), before[n_rows:].view(np.uint32))
        expected = combine_ref(before[rows], taken, weights[rows])
        return compare("out", out[rows], expected, atol=4e-6)

    return Case([launch], check)


def grouped_matmul(
    name: str,
    pack: int,
    prefill: bool,
    n_rows: int,
    n_experts: int,
    n_used: int,
    n_outputs: int,
    n_cols: int,
    role: str = "gate",
) -> Case:
    """A feed-forward's matmul, behind the launch that makes the packs: gate and up of rows of x, which packs
    gather (up multiplies what the gate left), down of the places that these left.
    """
    packs = Packs(chosen_experts(n_rows, n_experts, n_used), n_experts, pack, spare_rows=2)
    weights, planes = device_matrix(name, n_experts * n_outputs, n_cols)
    gathered, mode = int(role != "down"), GATE if role == "up" else WRITE
    x = normal(n_rows if gathered else len(packs.row), n_cols)
    out = normal(len(packs.row), n_outputs) if mode == GATE else poisoned(len(packs.row), n_outputs)
    before, n_places = out.copy(), len(packs.pairs)
    if prefill:
        used, words = bf16_words(x)
        weights, _ = bf16_words(weights)
        spec = kernel("matmul_bf16_cuda", "matmul_bf16_cuda", name, pack, True)
        grid = (len(packs.expert), blocks(n_outputs, OUTPUTS))
        given: tuple[object, ...] = (words, None, 0, mode)
    else:
        codes, terms, used = (x, None, x) if DEVICE_LAYOUTS[name].is_float else int8_activations(x)
        spec, split = decode_matmul(name, pack, n_outputs, grouped=True)
        grid = (blocks(n_outputs, ROWS_AT_ONCE * WARPS // split), len(packs.expert))
        given = (codes, terms, None, 0, mode)
    tail = (packs.n_places, packs.expert, packs.row, gathered)
    launch = Launch(
        spec,
        grid,
        [out],
        (out, n_outputs, *planes, n_outputs, n_cols, *given, *tail),
        nbytes(*planes) * len(set(packs.experts)) // n_experts + n_places * n_outputs * 4,
        2 * n_rows * n_used * n_outputs * n_cols,
        PRODUCT if prefill and n_rows * n_used > 256 * n_experts else COPY,
    )

    def check() -> float:
        packs.check()
        compare("further places", out[n_places:].view(np.uint32), before[n_places:].view(np.uint32))
        scale = matmul_ref(np.abs(weights), np.abs(used[:1])).max() + 1
        tolerance, worst = 2e-6 * max(1, n_cols / 1024) ** 0.5, 0.0
        for place in np.flatnonzero(packs.tokens >= 0)[sample(n_rows * n_used, 64)]:
            first = packs.experts[place // pack] * n_outputs
            own = weights[np.arange(first, first + n_outputs) % len(weights)]
            row = packs.tokens[place] if gathered else place
            expected = matmul_ref(own, used[row : row + 1])[0]
            if mode == GATE:
                expected = swiglu_ref(before[place], expected)
            off = compare(f"place {place}", out[place] / scale, expected / scale, atol=tolerance)
            worst = max(worst, off)
        return worst

    return Case([packs.launch, launch], check)


def small() -> list[Sized]:
    return [
        sized("route", route, 5, 8, 2, True),
        sized("dispatch", dispatch, 5, 4, 2, 8),
        sized("combine", combine, 3, 3, 520),
        sized("experts' decode matmul", grouped_matmul, "Q4_K", 8, False, 5, 4, 2, 6, 256),
        sized("experts' prefill matmul", grouped_matmul, "Q4_K", 32, True, 3, 4, 2, 6, 256),
    ]


# packs, whether it is a prompt, rows
GROUPED = (
    (1, False, 4),
    (2, False, 16),
    (4, False, 48),
    (8, False, 96),
    (32, True, 384),
    (128, True, 8192),
)


def real() -> list[Sized]:
    """Of Qwen3-30B-A3B: 128 experts of 768, 8 of them for a token."""
    made = [
        sized("route", route, 8192, 128, 8, True),
        sized("combine", combine, 8192, 8, 2048),
        *(sized(f"dispatch, packs of {n}", dispatch, 1024, 128, 8, n) for n in EXPERT_PACKS),
    ]
    for name in DEVICE_LAYOUTS:
        for pack, prefill, n_rows in GROUPED:
            if prefill and name not in TENSOR_CORE_FORMATS:
                continue
            kind = "prefill" if prefill else "decode"
            what = f"experts' {kind} matmul {name}, rows {n_rows}, packs of {pack}"
            made.append(sized(what, grouped_matmul, name, pack, prefill, n_rows, 128, 8, 768, 2048))
    return made
