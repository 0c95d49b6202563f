"""Writes a figure as the benches commit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save(figure: Any, target: Path) -> None:
    """Writes target.png and target.svg, and closes the figure."""
    from matplotlib import pyplot

    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        figure.savefig(target.with_name(f"{target.name}.{suffix}"), dpi=120)
    pyplot.close(figure)
