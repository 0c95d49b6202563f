"""Fetches a model to this machine and prints where it lies: `python -m yakvrt.pull NAME`."""

from __future__ import annotations

import argparse
from pathlib import Path

from yakvrt import terminal
from yakvrt.cli_parsing import Parser, parse
from yakvrt.model_files import HubError, ModelFiles


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the verb."""
    parser = Parser("pull", "Fetch a model to this machine and print its path on stdout.")
    parser.add_argument(
        "model", help="a name of 'yakvrt models', a hub repository user/repo[:quant], or a path"
    )
    parser.add_argument(
        "--offline", action="store_true", help="use no network: only say where the model lies"
    )
    parser.add_argument("--verify", action="store_true", help="hash the weights; fetch damaged ones again")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the verb and returns the exit code."""
    return terminal.run(lambda: _pull(parse(build_parser(), argv)))


def _pull(args: argparse.Namespace) -> int:
    from yakvrt import hub

    files = hub.resolve(args.model, offline=args.offline, progress=not args.quiet, refresh=not args.offline)
    if args.verify and _remove_damaged(args.model, files):
        files = hub.resolve(args.model, offline=args.offline, progress=not args.quiet, refresh=True)
        if damaged := _remove_damaged(args.model, files):
            raise HubError(f"{damaged[0]} was damaged again: check the disk and the network")
    print(files.directory if files.config else files.weights[0])
    return 0


def _remove_damaged(model: str, files: ModelFiles) -> list[Path]:
    """Hashes the weights where a sha256 is known; removes and gives those that differ."""
    from yakvrt.download_progress import note
    from yakvrt.hub_repo import weight_sha256
    from yakvrt.model_names import find_name
    from yakvrt.package_index import file_sha256

    entry = find_name(model)
    damaged = []
    for path in files.weights:
        packaged = (
            entry.packaged if entry and entry.packaged and entry.packaged.filename == path.name else None
        )
        expected = packaged.sha256 if packaged else weight_sha256(path)
        if expected is None:
            note(f"{path} has no known sha256 to compare with")
        elif file_sha256(path) == expected:
            note(f"{path.name}: sha256 is right")
        else:
            note(f"{path.name}: sha256 is wrong, the file is removed")
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            damaged.append(path)
    return damaged


if __name__ == "__main__":
    raise SystemExit(main())
