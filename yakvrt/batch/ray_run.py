"""Answers requests with models on a Ray cluster. The only file that knows Ray."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from yakvrt.batch.backlog import MAX_LOSSES, Backlog, Task
from yakvrt.batch.local_run import AHEAD
from yakvrt.batch.placement import Placement, place, worker_args
from yakvrt.terminal import counted, note, one_line

if TYPE_CHECKING:
    from yakvrt.batch.answerer import Answerer
    from yakvrt.batch.progress import Progress
    from yakvrt.batch.requests import BatchRequest

STORE_BYTES = 128 << 20  # of a local cluster: answers are small
PROBE_S = 10.0
PATIENCE_S = 30.0
MAX_BARREN = 3  # workers lost for each there should be, without a result in between
MAX_SHOWN = 300
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do anyway, instead of a warning
}


def answer_on_ray(
    args: argparse.Namespace,
    overrides: dict[str, object],
    requests: Iterator[BatchRequest],
    progress: Progress,
) -> None:
    """Returns when every request has its result. Raises: RuntimeError for a cluster that cannot be reached or
    whose workers are lost all the time; UsageError; what loading raises; OSError.
    """
    with redirect_stdout(sys.stderr):  # Ray prints what its daemons say; results may go to stdout
        ray = _connect(args.ray, args.workers or 1)
        try:
            placement = place(args, [node["Resources"] for node in ray.nodes() if node["Alive"]])
            pool = Pool(ray, placement, worker_args(args, placement), overrides, Backlog(requests), progress)
            pool.run()
        finally:
            ray.shutdown()


def _connect(address: str, n_workers: int) -> Any:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise RuntimeError("--ray needs Ray; pip install 'yakvrt[ray]'") from None
    new: dict[str, Any] = {}
    if address == "local":
        n_cpus = max(len(os.sched_getaffinity(0)), n_workers)
        new = {"num_cpus": n_cpus, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    elif address != "auto":
        _probe(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **new)
    except (ConnectionError, RuntimeError, ValueError) as error:
        # Ray sends its token to an address only when asked to, for whoever listens there would have it.
        raise RuntimeError(
            f"Ray cannot join a cluster at {address} ({one_line(error)[:MAX_SHOWN]}); start one with `ray "
            "start --head` or give --ray local; one that wants a token takes RAY_AUTH_MODE=token"
        ) from None
    return ray


def _probe(address: str) -> None:
    """Ray waits for minutes where nobody listens."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        socket.create_connection((parts.hostname or "", parts.port or 0), PROBE_S).close()
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"no Ray cluster at {address} ({one_line(error)[:MAX_SHOWN]}); give HOST:PORT of a head node, "
            "auto or local"
        ) from None


class Ready(NamedTuple):
    """What a worker says when it has loaded its model."""

    name: str
    host: str
    pid: int


class RayWorker:
    """An actor: a model in a process of its own."""

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._answerer: Answerer | None = None

    async def load(self, args: argparse.Namespace, overrides: dict[str, object]) -> Ready:
        from yakvrt.batch.answerer import Answerer

        if args.device == "cpu" and not args.threads:
            args.threads = self._n_threads()
        self._answerer = await asyncio.to_thread(Answerer, args, overrides)
        return Ready(self._answerer.name, socket.gethostname(), os.getpid())

    def _n_threads(self) -> int:
        """Its part of the machine's cores; Ray counts what runs on them, hyperthreads too."""
        import ray

        from yakvrt.cpu.topology import default_threads

        here = ray.get_runtime_context().get_node_id()
        machine = next(node for node in ray.nodes() if node["NodeID"] == here)
        return max(1, int(default_threads() * self._cpus / machine["Resources"]["CPU"]))

    async def answer(self, url: str, body: bytes) -> tuple[int, bytes]:
        assert self._answerer is not None
        return await self._answerer.answer(url, body)


class Worker:
    """The driver's side of an actor. `loading` is None once it is ready."""

    def __init__(self, actor: Any, loading: Any) -> None:
        self.actor, self.loading = actor, loading
        self.tasks: dict[Any, Task] = {}

    def has_room(self, n_under_way: int) -> bool:
        """Whether it can take another task."""
        is_taken = any(task.must_be_alone for task in self.tasks.values())
        return not is_taken and len(self.tasks) < n_under_way

    @property
    def refs(self) -> list[Any]:
        return list(self.tasks) if self.loading is None else [self.loading]


class Pool:
    """Keeps some workers busy; each has at most as many requests as slots and a few more. A lost worker's
    requests come again, whatever it had done of them: a result counts when it is here.
    """

    def __init__(
        self,
        ray: Any,
        placement: Placement,
        args: argparse.Namespace,
        overrides: dict[str, object],
        backlog: Backlog,
        progress: Progress,
    ) -> None:
        self._ray, self._placement, self._backlog, self._progress = ray, placement, backlog, progress
        self._load_args = (args, overrides)
        self._n_under_way = args.parallel + AHEAD
        self._actors = ray.remote(RayWorker).options(
            num_cpus=placement.cpus_each,
            num_gpus=placement.gpus_each,
            scheduling_strategy="SPREAD",
            max_concurrency=self._n_under_way + 1,
        )
        self._n_barren = 0
        self._workers = [self._start() for _ in range(placement.n_workers)]

    def _start(self) -> Worker:
        actor = self._actors.remote(self._placement.cpus_each)
        return Worker(actor, actor.load.remote(*self._load_args))

    def run(self) -> None:
        """Returns when the backlog is empty and nothing is under way."""
        while True:
            self._feed()
            if self._backlog.is_empty and not any(worker.tasks for worker in self._workers):
                return
            owners = {ref: worker for worker in self._workers for ref in worker.refs}
            ended, _ = self._ray.wait(list(owners), timeout=PATIENCE_S)
            if not ended and all(worker.loading is not None for worker in self._workers):
                note("no worker is ready yet; the cluster is busy, or the model takes its time")
            for ref in ended:
                self._take(owners[ref], ref)

    def _feed(self) -> None:
        """Requests for all that can take some, evenly."""
        hungry = [worker for worker in self._workers if worker.loading is None]
        while hungry:
            worker = min(hungry, key=lambda each: len(each.tasks))
            task = None
            if worker.has_room(self._n_under_way):
                task = self._backlog.take(len(worker.tasks))
            if task is None:
                hungry.remove(worker)
            else:
                ref = worker.actor.answer.remote(task.request.url, task.request.body)
                worker.tasks[ref] = task

    def _take(self, worker: Worker, ref: Any) -> None:
        from ray.exceptions import RayError, RayTaskError

        from yakvrt.batch.answerer import ModelFailedError

        try:
            found = self._ray.get(ref)
        except RayTaskError as error:
            if not isinstance(error.cause, ModelFailedError):
                raise error.cause from None
            self._lose(worker, error.cause)
        except RayError as error:
            self._lose(worker, error)
        else:
            if worker.loading is None:
                self._n_barren = 0
                self._progress.answered(worker.tasks.pop(ref).request, *found)
            else:
                worker.loading = None
                self._progress.begin(found.name)
                note(f"a worker is ready on {found.host} (pid {found.pid})")

    def _lose(self, worker: Worker, error: Exception) -> None:
        """Its requests go to others, or to the one that takes its place."""
        why = " ".join(str(error).split())[:MAX_SHOWN]
        note(f"lost a worker with {counted(len(worker.tasks), 'request')} under way: {why}")
        self._n_barren += 1
        for task in worker.tasks.values():
            if not self._backlog.lost(task):
                self._n_barren = 0
                self._progress.lost(
                    task.request, "worker_lost", f"{MAX_LOSSES} workers were lost with it; the last: {why}"
                )
        with suppress(Exception):
            self._ray.kill(worker.actor)  # it may only have been out of reach
        if self._n_barren >= MAX_BARREN * self._placement.n_workers:
            raise RuntimeError(f"workers are lost as soon as they start; the last: {why}")
        self._workers[self._workers.index(worker)] = self._start()
