"""`python -m gguf_tools verify FILE`: checks a file's structure and values, also against an original."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gguf_tools.terminal import Progress, run, shown

if TYPE_CHECKING:
    from gguf_tools.formats import Format
    from gguf_tools.reader import GGUFFile, Tensor
    from gguf_tools.split import SplitFile

# Rounding errors that no healthy conversion to these types reaches, relative to the tensor's size.
PLAIN_BOUNDS: Final = {"F64": 1e-6, "F32": 1e-6, "F16": 2e-3, "BF16": 8e-3}


def build_parser() -> argparse.ArgumentParser:
    """The flags of this verb."""
    parser = argparse.ArgumentParser(
        prog="gguf_tools verify",
        description="Check a GGUF file: structure, bounds, alignment, text, NaN, infinities, block scales. "
        "Exit code 1 when an error is found; warnings do not count.",
    )
    parser.add_argument("model", type=Path, help="a .gguf file, or one part of a split model")
    parser.add_argument(
        "--against", type=Path, metavar="ORIGINAL", help="also compare with the model this one was made from"
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="X",
        help="with --against: relative RMSE still allowed (default: by type)",
    )  # fmt: skip
    parser.add_argument(
        "--manifest", type=Path, metavar="F", help="also compare with hashes written by `hash`"
    )
    parser.add_argument("--no-values", action="store_true", help="only the structure; reads no tensor data")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    args = build_parser().parse_args(argv)
    return run(lambda: _verify(args))


@dataclass(slots=True)
class _Report:
    """What was found so far; a section is printed as soon as it is complete."""

    n_errors: int = 0
    n_warnings: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, found: Iterator[tuple[bool, str]]) -> None:
        for is_error, text in found:
            self.n_errors += is_error
            self.n_warnings += not is_error
            self.lines.append(f"  {'error' if is_error else 'warning'}: {text}")

    def section(self, title: str, summary: str) -> None:
        verdict = "FAILED" if any(line.startswith("  error") for line in self.lines) else "ok"
        print(f"{title:<10} {verdict}: {summary}", *self.lines, sep="\n")
        self.lines.clear()


def _verify(args: argparse.Namespace) -> int:
    from gguf_tools.metadata import GGUFError
    from gguf_tools.split import open_split, part_paths

    report = _Report()
    print(shown(str(args.model)))
    try:
        model = open_split(part_paths(args.model))
    except GGUFError as error:
        report.add(iter([(True, shown(str(error)))]))
        report.section("structure", "the file cannot be read")
        print("1 error, 0 warnings")
        return 1
    with model:
        _structure(model, report)
        if not args.no_values:
            _values(model.tensors, report)
        if args.manifest:
            _manifest(args.manifest, model.tensors, report)
        if args.against:
            _against(args.against, model.tensors, args.tolerance, report)
    print(f"{_counted(report.n_errors, 'error')}, {_counted(report.n_warnings, 'warning')}")
    return 1 if report.n_errors else 0


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _structure(model: GGUFFile | SplitFile, report: _Report) -> None:
    from gguf_tools.split import SplitFile
    from gguf_tools.structure_checks import check_structure

    parts = model.parts if isinstance(model, SplitFile) else (model,)
    for part in parts:
        report.add(check_structure(part))
    first = parts[0]
    in_parts = f"{len(parts)} parts, " if len(parts) > 1 else ""
    report.section(
        "structure",
        f"{in_parts}GGUF version {first.version}, {len(first.metadata)} metadata keys, "
        f"{len(model.tensors)} tensors, alignment {first.alignment}",
    )


def _values(tensors: Mapping[str, Tensor], report: _Report) -> None:
    from gguf_tools.value_checks import check_values

    with Progress("checking", sum(tensor.data.nbytes for tensor in tensors.values())) as progress:
        for tensor in tensors.values():
            report.add(check_values(tensor, progress.add))
    n_values = sum(math.prod(tensor.shape) for tensor in tensors.values())
    report.section("values", f"{n_values} values looked at for NaN, infinities and odd scales")


def _manifest(path: Path, tensors: Mapping[str, Tensor], report: _Report) -> None:
    from gguf_tools.manifest import mismatches, read_manifest

    wrong = mismatches(read_manifest(path), tensors, [], verbose=False)
    report.add((True, line) for line in wrong)
    report.section("manifest", shown(str(path)))


def _against(path: Path, tensors: Mapping[str, Tensor], tolerance: float | None, report: _Report) -> None:
    from gguf_tools.dequantize_compiled import WORTH_FROM
    from gguf_tools.model_tensors import computed, missing, open_tensors
    from gguf_tools.tensor_difference import difference

    worst, where, n_compared = 0.0, "", 0
    n_values = sum(math.prod(tensor.shape) for tensor in tensors.values())
    with (
        open_tensors(path) as original,
        Progress("comparing", sum(tensor.data.nbytes for tensor in tensors.values())) as progress,
    ):
        lost = missing(tensors, original, "the file", "the original", computed(path))
        report.add((True, line) for line in lost)
        for name, tensor in tensors.items():
            if name not in original or original[name].shape != tensor.shape:
                continue
            source = original[name]
            found = difference(tensor, source, progress.add, compiled=n_values >= WORTH_FROM)
            allowed = _bound(tensor.format) + _bound(source.format) if tolerance is None else tolerance
            n_compared += 1
            if found.relative_rmse >= worst:
                worst, where = found.relative_rmse, name
            if not found.relative_rmse <= allowed:
                off = f"{shown(name)}: relative RMSE {found.relative_rmse:.4g}, over {allowed:.4g}"
                report.add(iter([(True, f"{off} for {source.format.name} -> {tensor.format.name}")]))
    at = f", worst relative RMSE {worst:.4g} in {shown(where)}" if where else ""
    report.section("against", f"{shown(str(path))}: {n_compared} tensors compared{at}")


def _bound(fmt: Format) -> float:
    """The largest relative RMSE that storing in this type may cause.

    The error of a block type halves with every bit per weight; real models stay below half of this.
    """
    return PLAIN_BOUNDS.get(fmt.name) or min(0.9, 4 * 2 ** (-8 * fmt.block_bytes / fmt.block_len))


if __name__ == "__main__":
    raise SystemExit(main())
