"""Compiles the CUDA kernels ahead of time, without a GPU, and reports on them: `python -m yakvrt kernels`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from yakvrt import terminal
from yakvrt.cli_parsing import Parser, parse

if TYPE_CHECKING:
    from yakvrt.cuda.cubin import Cubin

ARCHITECTURES = "sm_80,sm_90a,sm_100a"


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the verb."""
    parser = Parser("kernels", "Compile the CUDA kernels to cubins, or report what they take of a GPU.")
    parser.add_argument("action", choices=("build", "report"), help="write cubins to a directory, or report")
    parser.add_argument(
        "--arch",
        metavar="ARCH[,ARCH...]",
        help=f"GPU architectures (default: {ARCHITECTURES} to build, sm_90a to report)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="build: where the cubins go. report: built cubins to report on (default: compile them)",
    )
    parser.add_argument("--json", action="store_true", help="report: print a JSON list instead of a table")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the verb and returns the exit code."""
    return terminal.run(lambda: _kernels(parse(build_parser(), argv)))


def _kernels(args: argparse.Namespace) -> int:
    from yakvrt.cuda.architecture import architectures

    directory = Path(args.output) if args.output else None
    try:
        archs = architectures(args.arch or (ARCHITECTURES if args.action == "build" else "sm_90a"))
    except ValueError as error:
        raise terminal.UsageError(str(error)) from None
    if args.action == "report":
        return _report(archs, directory, args.json)
    if directory is None:
        raise terminal.UsageError("kernels build needs a directory for the cubins: add -o DIR")
    built = _compiled(archs, directory)
    for arch, cubins in built.items():
        n_bytes = sum(len(cubin.code) for cubin in cubins)
        print(f"{directory / arch}: {terminal.counted(len(cubins), 'cubin')}, {n_bytes / 1e3:.0f} kB")
    return 0


def _report(archs: list[str], directory: Path | None, as_json: bool) -> int:
    from yakvrt.cuda.compilers import cache_path
    from yakvrt.cuda.cubin import load_cubin
    from yakvrt.cuda.kernel_list import all_kernels
    from yakvrt.cuda.resource_report import report_lines, report_row

    if directory is None:
        built = _compiled(archs, cache_path())
    else:
        built = {arch: [load_cubin(directory, spec, arch) for spec in all_kernels(arch)] for arch in archs}
    rows = [report_row(cubin.manifest) for cubins in built.values() for cubin in cubins]
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    print("\n".join(report_lines(rows)))
    if rows[0]["opcodes"] is None:
        terminal.note(
            "built without nvdisasm, so no instructions: run pip install 'yakvrt[cuda]' and build again"
        )
    return 0


def _compiled(archs: list[str], directory: Path) -> dict[str, list[Cubin]]:
    """Raises: ValueError where the directory cannot be written."""
    from yakvrt.cuda.compilers import compile_missing
    from yakvrt.cuda.kernel_list import all_kernels

    try:
        with terminal.Bar("compiling CUDA kernels") as bar:
            return compile_missing(
                {arch: all_kernels(arch) for arch in archs},
                directory,
                lambda done, total, symbol: bar.loading(f"compiling CUDA kernels: {symbol}", done, total),
            )
    except OSError as error:
        raise ValueError(
            f"the cubins cannot be written to {directory} ({error.strerror}): choose a writable directory"
        ) from None


if __name__ == "__main__":
    raise SystemExit(main())
