"""Requests to an OpenAI-compatible server, timed from outside: one after the other, or as they come."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import httpx

WORDS = [
    "river",
    "stone",
    "letter",
    "garden",
    "winter",
    "paper",
    "engine",
    "market",
    "silver",
    "window",
    "forest",
    "bottle",
    "morning",
    "shadow",
    "teacher",
    "island",
    "bridge",
    "candle",
    "harbour",
    "mountain",
    "village",
    "kitchen",
    "captain",
    "feather",
    "journey",
    "lantern",
    "meadow",
    "orchard",
    "pocket",
    "quarry",
    "ribbon",
    "saddle",
    "thunder",
    "umbrella",
    "valley",
    "whistle",
]


@dataclass(slots=True)
class Answer:
    """Seconds since the run began; pieces are the times at which text came."""

    sent: float
    pieces: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def ttft_s(self) -> float:
        return self.pieces[0] - self.sent

    @property
    def tpot_s(self) -> float:
        """Seconds per piece behind the first; a piece is a token but for characters of several tokens."""
        return (self.pieces[-1] - self.pieces[0]) / max(1, len(self.pieces) - 1)


def prompt_of(n_words: int, draw: random.Random) -> str:
    """No two begin alike, so that no cache of prompts helps."""
    return "Tell a long story with these words: " + " ".join(draw.choices(WORDS, k=n_words))


class Load:
    """A server under load. All prompts are seeded, so that two servers get the same ones."""

    def __init__(self, url: str, model: str, n_words: int, max_tokens: int) -> None:
        self._body = {"model": model, "temperature": 0, "max_tokens": max_tokens, "stream": True}
        self._url, self._n_words = f"{url}/v1/completions", n_words

    def concurrent(self, n_clients: int, n_requests: int, seed: int) -> tuple[list[Answer], float]:
        """n_clients that each send their next request when the last is answered. Returns: and the seconds."""

        async def client(send: Callable[[str], Awaitable[Answer]], prompts: list[str]) -> list[Answer]:
            found = []
            while prompts:
                found.append(await send(prompts.pop()))
            return found

        async def run(send: Callable[[str], Awaitable[Answer]], prompts: list[str]) -> list[Answer]:
            lists = await asyncio.gather(*(client(send, prompts) for _ in range(n_clients)))
            return [answer for answers in lists for answer in answers]

        return asyncio.run(self._within(run, n_requests, seed))

    def open_loop(self, rate: float, n_requests: int, seed: int) -> tuple[list[Answer], float]:
        """Requests come at random (Poisson), `rate` a second, however long the answers take."""
        draw = random.Random(seed)

        async def run(send: Callable[[str], Awaitable[Answer]], prompts: list[str]) -> list[Answer]:
            tasks = []
            for prompt in prompts:
                tasks.append(asyncio.create_task(send(prompt)))
                await asyncio.sleep(draw.expovariate(rate))
            return list(await asyncio.gather(*tasks))

        return asyncio.run(self._within(run, n_requests, seed))

    async def _within(
        self,
        run: Callable[[Callable[[str], Awaitable[Answer]], list[str]], Awaitable[list[Answer]]],
        n_requests: int,
        seed: int,
    ) -> tuple[list[Answer], float]:
        draw = random.Random(seed)
        prompts = [prompt_of(self._n_words, draw) for _ in range(n_requests)]
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=600, limits=limits) as http:
            began = time.perf_counter()

            async def send(prompt: str) -> Answer:
                answer = Answer(time.perf_counter() - began)
                try:
                    async with http.stream("POST", self._url, json={**self._body, "prompt": prompt}) as reply:
                        if reply.status_code != 200:
                            answer.error = f"{reply.status_code} {(await reply.aread())[:200]!r}"
                            return answer
                        async for line in reply.aiter_lines():
                            if is_text(line):
                                answer.pieces.append(time.perf_counter() - began)
                except httpx.HTTPError as error:
                    answer.error = f"{type(error).__name__}: {error}"
                return answer

            answers = await run(send, prompts)
            return answers, time.perf_counter() - began


def is_text(line: str) -> bool:
    """Whether a line of server-sent events carries text."""
    if not line.startswith("data: {"):
        return False
    choices = json.loads(line[6:]).get("choices") or [{}]
    return bool(choices[0].get("text"))


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile; of nothing nothing."""
    ordered = sorted(values)
    return {
        f"p{percent}": ordered[min(len(ordered) - 1, percent * len(ordered) // 100)]
        for percent in (50, 90, 99)
        if ordered
    }
