"""How many workers a cluster gets, and what each of them takes of it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from yakvrt.terminal import UsageError, counted


@dataclass(frozen=True, slots=True)
class Placement:
    """Workers that are all alike."""

    n_workers: int
    cpus_each: int
    gpus_each: int


def place(args: argparse.Namespace, machines: Sequence[Mapping[str, float]]) -> Placement:
    """One worker for each GPU where there are any (--device decides), else --workers of them, one for each
    machine by default. `machines` are their resources, as Ray names them.

    Raises: UsageError for what the cluster does not have.
    """
    n_gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    if args.device not in (None, "cpu", "cuda"):
        raise UsageError(f"Ray chooses the GPU of a worker; --device {args.device} must be cuda or cpu")
    if args.device == "cuda" or (args.device is None and n_gpus):
        n_workers = args.workers or n_gpus
        if not 0 < n_workers <= n_gpus:
            raise UsageError(
                f"the cluster has {counted(n_gpus, 'GPU')}, one for a worker; lower --workers or give "
                "--device cpu"
            )
        return Placement(n_workers, 1, 1)
    cpus = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
    n_workers = args.workers or len(cpus)
    if not 0 < n_workers <= sum(cpus):
        raise UsageError(
            f"the cluster has {counted(sum(cpus), 'CPU')}, at least one for a worker; lower --workers"
        )
    # The most that all workers can have, wherever the cluster puts them.
    cpus_each = max(
        n for n in range(1, max(cpus) + 1) if n == 1 or sum(each // n for each in cpus) >= n_workers
    )
    return Placement(n_workers, cpus_each, 0)


def worker_args(args: argparse.Namespace, placement: Placement) -> argparse.Namespace:
    """The flags as a worker takes them, wherever it runs."""
    given = argparse.Namespace(**vars(args))
    given.device = "cuda" if placement.gpus_each else "cpu"
    for name in ("model", "chat_template_file", "cubins"):
        path = getattr(given, name)
        if path is not None and os.path.exists(path):
            setattr(given, name, os.path.abspath(path))
    return given
