"""Plots of an evaluation: quality against bytes, low beside high intensity, needles by length and depth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .bootstrap import Interval
from .findings import FULL, Findings, Method, title

MARKERS = "osD^v<>pX*"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "svg.hashsalt": "yakvrt",
}
READINGS = {"score": "score", "kl_mean": "KL divergence from full attention (nats)"}


def draw(findings: Findings, directory: Path) -> list[str]:
    """Writes what the records are enough for, each as MODEL-NAME.png and .svg. Returns: the PNGs' names.

    Raises: ImportError without matplotlib; OSError.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    written = []
    with matplotlib.rc_context(STYLE):
        for name, figure in _figures(findings):
            for suffix in ("svg", "png"):
                path = directory / f"{file_name(findings.model)}-{name}.{suffix}"
                figure.savefig(path, dpi=130, metadata={"Date": None} if suffix == "svg" else None)
            written.append(path.name)
            pyplot.close(figure)
    return written


def _figures(findings: Findings) -> Iterator[tuple[str, Any]]:
    if findings.offloading:
        yield "bytes", _quality_against_bytes(findings)
    if len(set(findings.tasks.values())) == 2:
        yield "intensity", _low_beside_high(findings)
    for task in findings.tasks:
        grids = {method: grid for method in findings.methods if (grid := findings.grid(task, method))}
        if grids:
            yield f"{file_name(task)}-grid", _needle_grids(task, grids)


def file_name(text: str) -> str:
    """Without what leaves a directory."""
    return re.sub(r"[^\w.-]+", "-", text)


def _look(findings: Findings, label: str) -> Any:
    labels = list(dict.fromkeys(method[0] for method in findings.methods))
    i = labels.index(label)
    return {"color": f"C{i % 10}", "marker": MARKERS[i % 10]}


def _quality_against_bytes(findings: Findings) -> Any:
    """A column for each task, a line for each method through its budgets; dashed: full attention's score."""
    from matplotlib import pyplot

    tasks = list(findings.tasks)
    size = 3.2 * len(tasks) + 2.2, 6.0
    figure, panels = pyplot.subplots(2, len(tasks), figsize=size, squeeze=False, layout="constrained")
    for row, (name, axis_title) in zip(panels, READINGS.items(), strict=True):
        for panel, task in zip(row, tasks, strict=True):
            for label in sorted(findings.offloading):
                points = []
                for method in findings.methods:
                    moved = findings.plain_mean("moved_bytes", task, method)
                    value = findings.plain_mean(name, task, method)
                    if method[0] == label and moved and value is not None:
                        points.append((moved / 1e6, value))
                if points:
                    panel.plot(*zip(*sorted(points), strict=True), label=label, **_look(findings, label))
            full = findings.plain_mean("score", task, FULL)
            if name == "score" and full is not None:
                panel.axhline(full, color="0.4", lw=1, ls="--", label="full")
            _plain_log(panel, "x")
            if name == "kl_mean":
                _plain_log(panel, "y")
            panel.set(title=f"{task} ({findings.tasks[task]})", xlabel="MB moved a token")
            panel.set_visible(panel.has_data())  # nothing may have been generated
        row[0].set_ylabel(axis_title)
    figure.legend(handles=_distinct(panels.flat), loc="outside right center")
    figure.suptitle(findings.model)
    return figure


def _plain_log(panel: Any, name: str) -> None:
    """An axis, x or y, made logarithmic, with ticks in plain numbers, also at 2 and 5 along fewer than three
    decades; as it is where all values are 0, as a divergence may be.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    if not np.isfinite(getattr(panel.dataLim, f"minpos{name}")):
        return
    getattr(panel, f"set_{name}scale")("log")
    axis = getattr(panel, f"{name}axis")
    first, last = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if last < 1000 * first else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _distinct(panels: Iterable[Any]) -> list[Any]:
    """What the panels' legends would show, each once."""
    found = {h.get_label(): h for panel in panels for h in panel.get_legend_handles_labels()[0]}
    return list(found.values())


def _loss(findings: Findings, name: str, method: Method, intensity: str) -> Interval:
    """Points of score lost, or the divergence as it is."""
    if name == "score":
        return findings.lost(method, intensity)
    return findings.mean(name, method, intensity=intensity)


def _low_beside_high(findings: Findings) -> Any:
    """Loss of score and KL of each method, means over tasks of either intensity with their intervals."""
    from matplotlib import pyplot

    methods = [method for method in findings.methods if method[0] in findings.offloading]
    figure, panels = pyplot.subplots(
        1, 2, figsize=(11, 1.2 + 0.36 * len(methods)), sharey=True, layout="constrained"
    )
    places = np.arange(len(methods))[::-1]
    for panel, (name, axis_title) in zip(panels, READINGS.items(), strict=True):
        for offset, intensity, colour, marker in ((0.15, "low", "C0", "o"), (-0.15, "high", "C1", "s")):
            for place, method in zip(places, methods, strict=True):
                found = _loss(findings, name, method, intensity)
                if not found.n:
                    continue
                look: Any = {"color": colour, "marker": marker, "ls": "", "label": f"{intensity} intensity"}
                panel.plot([found.mean], [place + offset], **look)
                if np.isfinite(found.low):
                    panel.plot([found.low, found.high], [place + offset] * 2, color=colour, lw=1.5)
        panel.set_xlabel("points of score lost against full" if name == "score" else axis_title)
    _plain_log(panels[1], "x")
    panels[0].set_yticks(places, [title(method) for method in methods])
    figure.legend(handles=_distinct(panels), loc="outside right upper")
    figure.suptitle(findings.model)
    return figure


def _needle_grids(task: str, grids: dict[Method, dict[tuple[Any, Any], float]]) -> Any:
    """A panel for each method: depth by length."""
    from matplotlib import pyplot

    columns = min(4, len(grids))
    rows = -(-len(grids) // columns)
    figure, panels = pyplot.subplots(
        rows, columns, figsize=(2.6 * columns + 0.8, 2.1 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(grids) :]:
        panel.axis("off")
    lengths = sorted({length for grid in grids.values() for length, _ in grid})
    depths = sorted({depth for grid in grids.values() for _, depth in grid})
    for panel, (method, grid) in zip(panels.flat, grids.items(), strict=False):
        cells = np.array([[grid.get((length, depth), np.nan) for length in lengths] for depth in depths])
        image = panel.imshow(cells, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        panel.set_xticks(range(len(lengths)), [str(length) for length in lengths], rotation=45)
        panel.set_yticks(range(len(depths)), [str(depth) for depth in depths])
        panel.grid(visible=False)
        panel.set_title(title(method))
    figure.colorbar(image, ax=panels, label="score", shrink=0.8)
    figure.supxlabel("tokens of the prompt")
    figure.supylabel("depth (%)")
    figure.suptitle(task)
    return figure
