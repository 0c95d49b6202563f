"""Draws the records of `yakvrt transfer --device cuda`: copies, rows by method, blocks, overlap, pools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from yakvrt.terminal import counted
from yakvrt.transfer.axes import (
    COLOURS,
    MARKERS,
    Fields,
    byte_ticks,
    distinct,
    points_of,
    short,
    shown_peak,
    typical_count,
)
from yakvrt.transfer.gpu_case import METHODS
from yakvrt.transfer.gpu_records import overlapped
from yakvrt.transfer.records import shown_bytes

WAYS = {"h2d": "to the GPU", "d2h": "to the host", "both": "both at once"}
LINES = {"h2d": "-", "d2h": "--", "both": ":"}
LETTERS = {"zero-copy": "Z", "gather+copy": "G", "copy-batch": "B", "copy-rows": "R"}
LANE_BYTES, BLOCK_LANES = 16, 256


def gpu_figures(records: Sequence[Fields]) -> Iterator[tuple[str, Any]]:
    """What the records are enough for, and its name."""
    by_test: dict[str, list[Fields]] = {}
    for r in records:
        by_test.setdefault(r["test"], []).append(r)
    copies = [r for r in by_test.get("copy", []) if r["memory"]]
    rows = by_test.get("rows", [])
    if copies:
        yield "transfer-gpu-copy", _draw_copies(copies)
    if rows:
        yield "transfer-gpu-rows", _draw_rows(rows, copies)
    if even := _aligned(rows):
        yield "transfer-gpu-map", _draw_map(even)
    reads = [r for r in rows if r["method"] == "zero-copy"]
    in_flight = by_test.get("in-flight", [])
    if reads or in_flight:
        yield "transfer-gpu-blocks", _draw_blocks(reads, in_flight)
    if "overlap" in by_test:
        yield "transfer-gpu-overlap", _draw_overlap(by_test["overlap"])
    if "pool" in by_test:
        yield "transfer-gpu-pool", _draw_pools(by_test["pool"])


def _draw_copies(copies: Sequence[Fields]) -> Any:
    """Rate against size, a colour for each kind of memory, a kind of line for each direction."""
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(8.5, 5.4), layout="constrained")
    for i, setting in enumerate(distinct(copies, ("memory",))):
        for direction, line in LINES.items():
            points = points_of(copies, "row_bytes", direction=direction, **setting)
            if points:
                label = f"{setting['memory']}, {WAYS[direction]}: {shown_peak(points)}"
                style: Any = {"color": COLOURS[i % 7], "marker": MARKERS[i % 7], "linestyle": line}
                panel.plot(*zip(*points, strict=True), label=label, **style)
    panel.set_xscale("log", base=2)
    panel.set(xlabel="bytes copied at once", ylabel="GB/s", ylim=(0, None))
    byte_ticks(panel.xaxis, {r["row_bytes"] for r in copies})
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(_title("Copies over the link", copies[0]))
    return figure


def _draw_rows(rows: Sequence[Fields], copies: Sequence[Fields]) -> Any:
    """Rate against row size at one number of rows: by method; what order and alignment change."""
    from matplotlib import pyplot

    n_rows = typical_count(rows)
    here = [r for r in rows if r["n_rows"] == n_rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12.4, 5.6), layout="constrained")
    for i, method in enumerate(METHODS):
        of_method = [r for r in here if r["method"] == method]
        for j, setting in enumerate(_settings(of_method)):
            points = points_of(of_method, "row_bytes", **setting)
            style: Any = {"color": COLOURS[i], "marker": MARKERS[i]}
            if j == 0:
                left.plot(*zip(*points, strict=True), label=METHODS[method], **style)
            elif method == "gather+copy" and setting["n_threads"] != of_method[0]["n_threads"]:
                name = f"but with {setting['n_threads']} of {of_method[0]['n_threads']} threads"
                left.plot(*zip(*points, strict=True), label=name, alpha=0.45, **style)
    if peak := max((r["median_gbps"] for r in copies if r["direction"] == "h2d"), default=0.0):
        left.axhline(peak, color="0.45", ls=":", lw=1.2, label=f"fastest copy, {peak:.1f} GB/s")
    left.set(title=f"{n_rows} rows by method", yscale="log")
    for i, method in enumerate(("zero-copy", "gather+copy")):
        of_method = [r for r in here if r["method"] == method]
        firsts = [s for s in _settings(of_method) if _same(s, of_method[0], ("grid", "n_threads"))]
        for j, setting in enumerate(firsts):
            points = points_of(of_method, "row_bytes", **setting)
            label = f"{METHODS[method]}: {_order(setting)}"
            style = {"color": COLOURS[i], "marker": MARKERS[j % 7], "alpha": 1 if j == 0 else 0.6}
            right.plot(*zip(*points, strict=True), label=label, **style)
    right.set(title="order and alignment", ylim=(0, None))
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        panel.set(xlabel="bytes of a row", ylabel="GB/s")
        byte_ticks(panel.xaxis, {r["row_bytes"] for r in here})
        panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1)
    figure.suptitle(_title("Scattered rows", rows[0]))
    return figure


def _aligned(rows: Sequence[Fields]) -> list[Fields]:
    """Rows that may lie anywhere, without an offset, in the first order."""
    held = [r for r in rows if r["method"] in LETTERS and not r["row_offset"]]
    return [r for r in held if r["row_order"] == held[0]["row_order"]]


def _draw_map(even: Sequence[Fields]) -> Any:
    """The fastest method and its rate for every row size and number of rows."""
    import numpy as np
    from matplotlib import pyplot

    sizes, counts = (sorted({r[name] for r in even}) for name in ("row_bytes", "n_rows"))
    rates = np.full((len(counts), len(sizes)), np.nan)
    letters: dict[tuple[int, int], str] = {}
    for y, n in enumerate(counts):
        for x, size in enumerate(sizes):
            cell = [r for r in even if (r["n_rows"], r["row_bytes"]) == (n, size)]
            if cell:
                best = max(cell, key=lambda r: r["median_gbps"])
                rates[y, x], letters[y, x] = best["median_gbps"], LETTERS[best["method"]]
    width, height = max(6.0, 1.4 + 0.75 * len(sizes)), 2.2 + 0.45 * len(counts)
    figure, panel = pyplot.subplots(figsize=(width, height), layout="constrained")
    top = float(np.nanmax(rates)) or 1.0
    image = panel.imshow(rates, cmap="viridis", vmin=0, vmax=top, aspect="auto", origin="lower")
    for (y, x), letter in letters.items():
        colour = "black" if rates[y, x] > 0.6 * top else "white"
        text = f"{letter} {short(rates[y, x])}"
        panel.text(x, y, text, ha="center", va="center", color=colour, fontsize=9)
        right = letters.get((y, x + 1))
        if right and (letter == "Z") != (right == "Z"):  # the crossover
            panel.plot([x + 0.5] * 2, [y - 0.5, y + 0.5], color="#D55E00", lw=2.5)
    panel.set_xticks(range(len(sizes)), [shown_bytes(n) for n in sizes], rotation=35, ha="right")
    panel.set_yticks(range(len(counts)), [f"{n}" for n in counts])
    panel.set(xlabel="bytes of a row", ylabel="rows")
    panel.grid(False)
    panel.spines[:].set_visible(False)
    figure.colorbar(image, ax=panel, label="GB/s")
    named = ", ".join(f"{letter} {method}" for method, letter in LETTERS.items())
    figure.suptitle(f"{_title('The fastest way', even[0])}\n{named}", fontsize=10)
    return figure


def _draw_blocks(reads: Sequence[Fields], in_flight: Sequence[Fields]) -> Any:
    """What a kernel that reads rows reaches with more blocks, and with more bytes under way."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12.4, 4.8), layout="constrained")
    if reads:
        n_rows = typical_count(reads)
        first = reads[0]
        here = [r for r in reads if r["n_rows"] == n_rows and _same(r, first, ("row_order", "row_offset"))]
        sizes = sorted({r["row_bytes"] for r in here})
        for i, size in enumerate(sizes[:: -(-len(sizes) // 7)]):
            points = points_of(here, "grid", row_bytes=size)
            label = f"rows of {shown_bytes(size)}"
            left.plot(*zip(*points, strict=True), label=label, color=COLOURS[i], marker=MARKERS[i])
        left.set(title=f"{n_rows} rows", xlabel="blocks of 256 threads")
        left.set_xscale("log", base=2)
        grids = sorted({r["grid"] for r in here})
        left.set_xticks(grids, [f"{n}" for n in grids])
        left.minorticks_off()
        left.legend(fontsize=9)
    for i, setting in enumerate(distinct(in_flight, ("loads",))):
        loads = setting["loads"]
        rates = points_of(in_flight, "grid", loads=loads)
        points = [(grid * BLOCK_LANES * LANE_BYTES * loads, rate) for grid, rate in rates]
        label = f"{counted(loads, 'load')} of 16 bytes a lane"
        right.plot(*zip(*points, strict=True), label=label, color=COLOURS[i % 7], marker=MARKERS[i % 7])
    if in_flight:
        right.set(title="rows of 1 KiB", xlabel="bytes under way")
        right.set_xscale("log", base=2)
        byte_ticks(right.xaxis, {4096 << i for i in range(11)})
        right.legend(fontsize=9)
    for panel in (left, right):
        panel.set(ylabel="GB/s", ylim=(0, None))
    figure.suptitle(_title("Blocks that read rows over the link", (list(reads) or list(in_flight))[0]))
    return figure


def _draw_overlap(overlaps: Sequence[Fields]) -> Any:
    """Of every transfer: how much of it work hides, and how much longer the work takes."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11.5, 4.6), layout="constrained", sharey=True)
    names = list(dict.fromkeys(map(_transfer_name, overlaps)))
    fillers = list(dict.fromkeys(r["beside"] for r in overlaps))
    step = 0.76 / len(fillers)
    for i, filler in enumerate(fillers):
        of_filler = [r for r in overlaps if r["beside"] == filler]
        y = [names.index(_transfer_name(r)) + step * (i - (len(fillers) - 1) / 2) for r in of_filler]
        pays = [r["work_beside_ns"] / r["work_alone_ns"] if r["work_alone_ns"] else 0 for r in of_filler]
        for panel, values in zip(panels, ([overlapped(dict(r)) for r in of_filler], pays), strict=True):
            panel.barh(y, values, height=0.95 * step, color=COLOURS[i % 7], label=f"beside {filler}")
    panels[0].set(
        title="part of the shorter one that is hidden", xlim=(min(0, panels[0].get_xlim()[0]), None)
    )
    panels[1].set(title="time of the work, alone = 1")
    for panel in panels:
        panel.set_axisbelow(True)
    panels[1].axvline(1, color="0.4", lw=1)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle(_title("Transfers beside work", overlaps[0]))
    return figure


def _draw_pools(pools: Sequence[Fields]) -> Any:
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7.5, 4.4), layout="constrained")
    for i, setting in enumerate(distinct(pools, ("row_order",))):
        points = points_of(pools, "pool_bytes", **setting)
        label = f"{setting['row_order']} order"
        panel.plot(*zip(*points, strict=True), label=label, color=COLOURS[i % 7], marker=MARKERS[i % 7])
    panel.set_xscale("log", base=2)
    row = f"{pools[0]['n_rows']} rows of {shown_bytes(pools[0]['row_bytes'])}"
    panel.set(xlabel="bytes of pinned memory that the rows come from", ylabel="GB/s", ylim=(0, None))
    byte_ticks(panel.xaxis, {r["pool_bytes"] for r in pools})
    panel.legend(fontsize=9)
    figure.suptitle(_title(f"A kernel reads {row}", pools[0]))
    return figure


def _settings(records: Sequence[Fields]) -> list[dict[str, Any]]:
    return distinct(records, ("row_order", "row_offset", "n_threads", "grid"))


def _same(setting: Mapping[str, Any], first: Fields, names: Sequence[str]) -> bool:
    return all(setting[name] == first[name] for name in names)


def _order(setting: Mapping[str, Any]) -> str:
    offset = f", {setting['row_offset']} bytes off" if setting["row_offset"] else ""
    return f"{setting['row_order']}{offset}"


def _transfer_name(r: Fields) -> str:
    if r["method"] == "zero-copy":
        return f"rows, {counted(r['grid'], 'block')}"
    return f"copy {WAYS[r['direction']]}"


def _title(what: str, record: Fields) -> str:
    link = f", {record['link']}" if record["link"] else ""
    return f"{what}: {record['gpu_info']}{link} ({record['test_time'][:10]})"
