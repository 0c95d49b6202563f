"""The plot of bench_threads.py, also from its result file.

python bench/threads_plot.py bench/results/NAME.json bench/results/NAME
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import plot_file

TITLES = {"tg": "decode, one token at a time", "pp": "prefill of 512 tokens"}


def plot(result: dict[str, Any], target: Path) -> None:
    """Writes target.png and target.svg: measured tokens/s, the model, and what the bandwidth alone allows."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    rows = result["rows"]
    held = [row for row in rows if not row["oversubscribed"]]
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, (test, title) in zip(panels, TITLES.items(), strict=True):
        model = result["models"][test]
        asked = [row["threads_asked"] for row in rows]
        panel.plot(asked, [row[f"{test}_tps"] for row in rows], "o", color="C0", label="measured")
        at = [row["threads"] for row in held]
        panel.plot(
            at, model["modelled_tps"], "-", color="C1", label="max(bytes / bandwidth, work / n) + barriers"
        )
        if test == "tg":
            limit = [1e9 * row["read_gbps"] / model["bytes"] for row in held]
            panel.plot(at, limit, "--", color="C2", label="a plain read of the same bytes")
        if len(held) < len(rows):
            panel.axvspan(len(held) + 0.5, asked[-1] + 0.5, color="0.92", label="more than the CPUs")
        panel.set(title=title, xlabel="threads asked for (-t)", ylabel="tokens/s")
        panel.set_ylim(0, 1.15 * panel.get_ylim()[1])
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.legend(fontsize="small", loc="lower right")
    figure.suptitle(f"{result['model']} on {result['cpu']}, {result['n_cpus']} CPUs ({result['date'][:10]})")
    plot_file.save(figure, target)


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
