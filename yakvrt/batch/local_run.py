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
    free = asyncio.Semaphore(n_under_way)

    async def answer(request: BatchRequest) -> None:
        status, body = await answerer.answer(request.url, request.body)
        progress.answered(request, status, body)
        free.release()

    try:
        async with asyncio.TaskGroup() as group:
            for request in requests:
                await free.acquire()
                group.create_task(answer(request))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
