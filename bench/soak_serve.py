"""A server among clients of all kinds: good ones, and such that leave, send nonsense, are slow, ask too much.

    python bench/soak_serve.py --model smollm2-135m --requests 1000 --out bench/results/NAME.json
    python bench/soak_serve.py --model smollm2-135m --minutes 30 --out bench/results/NAME.json

Every good request has to get a text that it got when nobody else was there: its prompt taken in whole, or all
but its last token known from before, which rounds differently. At the end all slots have to be free,
threads as many as after the first quarter, and memory within 2 % of what it was then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import result_file
from load_client import WORDS, prompt_of
from server_process import free_port, ours, resident_bytes, serving

KINDS = {"good": 50, "leaves": 20, "malformed": 15, "slow": 5, "too long": 10}  # shares
MALFORMED = (b"", b"{", b"[]", b'{"prompt": 7}', b'{"prompt": "x", "max_tokens": -5}', b"\\xff" * 100)
N_PROMPTS = 12


class Soak:
    """Clients of one server."""

    def __init__(self, url: str, seed: int) -> None:
        draw = random.Random(seed)
        self._url, self._draw = f"{url}/v1/completions", draw
        # none begins like another, so that nothing but a whole prompt is known
        self._prompts = [f"{word} {prompt_of(draw.randint(2, 80), draw)}" for word in WORDS[:N_PROMPTS]]
        self._expected: list[set[str]] = []
        self.found: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def learn(self, http: httpx.AsyncClient) -> None:
        """What the prompts are answered, one after the other, new and known."""
        for i in range(N_PROMPTS):
            replies = [await http.post(self._url, json=self._body(i)) for _ in range(2)]
            self._expected.append({reply.json()["choices"][0]["text"] for reply in replies})

    def _body(self, i: int, **more: Any) -> dict[str, Any]:
        return {"prompt": self._prompts[i], "max_tokens": 8 + 5 * i, "temperature": 0, **more}

    async def request(self, http: httpx.AsyncClient) -> None:
        kind = self._draw.choices(list(KINDS), list(KINDS.values()))[0]
        try:
            problem = await getattr(self, f"_{kind.replace(' ', '_')}")(http, self._draw.randrange(N_PROMPTS))
        except httpx.HTTPError as error:
            problem = f"{type(error).__name__}: {error}"
        self.found[kind] += 1
        if problem:
            self.wrong.append(f"{kind}: {problem}")

    async def _good(self, http: httpx.AsyncClient, i: int) -> str:
        if self._draw.random() < 0.5:
            reply = await http.post(self._url, json=self._body(i))
            if reply.status_code != 200:
                return f"{reply.status_code} {reply.text[:200]}"
            text = reply.json()["choices"][0]["text"]
        else:
            async with http.stream("POST", self._url, json=self._body(i, stream=True)) as reply:
                text = "".join([piece async for piece in texts(reply)])
        return self._compared(i, text)

    async def _leaves(self, http: httpx.AsyncClient, i: int) -> str:
        n, came = self._draw.randint(0, 4), 0
        async with http.stream("POST", self._url, json=self._body(i, stream=True)) as reply:
            async for _ in texts(reply):
                came += 1
                if came > n:
                    break
        return ""

    async def _slow(self, http: httpx.AsyncClient, i: int) -> str:
        text = ""
        async with http.stream("POST", self._url, json=self._body(i, stream=True)) as reply:
            async for piece in texts(reply):
                text += piece
                await asyncio.sleep(0.02)
        return self._compared(i, text)

    async def _malformed(self, http: httpx.AsyncClient, i: int) -> str:
        reply = await http.post(self._url, content=self._draw.choice(MALFORMED))
        return self._refused(reply)

    async def _too_long(self, http: httpx.AsyncClient, i: int) -> str:
        return self._refused(await http.post(self._url, json={"prompt": "word " * 5000}))

    def _compared(self, i: int, text: str) -> str:
        return "" if text in self._expected[i] else f"answered {text!r} instead of {self._expected[i]!r}"

    @staticmethod
    def _refused(reply: httpx.Response) -> str:
        is_refusal = 400 <= reply.status_code < 500 and "error" in reply.json()
        return "" if is_refusal else f"{reply.status_code} {reply.text[:200]}"


async def texts(reply: httpx.Response) -> Any:
    """The pieces of text of a stream."""
    async for line in reply.aiter_lines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:]).get("choices", ()):
                if choice.get("text"):
                    yield choice["text"]


def thread_count(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


async def soak(url: str, pid: int, args: argparse.Namespace) -> dict[str, Any]:
    run, samples = Soak(url, args.seed), []
    limits = httpx.Limits(max_connections=args.clients)
    async with httpx.AsyncClient(timeout=300, limits=limits) as http:
        await run.learn(http)
        began = time.monotonic()
        left = args.requests if not args.minutes else 10**9

        async def client() -> None:
            nonlocal left
            while left > 0 and (not args.minutes or time.monotonic() - began < 60 * args.minutes):
                left -= 1
                await run.request(http)
                at = round(time.monotonic() - began, 2)
                samples.append((at, resident_bytes(pid), thread_count(pid)))

        await asyncio.gather(*(client() for _ in range(args.clients)))
        await asyncio.sleep(1)
        slots = (await http.get(f"{url}/slots")).json()
    quarter = len(samples) // 4
    early, late = (
        statistics.median(each for _, each, _ in part)
        for part in (samples[quarter : 2 * quarter], samples[-quarter:])
    )
    return {
        "requests": dict(run.found),
        "seconds": samples[-1][0],
        "wrong": run.wrong[:20],
        "n_wrong": len(run.wrong),
        "busy_slots": sum(bool(slot["is_processing"]) for slot in slots),
        "threads": [samples[quarter][2], thread_count(pid)],
        "resident_mb": [round(early / 1e6, 1), round(late / 1e6, 1)],
        "memory_growth": round(late / early - 1, 4),
        "memory": [(at, round(each / 1e6, 1)) for at, each, _ in samples[:: max(1, len(samples) // 100)]],
    }


def main() -> int:
    """Runs it; exit code 1 when anything was wrong."""
    parser = argparse.ArgumentParser(description="A server among clients of all kinds.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=0, help="instead of a number of requests")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--kv", default="full")
    parser.add_argument("--cache-ram", type=int, default=0, help="MiB for what slots held before")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    port = free_port()
    flags = ("--kv", args.kv, "--cache-ram", str(args.cache_ram))
    command = ours(args.model, port, args.slots, 1024, args.threads, *flags)
    with tempfile.TemporaryDirectory() as logs:
        log = Path(logs, "log")
        with serving(command, port, log) as process:
            found = asyncio.run(soak(f"http://127.0.0.1:{port}", process.pid, args))
        tracebacks = log.read_text(encoding="utf-8").count("Traceback")
    found |= {"exit_code": process.returncode, "tracebacks": tracebacks}
    print(json.dumps({key: value for key, value in found.items() if key != "memory"}, indent=1))
    if args.out:
        result_file.write(args.out, {"bench": "soak", **result_file.facts(), **found})
    bad = found["n_wrong"] or found["busy_slots"] or found["threads"][0] < found["threads"][1]
    return int(bool(bad or tracebacks or process.returncode or found["memory_growth"] > 0.02))


if __name__ == "__main__":
    raise SystemExit(main())
