"""Runs the application under uvicorn until a signal: no more requests then, those there are are answered."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from yakvrt.serve.app import make_app
from yakvrt.serve.connection import bounded_protocol
from yakvrt.serve.service import Model, Service
from yakvrt.serve.settings import KEEP_ALIVE_S, MAX_HEAD_BYTES
from yakvrt.terminal import note

CLOSE_S = 10.0  # for clients to read that their answer was ended
HURRY_S = 2.0  # the same after a second signal
POLL_S = 0.05
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """A uvicorn server of one service, in the main thread or another."""

    def __init__(
        self, service: Service, announce: Callable[[], None] = lambda: None, *, access_log: bool = False
    ) -> None:
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                make_app(service),
                loop="asyncio",
                http=bounded_protocol(settings.max_connections),
                ws="none",
                lifespan="off",
                log_level="info" if access_log else "error",
                access_log=access_log,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            )
        )
        self._service, self._announce = service, announce
        self._is_hurried = False
        self._socket = listen(settings.host, settings.port)
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        host = self._service.settings.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def load(self, load: Callable[[], Model]) -> None:
        """Begins to load the model; the server ends when that fails."""
        self._service.load(load, self.stop)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says so once signals are heard and connections are taken."""
        await super().startup(sockets)
        self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the answers that are not complete at the limit, or at a second signal; their clients are told
        so, and cut off when they do not read it.
        """
        ending = asyncio.ensure_future(self._end_answers())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_answers(self) -> None:
        await self._pause(self._service.settings.drain_s)
        await asyncio.get_running_loop().run_in_executor(None, self._service.close)
        await self._pause(CLOSE_S)
        if self._is_hurried:
            await asyncio.sleep(HURRY_S)
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        # they end as those do whose client leaves; cancelled, each would be logged
        await asyncio.sleep(POLL_S)
        self.force_exit = True

    async def _pause(self, seconds: float) -> None:
        """Until then, or a second signal."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._is_hurried:
            await asyncio.sleep(POLL_S)

    def answer(self) -> None:
        """Serves until stop() or a signal."""
        try:
            self.run(sockets=[self._socket])
        finally:
            self._service.close()
        if self._service.failure:
            raise self._service.failure

    def stop(self) -> None:
        """Takes no more connections, answers what is under way within the limit."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would raise the signal again at the end, and the process end by it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self._is_hurried = True
        else:
            note("shutting down when the answers under way are complete; a second signal ends them now")
            self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Raises: OSError, saying where."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        other = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise RuntimeError(f"cannot listen on {host} port {port} ({reason}); name another {other}") from None
    return made
