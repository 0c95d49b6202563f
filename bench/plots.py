"""Every picture of bench/results anew, from the results beside it.

    python bench/plots.py
    python bench/plots.py bench/results/NAME.json ...

Without names it takes every result file that has a picture: NAME.png, or NAME-*.png for files of `transfer`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import decode_plot
import depth_plot
import recall_plot
import serve_plot
import threads_plot

RESULTS = Path(__file__).parent / "results"
PLOTS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "decode": decode_plot.plot,
    "depth": depth_plot.plot,
    "recall": recall_plot.plot,
    "serve": serve_plot.plot,
    "threads": threads_plot.plot,
}


def pictures(path: Path) -> list[Path]:
    return [*path.parent.glob(f"{path.stem}.png"), *path.parent.glob(f"{path.stem}-*.png")]


def draw(path: Path) -> None:
    """Raises: ValueError for results that have no plot, KeyError for those of older versions."""
    result = json.loads(path.read_text(encoding="utf-8"))
    target = path.with_suffix("")
    if isinstance(result, dict) and result.get("bench") in PLOTS:
        PLOTS[result["bench"]](result, target)
    elif isinstance(result, list) and result and "test" in result[0]:
        draw_transfer(result, target)
    else:
        raise ValueError(f"{path} is no result of {', '.join(PLOTS)} or transfer")


def draw_transfer(records: list[dict[str, Any]], target: Path) -> None:
    from yakvrt.transfer.plot import draw as draw_records

    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        for file in draw_records(records, Path(directory)):
            file.replace(target.with_name(f"{target.name}-{file.name.removeprefix('transfer-')}"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Draws the pictures of result files anew.")
    parser.add_argument("results", type=Path, nargs="*", metavar="RESULT.json")
    args = parser.parse_args()
    for path in args.results or sorted(path for path in RESULTS.glob("*.json") if pictures(path)):
        try:
            draw(path)
        except KeyError as error:
            print(f"{path} has no {error}: an older version wrote it, its picture stays as it is")
        except (ValueError, OSError) as error:
            raise SystemExit(f"error: {error}") from None
        else:
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
