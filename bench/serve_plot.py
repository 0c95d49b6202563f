"""The plot of bench_serve.py, also from its result file.

python bench/serve_plot.py bench/results/NAME.json bench/results/NAME
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import plot_file


def plot(result: dict[str, Any], target: Path) -> None:
    """Writes target.png and target.svg: time to the first token and time per token against the arrival rate
    (median, and up to the 99th percentile), and tokens/s of one client and of many.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = result["rows"]
    servers = list(dict.fromkeys(row["server"] for row in rows))
    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    titles = {"ttft_ms": "time to the first token, ms", "tpot_ms": "time per token, ms"}
    for panel, (key, title) in zip(panels, titles.items(), strict=False):
        for i, server in enumerate(servers):
            held = sorted((row for row in rows if row["server"] == server and "rate" in row), key=rate_of)
            rates = [row["rate"] for row in held]
            panel.plot(rates, [row[key]["p50"] for row in held], "o-", color=f"C{i}", ms=4, label=server)
            panel.plot(rates, [row[key]["p99"] for row in held], "--", color=f"C{i}", lw=0.8)
        panel.set(xlabel="requests/s", title=f"{title} (dashed: 99th percentile)", yscale="log")
        panel.grid(alpha=0.3, which="both")
        panel.legend()
    clients = sorted({row["clients"] for row in rows if "clients" in row})
    for i, server in enumerate(servers):
        for j, n in enumerate(clients):
            rates = [
                row["tokens_per_s"] for row in rows if (row["server"], row.get("clients")) == (server, n)
            ]
            middle = sorted(rates)[len(rates) // 2]
            bar = panels[2].bar(j + 0.4 * i, middle, 0.36, color=f"C{i}", label=server if not j else None)
            panels[2].bar_label(bar, fmt="%.0f")
    labels = [f"{n} client{'s' if n > 1 else ''}" for n in clients]
    panels[2].set_xticks([j + 0.2 * (len(servers) - 1) for j in range(len(clients))], labels)
    panels[2].set(title="tokens/s, all clients together")
    panels[2].legend()
    figure.suptitle(f"{result['model']}, {result['threads']} threads, {result['cpu']}, {result['date'][:10]}")
    plot_file.save(figure, target)


def rate_of(row: dict[str, Any]) -> float:
    return float(row["rate"])


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
