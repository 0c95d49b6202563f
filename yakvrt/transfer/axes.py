"""What the plots of `yakvrt transfer` share: colours, ticks of bytes, points out of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from yakvrt.transfer.records import shown_bytes

Fields = Mapping[str, Any]
# Okabe and Ito's colours, which most colour-blind readers tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.4",
    "axes.grid": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.hashsalt": "yakvrt",
}


def points_of(records: Sequence[Fields], x: str, **wanted: Any) -> list[tuple[float, float]]:
    """(x, GB/s) of the records that have these values."""
    found = [r for r in records if all(r[name] == value for name, value in wanted.items())]
    return sorted((r[x], r["median_gbps"]) for r in found)


def distinct(records: Sequence[Fields], names: Sequence[str]) -> list[dict[str, Any]]:
    """The settings that occur, the one timed first in front."""
    return [
        dict(zip(names, values, strict=True))
        for values in dict.fromkeys(tuple(r[name] for name in names) for r in records)
    ]


def typical_count(gathers: Sequence[Fields]) -> int:
    """The number of rows that was timed with most row sizes, and of those the one in the middle."""
    by_count: dict[int, set[int]] = {}
    for r in gathers:
        by_count.setdefault(r["n_rows"], set()).add(r["row_bytes"])
    most = max(map(len, by_count.values()))
    best = sorted(n for n, sizes in by_count.items() if len(sizes) == most)
    return best[len(best) // 2]


def shown_peak(points: Sequence[tuple[float, float]]) -> str:
    """The largest rate, and the size from which on half of it is reached."""
    top = max(rate for _, rate in points)
    half = next(int(size) for size, rate in points if rate >= top / 2)
    return f"up to {top:.1f} GB/s, half from {shown_bytes(half)}"


def short(rate: float) -> str:
    return f"{rate:.2f}" if rate < 1 else f"{rate:.1f}" if rate < 10 else f"{rate:.0f}"


def byte_ticks(axis: Any, values: set[int]) -> None:
    from matplotlib.ticker import NullLocator

    ticks = sorted(values)
    shown = ticks[:: -(-len(ticks) // 10)]
    axis.set_ticks(shown, [shown_bytes(n) for n in shown])
    axis.set_minor_locator(NullLocator())
    axis.set_tick_params(rotation=30)
