"""Answers a file of requests: `python -m yakvrt batch`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from yakvrt import terminal
from yakvrt.batch.arguments import build_parser
from yakvrt.cli_arguments import sampling_overrides
from yakvrt.cli_parsing import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return the exit code."""
    return terminal.run(lambda: _batch(parse(build_parser(), argv)))


def _batch(args: argparse.Namespace) -> int:
    overrides = sampling_overrides(args)
    if args.workers and not args.ray:
        raise terminal.UsageError("--workers is for --ray; one process has one model, see -np")
    try:
        import msgspec  # noqa: F401
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
    except ImportError as error:
        raise RuntimeError(f"batch needs more packages ({error}); pip install 'yakvrt[server]'") from None
    from yakvrt.batch.progress import Progress
    from yakvrt.batch.requests import RequestFile
    from yakvrt.batch.results import ResultFile

    with RequestFile(args.input) as requests, ResultFile(args.output) as results:
        if results.same_file(args.input):
            raise terminal.UsageError(f"{args.output} is the input; give another output")
        requests.check(results.held, results.path)
        if not len(requests):
            raise ValueError(f"{requests.path} holds no requests; give some, one a line")
        if results.torn_bytes:
            terminal.note(f"{results.path}: dropped a result that a run before had not written whole")
        n_left = len(requests) - len(results.held)
        if results.held:
            terminal.note(f"{results.path} holds {len(results.held)} of {len(requests)} results")
        if not n_left:
            return 0
        with Progress(results, n_left) as progress:
            unanswered = requests.unanswered(results.held)
            if args.ray:
                from yakvrt.batch.ray_run import answer_on_ray

                answer_on_ray(args, overrides, unanswered, progress)
            else:
                from yakvrt.batch.local_run import answer_here

                args.device = args.device or "cpu"
                answer_here(args, overrides, unanswered, progress)
    return 0
