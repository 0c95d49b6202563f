"""The plot of bench_depth.py, also from its result file.

python bench/depth_plot.py bench/results/NAME.json bench/results/NAME
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import plot_file


def plot(result: dict[str, Any], target: Path) -> None:
    """Writes target.png and target.svg: tokens/s and the gain over the first method, a line per method."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    methods = list(dict.fromkeys(row["kv"] for row in result["rows"]))
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    titles = {"tokens_per_s": "tokens/s", "ratio": f"times as fast as {methods[0]}"}
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for i, method in enumerate(methods):
            points = [(row["depth"], row[key]) for row in result["rows"] if row["kv"] == method]
            panel.loglog(*zip(*points, strict=True), "osD^v<>pX"[i % 9] + "-", ms=4, label=method)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        panel.grid(which="major", color="0.9")
        panel.set(xlabel="tokens held", ylabel=title)
        panel.legend(fontsize="small")
    figure.suptitle(
        f"{result['model']} on {result['cpu']}, {result['threads']} threads ({result['date'][:10]})"
    )
    plot_file.save(figure, target)


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
