"""The plot of bench_decode.py, also from its result file.

python bench/decode_plot.py bench/results/NAME.json bench/results/NAME
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import plot_file


def plot(result: dict[str, Any], target: Path) -> None:
    """Writes target.png and target.svg: a panel per method, tokens/s against tokens held, a line per number
    of slots; dashed what was predicted.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = result["rows"]
    methods = list(dict.fromkeys(row["kv"] for row in rows))
    size = 5 * len(methods), 4.2
    figure, panels = pyplot.subplots(
        1, len(methods), figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    batches = sorted({row["slots"] for row in rows})
    for panel, method in zip(panels[0], methods, strict=True):
        for i, n_slots in enumerate(batches):
            held = [row for row in rows if (row["kv"], row["slots"]) == (method, n_slots)]
            depths = [row["depth"] for row in held]
            label = f"{n_slots} slot{'s' if n_slots > 1 else ''}"
            rates = [row["tokens_per_s"] for row in held]
            panel.loglog(depths, rates, "osD^v<>p"[i % 8] + "-", ms=4, color=f"C{i}", label=label)
            told = [
                (row["depth"], n_slots * 1e3 / row["predicted_ms"]) for row in held if row["predicted_ms"]
            ]
            if told:
                panel.loglog(*zip(*told, strict=True), "--", color=f"C{i}", lw=1)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        contexts = sorted({row["depth"] for row in rows})
        panel.set_xticks(contexts, [f"{n // 1024}k" if n % 1024 == 0 else str(n) for n in contexts])
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(which="major", color="0.9")
        panel.set(xlabel="tokens held by every slot", title=f"--kv {method}")
        panel.legend(fontsize="small")
    panels[0][0].set_ylabel("tokens/s, all slots (dashed: predicted)")
    figure.suptitle(
        f"{result['model']} ({result['dtype']}) on {result['cpu']}, {result['threads']} threads "
        f"({result['date'][:10]})"
    )
    plot_file.save(figure, target)


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
