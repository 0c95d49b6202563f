"""Answers requests with one model in this process."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from yakvrt.batch.answerer import Answerer

if TYPE_CHECKING:
    from yakvrt.batch.progress import Progress
    from yakvrt.batch.requests import BatchRequest

AHEAD = 4  # requests under way that have no slot yet: they are read and checked while others are answered


def answer_here(
    args: argparse.Namespace,
    overrides: dict[str, object],
    requests: Iterator[BatchRequest],
    progress: Progress,
) -> None:
    """Returns when all are answered. Raises: what loading raises; ModelFailedError; OSError."""
    answerer = Answerer(args, overrides)
    try:
        progress.begin(answerer.name)
        asyncio.run(_answer_all(answerer, requests, progress, args.parallel + AHEAD))
    finally:
        answerer.close()


async def _answer_all(
    answerer: Answerer, requests: Iterator[BatchRequest], progress: Progress, n_under_way: int
) -> None:
    async def answer(request: BatchRequest) -> None:
        status, body = await answerer.answer(request.url, request.body)
        progress.answered(request, status, body)

    tasks: set[asyncio.Task[None]] = set()
    for request in requests:
        tasks.add(asyncio.create_task(answer(request)))
        if len(tasks) == n_under_way:
            tasks = await _some(tasks)
    while tasks:
        tasks = await _some(tasks)


async def _some(tasks: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Those left when at least one has ended. Raises: what one of them raised."""
    ended, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        task.result()
    return left
