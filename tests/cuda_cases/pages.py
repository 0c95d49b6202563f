"""Pages of tokens: their digests as a step completes them, and the logits that pages are chosen by."""

from __future__ import annotations

import math

import numpy as np

from yakvrt.cuda.kernel_list import ATTENTION
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.page_digests import page_digests_ref
from yakvrt.kernels.page_scores import UNITS, page_scores_ref
from yakvrt.kernels.yakv_layout import ring_place

from .arrays import blocks, count, from_bf16, normal, poisoned, repeated, sample, stored
from .attention import NEVER_USED
from .case import COPY, LINK, Case, Launch, Sized, compare, sized, untouched

DISTINCT = 251  # units of a head, which many repeat
TOLERANCES = {"f32": 1e-6, "f16": 2**-11, "bf16": 2**-8}  # half a step of the number format


def number_bytes(kind: str) -> int:
    return 4 if kind == "f32" else 2


def page_scores(
    head_dim: int,
    kind: str,
    boxes: bool,
    group: int,
    lengths: list[int],
    n_heads: int = 2,
    in_host_memory: bool = False,
) -> Case:
    """Lengths of segments, those of a row side by side; slots of another order, side by side for each head; a
    row too many. Units that a row does not have are no numbers.
    """
    n_segments, n_rows, width = len(lengths), len(lengths) // n_heads, head_dim * (2 if boxes else 1)
    longest = np.array(lengths).reshape(n_rows, n_heads).max(axis=1)
    ends = np.array([*(longest + np.arange(n_rows) % 2), 10**6], np.int64)
    firsts = np.array([*(ends[:-1] * 2 // 3), 3], np.int64)
    capacity, slots = int(ends[:-1].max()) + 1, np.array([*range(n_rows, 0, -1), 99], np.int64)
    rows = normal(n_rows + 1, n_heads, min(capacity, DISTINCT), width)
    if boxes:
        spread = np.abs(rows[..., head_dim:])
        rows = np.concatenate([rows[..., :head_dim] + spread, rows[..., :head_dim] - spread], axis=-1)
    distinct, words = stored(rows, kind)
    words = repeated(words, capacity, 2)
    for slot, end in zip(slots[:-1], ends[:-1], strict=True):
        words.view(np.uint32)[slot, :, end:] = NEVER_USED
    words = np.ascontiguousarray(words.swapaxes(0, 1))
    q = normal(n_rows + 1, n_heads * group * head_dim + 4)
    n_blocks, scale = max(1, blocks(max(lengths), UNITS)), 1 / math.sqrt(head_dim)
    stride = max(lengths) + 3
    logits = poisoned(n_segments + n_heads, group, stride)
    parts = poisoned(n_segments + n_heads, group, n_blocks + 1, 2)
    launch = Launch(
        kernel("page_scores", "page_scores_cuda", head_dim, kind, boxes),
        (n_blocks, n_segments + n_heads),
        [logits, parts],
        (
            *(logits, stride, parts, n_blocks + 1, q, q.shape[1]),
            *(words, capacity * width, (n_rows + 1) * capacity * width, slots, firsts),
            *(np.array([*lengths, *[5] * n_heads], np.int64), ends, count(n_rows), n_heads, group, scale),
        ),
        sum(lengths) * (width * number_bytes(kind) + (0 if in_host_memory else 4 * group)),
        2 * sum(lengths) * group * width,
        LINK if in_host_memory else COPY,
    )

    def check() -> float:
        untouched("further rows", logits[n_segments:])
        untouched("parts of further rows", parts[n_segments:])
        untouched("further parts", parts[:, :, n_blocks:])
        worst = 0.0
        for segment in sample(n_segments, 7):
            row, head = divmod(segment, n_heads)
            n = lengths[segment]
            untouched("further logits", logits[segment, :, n:])
            units = (firsts[row] + np.arange(n)) % ends[row] % distinct.shape[2]
            queries = q[row, :-4].reshape(n_heads, group, head_dim)[head]
            expected = page_scores_ref(queries[None], distinct[slots[row], head, units][None], boxes)[0]
            found = logits[segment, :, :n]
            worst = max(worst, compare("logits", found, expected * scale, rtol=3e-6, atol=3e-6))
            worst = max(worst, compare_parts(parts[segment, :, :n_blocks], found))
        return worst

    return Case([launch], check, pinned=[words] if in_host_memory else [])


def compare_parts(parts: np.ndarray, logits: np.ndarray) -> float:
    """Shapes: parts [G, blocks, 2], logits [G, n]."""
    n_blocks = parts.shape[1]
    padded = np.full((len(logits), n_blocks * UNITS), -np.inf)
    padded[:, : logits.shape[1]] = logits
    padded = padded.reshape(len(logits), n_blocks, UNITS)
    largest = np.maximum(padded.max(axis=2), -1e30)
    total = np.exp(padded - largest[..., None]).sum(axis=2)
    compare("largest", parts[..., 0], largest.astype(np.float32))
    return compare("sums", parts[..., 1], total, rtol=2e-6)


def page_digests(
    head_dim: int,
    kind: str,
    centred: bool,
    page: int,
    positions: list[int],
    ring: tuple[int, int],
    n_heads: int = 2,
) -> Case:
    """Rows that complete a page and rows that do not, in slots of another order; a row too many. What lies
    beside the keys of such a page is no number. ring: numbers of sinks and of places that wrap around.
    """
    n_rows, (n_sinks, ring_len) = len(positions), ring
    slots, longest = np.array([*range(n_rows, 0, -1), 99], np.int64), max(positions)
    keys, stored_keys = stored(normal(n_rows, n_heads, page, head_dim), kind)
    n_words = stored_keys.shape[-1]
    n_places = n_sinks + ring_len
    words = np.zeros((n_rows + 1, n_heads, n_places, n_words), stored_keys.dtype)
    words.view(np.uint32)[...] = NEVER_USED
    completed = [row for row, position in enumerate(positions) if (position + 1) % page == 0]
    for row in completed:
        own = range(positions[row] + 1 - page, positions[row] + 1)
        places = [ring_place(p, n_sinks, n_sinks, ring_len) for p in own]
        words[slots[row]][:, places] = stored_keys[row]
    n_pages = longest // page + 2
    digests = poisoned(n_rows + 1, n_heads, n_pages, 2 * n_words, dtype=words.dtype)
    launch = Launch(
        kernel("page_digests", "page_digests_cuda", head_dim, kind, centred),
        (n_heads, n_rows + 1),
        [digests],
        (
            *(digests, n_heads * n_pages * 2 * head_dim, n_pages * 2 * head_dim),
            *(words, n_heads * n_places * head_dim, n_places * head_dim, n_sinks, ring_len, page),
            *(slots, np.array([*positions, page - 1], np.int64), count(n_rows)),
        ),
        len(completed) * n_heads * (page + 2) * head_dim * number_bytes(kind),
    )

    def check() -> float:
        worst, others = 0.0, np.ones((n_rows + 1, n_pages), bool)
        for row in completed:
            number = positions[row] // page
            others[slots[row], number] = False
            found = numbers(digests[slots[row], :, number], kind)
            expected = page_digests_ref(keys[row], page, centred)
            if centred:
                rtol = TOLERANCES[kind]
                worst = max(worst, compare("digests", found, expected, rtol=rtol, atol=2e-6))
            else:
                compare("digests", found, expected)
        untouched("other digests", digests.transpose(0, 2, 1, 3)[others])
        return worst

    return Case([launch], check)


def numbers(words: np.ndarray, kind: str) -> np.ndarray:
    """What `stored` stored."""
    if kind == "f32":
        return words
    return from_bf16(words.view(np.uint16)) if kind == "bf16" else words.view(np.float16).astype(np.float32)


def small() -> list[Sized]:
    return [
        sized("page scores", page_scores, 64, "bf16", True, 2, [3, 9]),
        sized("page scores over the link", page_scores, 64, "f16", False, 2, [7, 7], 2, True),
        sized("page digests", page_digests, 64, "bf16", True, 4, [7, 8, 23], (3, 9)),
    ]


def real() -> list[Sized]:
    """8 KV heads: digests of 64k tokens in pages of 16, keys of 4096 tokens."""
    made = []
    for head_dim, kind in ATTENTION:
        lengths = [4096] * 64
        if head_dim >= 64:
            what = f"page scores {head_dim} {kind}, 8 x 4096"
            made.append(sized(what, page_scores, head_dim, kind, True, 4, lengths, 8))
        if head_dim == 128:
            what = f"key scores {head_dim} {kind}, 8 x 4096"
            made.append(sized(what, page_scores, head_dim, kind, False, 4, lengths, 8))
    what = "page scores 128 bf16, 1 x 4096 over the link"
    made += [
        sized("page scores 128 bf16 x 16, 8 x 4096", page_scores, 128, "bf16", True, 16, [4096] * 64, 8),
        sized(what, page_scores, 128, "bf16", True, 4, [4096] * 8, 8, True),
    ]
    positions = [16 * (1000 + i) - 1 for i in range(64)]
    return made + [
        sized(f"page digests {centred}", page_digests, 128, "bf16", centred, 16, positions, (16, 192), 8)
        for centred in (False, True)
    ]
