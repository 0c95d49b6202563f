"""The plot of bench_recall.py, also from its result file.

python bench/recall_plot.py bench/results/NAME.json bench/results/NAME
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import plot_file

ERRORS = {
    "attention_error": "attention output error, ||o - full|| / ||full||",
    "kl_mean": "KL divergence of the next token, mean (nats)",
}
BYTES = {"gross_bytes": "asked of the host (gross)", "moved_bytes": "moved over the link"}


def plot(result: dict[str, Any], target: Path) -> None:
    """Writes target.png and target.svg: both errors against both kinds of bytes, a line per method."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = [row for row in result["rows"] if row["method"] != "full"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, panels = pyplot.subplots(2, 2, figsize=(11, 8), sharex=True, sharey="row", layout="constrained")
    for (error, error_title), line_of_panels in zip(ERRORS.items(), panels, strict=True):
        for (n_bytes, bytes_title), panel in zip(BYTES.items(), line_of_panels, strict=True):
            for i, method in enumerate(methods):
                points = sorted((row[n_bytes] / 1e6, row[error]) for row in rows if row["method"] == method)
                style = {"color": f"C{i % 10}", "marker": "osD^v<>pX"[i % 9], "ms": 4, "lw": 1.2}
                panel.loglog(*zip(*points, strict=True), label=method, **style)
            panel.grid(which="major", color="0.9")
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
            if error == list(ERRORS)[-1]:
                panel.set_xlabel(f"MB a token {bytes_title}")
        line_of_panels[0].set_ylabel(error_title)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.suptitle(
        f"{result['model']}, {result['text']}: {result['new']} tokens behind {result['depth']}, "
        f"{result['cache_type']} rows ({result['date'][:10]})"
    )
    plot_file.save(figure, target)


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
