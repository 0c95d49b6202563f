"""Lists the model names that yakvrt knows: `python -m yakvrt.models`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from yakvrt import terminal
from yakvrt.cli_parsing import Parser, parse


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the verb."""
    parser = Parser("models", "List the known model names, where they come from and which are here.")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the verb and returns the exit code."""
    return terminal.run(lambda: _list(parse(build_parser(), argv)))


def _list(args: argparse.Namespace) -> int:
    rows = _rows()
    if args.json:
        print(json.dumps(rows, indent=1))
    elif sys.stdout.isatty():
        _print_table(rows)
    else:
        for row in rows:
            print(*_cells(row), sep="\t")
    return 0


def _rows() -> list[dict[str, Any]]:
    from yakvrt import hub
    from yakvrt.model_names import MODEL_NAMES

    rows = []
    for entry in MODEL_NAMES.values():
        files = hub.local_copy(entry)
        path = (files.directory if files.config else files.weights[0]) if files else None
        rows.append(
            {
                "name": entry.name,
                "repo": entry.repo,
                "quant": entry.quant,
                "size": entry.size,
                "gated": entry.gated,
                "path": str(path) if path else None,
            }
        )
    return rows


def _cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    from yakvrt.download_progress import size_text

    source = row["repo"] + (f":{row['quant']}" if row["quant"] else "") + (" (gated)" if row["gated"] else "")
    return row["name"], source, size_text(row["size"]), row["path"] or "-"


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("NAME", "HUB REPOSITORY", "SIZE", "HERE"):
        table.add_column(title, no_wrap=title == "NAME", justify="right" if title == "SIZE" else "left")
    for row in rows:
        name, source, size, path = _cells(row)
        table.add_row(name, source, size, "yes" if path != "-" else "-")
    Console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
