"""A report of `yakvrt transfer`, an HTML file that loads nothing: machine, method, plots, tables by test."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yakvrt.transfer.gpu_records import overlapped
from yakvrt.transfer.records import shown_bytes, shown_time
from yakvrt.whole_file import write_whole

Fields = Mapping[str, Any]
METHOD = (
    "Every test warms up, repeats what is short within a sample, takes at least 5 samples and compares the "
    "bytes that were left with what numpy expects; the tables have medians, standard deviations and the "
    "coefficient of variation (deviation over mean). On a GPU, streams wait at a gate until everything is "
    "asked for and events give the time, unless a row's clock says host; what is marked modelled was not run."
)
# facts of the machine and the build: one value in all records
FACTS = (
    *("cpu_info", "n_cpus", "n_numa_nodes", "llc_bytes", "memory_bytes", "huge_pages", "system"),
    *("gpu_info", "gpu_memory_bytes", "n_multiprocessors", "compute_capability", "driver", "cuda_version"),
    *("link", "most_link", "gpu_node", "backends", "build_commit", "build_number"),
)
HIDDEN = {"test", "samples_ns", "test_time", "avg_ns", "min_ns", "stddev_ns", "n_bytes", *FACTS}
# behind the columns that tell rows apart
MEASURES = ("median_ns", "median_gbps", "stddev_gbps", "cv")
NO_PLOTS = "<p>Without plots: matplotlib is not there (pip install 'yakvrt[plot]').</p>"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 75rem; margin: 2rem auto; }
body { padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 2px 10px; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th { position: sticky; top: 0; background: #fff; } th.text, td.text { text-align: left; }
tr:hover td { background: #f4f7fa; } .wide { overflow: auto; max-height: 40rem; }
svg { max-width: 100%; height: auto; } figure { margin: 1.5rem 0; } .facts td:first-child { color: #666; }
"""


def write_report(path: Path, records: Sequence[Fields]) -> None:
    """Seen whole or not at all. Raises: OSError."""
    text = "".join(f"{part}\n" for part in _parts(records))
    write_whole(path, text.encode(), 0o644)


def _parts(records: Sequence[Fields]) -> Iterator[str]:
    first = records[-1]  # a GPU's link is as fast as it can be once it was used
    where = first.get("gpu_info") or first["cpu_info"]
    title = escape(f"yakvrt transfer: {where}, {first['test_time'][:10]}")
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f"<style>{STYLE}</style></head><body><h1>{title}</h1><p>{escape(METHOD)}</p>"
    yield "<h2>Machine and build</h2>"
    yield '<table class="facts">'
    for name in FACTS:
        if first.get(name) not in (None, "", -1):
            value = first[name]
            if name.endswith("_bytes") and value >= 1 << 30:
                value = f"{value / 2**30:.1f} GiB"  # what systems have is no round number
            elif name.endswith("_bytes"):
                value = shown_bytes(value)
            cells = (escape(text) for text in (_heading(name), str(value)))
            yield "<tr>" + "".join(f'<td class="text">{cell}</td>' for cell in cells) + "</tr>"
    yield "</table>"
    if find_spec("matplotlib"):
        from yakvrt.transfer.plot import svg_texts

        for i, text in enumerate(svg_texts(records)):
            yield f"<figure>{_inline(text, f'p{i}-')}</figure>"
    else:
        yield NO_PLOTS
    for test in dict.fromkeys(r["test"] for r in records):
        yield from _table(test, [r for r in records if r["test"] == test])
    yield "</body></html>"


def _table(test: str, records: Sequence[Fields]) -> Iterator[str]:
    """What differs between the records, then what was measured."""
    told = [n for n in records[0] if n not in HIDDEN and n not in MEASURES]
    columns = [n for n in told if len({r[n] for r in records}) > 1]
    shared = [(n, _shown(n, records[0][n])) for n in told if n not in columns]
    yield f"<h2>{escape(test)}</h2>"
    yield f"<p>{escape(', '.join(f'{_heading(n)} {text}' for n, text in shared if text))}</p>"
    yield '<div class="wide"><table><tr>'
    moves = any(r["n_bytes"] for r in records)
    names = [*columns, *(n for n in MEASURES if moves or not n.endswith("gbps"))]
    kinds = [' class="text"' if isinstance(records[0][n], str) else "" for n in names]
    cells = [f"<th{kind}>{escape(_heading(n))}</th>" for n, kind in zip(names, kinds, strict=True)]
    hidden = test == "overlap"
    yield "".join(cells) + ("<th>hidden</th><th>work takes</th>" if hidden else "") + "</tr>"
    for r in records:
        cells = [f"<td{kind}>{escape(_shown(n, r[n]))}</td>" for n, kind in zip(names, kinds, strict=True)]
        yield f"<tr>{''.join(cells)}{_hidden(r) if hidden else ''}</tr>"
    yield "</table></div>"


def _hidden(r: Fields) -> str:
    """Cells: how much of transfer or work the other one hides, how many times as long the work takes."""
    takes = r["work_beside_ns"] / r["work_alone_ns"] if r["work_alone_ns"] else 0.0
    return f"<td>{overlapped(dict(r)):.0%}</td><td>{takes:.2f}</td>"


def _heading(name: str) -> str:
    return {
        "median_ns": "time",
        "median_gbps": "GB/s",
        "stddev_gbps": "± GB/s",
        "n_rows": "rows",
        "row_bytes": "row",
        "row_offset": "offset",
        "is_gated": "gated",
    }.get(name, re.sub(r"^n_|_(info|bytes|ns)$", "", name).replace("_", " "))


def _shown(name: str, value: Any) -> str:
    """As people read it; "" for what a test does not have."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("node", "gpu_node") and value < 0:
        return ""
    if name not in MEASURES and not value:
        return ""
    if name.endswith("_bytes"):
        return shown_bytes(value)
    if name.endswith("_ns"):
        return shown_time(value)
    if name == "cv":
        return f"{value:.1%}"
    if isinstance(value, float):
        return f"{value:.2f}"
    return str(value)


def _inline(svg: str, prefix: str) -> str:
    """An SVG file as an element: without what stands before it, its names kept apart from other plots'."""
    element = svg[svg.index("<svg") :].strip()
    element = re.sub(r'\bid="', f'id="{prefix}', element)
    element = re.sub(r'href="#', f'href="#{prefix}', element)
    element = element.replace("url(#", f"url(#{prefix}")
    return re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
