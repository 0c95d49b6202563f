"""Draws the records of `yakvrt transfer`: rates of copies and rows by their size, maps of size and number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from yakvrt.transfer.axes import (
    COLOURS,
    MARKERS,
    STYLE,
    Fields,
    byte_ticks,
    distinct,
    points_of,
    short,
    shown_peak,
    typical_count,
)
from yakvrt.transfer.gpu_plot import gpu_figures
from yakvrt.transfer.records import MODELLED, shown_bytes

SETTING = ("row_order", "row_offset", "pages", "n_threads")


def draw(records: Sequence[Fields], directory: Path) -> list[Path]:
    """Writes what the records are enough for, each as .png and .svg: copy, rows and map of the host's tests,
    more of a GPU's.

    Raises: OSError.
    """
    written = []
    for name, figure in _drawn(records):
        for suffix in ("png", "svg"):
            written.append(directory / f"{name}.{suffix}")
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(written[-1], dpi=150, metadata=metadata)
    return written


def svg_texts(records: Sequence[Fields]) -> Iterator[str]:
    """The same as texts of SVG files."""
    for _, figure in _drawn(records):
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        yield text.getvalue()


def _drawn(records: Sequence[Fields]) -> Iterator[tuple[str, Any]]:
    """Figures and their names, one at a time."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        for name, figure in gpu_figures(records) if "method" in records[0] else _figures(records):
            yield name, figure
            pyplot.close(figure)


def _figures(records: Sequence[Fields]) -> Iterator[tuple[str, Any]]:
    copies = [r for r in records if r["test"] in ("copy", "copy-cached")]
    gathers = [r for r in records if r["test"] == "gather"]
    if copies:
        yield "transfer-copy", _draw_copies(copies)
    if gathers:
        yield "transfer-rows", _draw_rows(gathers, copies, [r for r in records if r["kind"] == MODELLED])
        yield "transfer-map", _draw_maps(gathers)


def _draw_copies(copies: Sequence[Fields]) -> Any:
    """Rate against size, a line for each setting; dashed where the source rests in a cache."""
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(8.5, 4.8), layout="constrained")
    settings = distinct(copies, ("pages", "n_threads"))
    for test, line in (("copy", "-"), ("copy-cached", "--")):
        for i, setting in enumerate(settings):
            points = points_of(copies, "n_bytes", test=test, **setting)
            if points:
                start = "from memory" if test == "copy" else "same piece again"
                label = f"{start}, {_setting_name(setting)}: {shown_peak(points)}"
                style: Any = {"color": COLOURS[i % 7], "marker": MARKERS[i % 7], "linestyle": line}
                panel.plot(*zip(*points, strict=True), label=label, **style)
    panel.set_xscale("log", base=2)
    panel.set(xlabel="bytes copied at once", ylabel="GB/s", ylim=(0, None))
    byte_ticks(panel.xaxis, {r["n_bytes"] for r in copies})
    if llc := copies[0]["llc_bytes"]:
        panel.axvline(llc, color="0.6", lw=1, ls=":")
        top = panel.get_xaxis_transform()
        panel.text(llc, 1.0, f" last cache, {shown_bytes(llc)}", color="0.4", va="top", transform=top)
    figure.legend(loc="outside lower center", ncols=1, fontsize=9)
    figure.suptitle(_title("Copies of host memory", copies[0]))
    return figure


def _draw_rows(gathers: Sequence[Fields], copies: Sequence[Fields], modelled: Sequence[Fields]) -> Any:
    """Rate against row size at one number of rows; beside it what a modelled link makes of the rows."""
    from matplotlib import pyplot

    n_rows = typical_count(gathers)
    base = distinct(gathers, SETTING)[0]
    n_panels = 2 if modelled else 1
    figure, panels = pyplot.subplots(
        1, n_panels, figsize=(6.2 * n_panels, 5.4), layout="constrained", squeeze=False
    )
    panel = panels[0, 0]
    for i, setting in enumerate(distinct(gathers, SETTING)):
        points = points_of(gathers, "row_bytes", n_rows=n_rows, **setting)
        style: Any = {"color": COLOURS[i % 7], "marker": MARKERS[i % 7]}
        panel.plot(*zip(*points, strict=True), label=_difference(setting, base), **style)
    shared = {name: base[name] for name in ("pages", "n_threads")}
    if peak := max((y for _, y in points_of(copies, "n_bytes", test="copy", **shared)), default=0.0):
        panel.axhline(peak, color="0.45", ls="--", lw=1.2, label=f"fastest copy from memory, {peak:.1f} GB/s")
    panel.set(title=f"{n_rows} rows gathered on the host (measured)")
    _finish_rows(panel, gathers)
    if modelled:
        _draw_link(panels[0, 1], modelled, base, n_rows)
        _finish_rows(panels[0, 1], modelled)
    figure.suptitle(_title("Scattered rows", gathers[0]))
    return figure


def _draw_link(panel: Any, modelled: Sequence[Fields], base: Fields, n_rows: int) -> None:
    names = {
        "gather+copy": "gather on the host, one copy",
        "zero-copy": "the GPU reads the rows",
        "copy-rows": "a copy for each row",
    }
    for i, (test, name) in enumerate(names.items()):
        points = points_of(modelled, "row_bytes", test=test, n_rows=n_rows, **base)
        if points:
            style = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": "--"}
            panel.plot(*zip(*points, strict=True), label=name, **style)
    rate, latency = modelled[0]["link_gbps"], modelled[0]["link_latency_us"]
    panel.axhline(rate, color="0.45", ls=":", lw=1.2, label="the link's rate")
    panel.set(title=f"the same over a link of {rate:g} GB/s and {latency:g} us (modelled)")


def _finish_rows(panel: Any, records: Sequence[Fields]) -> None:
    panel.set_xscale("log", base=2)
    panel.set(xlabel="bytes of a row", ylabel="GB/s", ylim=(0, None))
    byte_ticks(panel.xaxis, {r["row_bytes"] for r in records})
    panel.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)


def _draw_maps(gathers: Sequence[Fields]) -> Any:
    """GB/s of every row size and number of rows, a map for each order."""
    import numpy as np
    from matplotlib import pyplot

    base = distinct(gathers, SETTING)[0]
    orders = list(dict.fromkeys(r["row_order"] for r in gathers))
    sizes = sorted({r["row_bytes"] for r in gathers})
    counts = sorted({r["n_rows"] for r in gathers})
    maps = []
    for order in orders:
        rates = np.full((len(counts), len(sizes)), np.nan)
        for r in gathers:
            if all(r[name] == value for name, value in {**base, "row_order": order}.items()):
                rates[counts.index(r["n_rows"]), sizes.index(r["row_bytes"])] = r["median_gbps"]
        maps.append(rates)
    top = max(float(np.nanmax(rates)) for rates in maps)
    width, height = max(4.0, 1.2 + 0.62 * len(sizes)), 1.4 + 0.42 * len(counts)
    figure, panels = pyplot.subplots(
        len(orders), 1, figsize=(width, height * len(orders)), layout="constrained", squeeze=False
    )
    for panel, order, rates in zip(panels[:, 0], orders, maps, strict=True):
        image = panel.imshow(rates, cmap="viridis", vmin=0, vmax=top, aspect="auto", origin="lower")
        for y, x in zip(*np.nonzero(~np.isnan(rates)), strict=True):
            colour = "black" if rates[y, x] > 0.6 * top else "white"
            panel.text(x, y, short(rates[y, x]), ha="center", va="center", color=colour, fontsize=9)
        panel.set_xticks(range(len(sizes)), [shown_bytes(n) for n in sizes], rotation=35, ha="right")
        panel.set_yticks(range(len(counts)), [f"{n}" for n in counts])
        panel.set(title=f"rows in {order} order", ylabel="rows")
        panel.grid(False)
        panel.spines[:].set_visible(False)
    panels[-1, 0].set_xlabel("bytes of a row")
    figure.colorbar(image, ax=panels[:, 0].tolist(), label="GB/s", shrink=0.8)
    setting = _setting_name({**base, "row_order": ""})
    figure.suptitle(f"{_title('Gathered rows', gathers[0])}\n{setting}")
    return figure


def _setting_name(setting: Fields) -> str:
    threads = "1 thread" if setting["n_threads"] == 1 else f"{setting['n_threads']} threads"
    order = f"{setting['row_order']} order, " if setting.get("row_order") else ""
    offset = f"{setting['row_offset']} bytes off, " if setting.get("row_offset") else ""
    return f"{order}{offset}{setting['pages']} pages, {threads}"


def _difference(setting: Fields, base: Fields) -> str:
    """The first setting in full, of the others what they change."""
    if setting == base:
        return _setting_name(base)
    changed = {name: value for name, value in setting.items() if value != base[name]}
    words = {
        "row_order": "{} order",
        "row_offset": "rows start {} bytes off",
        "pages": "{} pages",
        "n_threads": "1 thread" if changed.get("n_threads") == 1 else "{} threads",
    }
    return "but " + ", ".join(words[name].format(value) for name, value in changed.items())


def _title(what: str, record: Fields) -> str:
    pool = shown_bytes(record["pool_bytes"])
    return f"{what}: {record['cpu_info']}, source of {pool} ({record['test_time'][:10]})"
