"""What the callers of a scheduler and its thread share, and what it tells of its slots and of itself."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .request_trace import note_request

if TYPE_CHECKING:
    import numpy as np

    from .prefix_cache import PrefixCache
    from .request import EndReason, Request
    from .session import Session
    from .trace_log import Trace
    from .waiting_line import WaitingLine


class OverloadedError(RuntimeError):
    """As many requests wait as may."""


class SlotBusyError(RuntimeError):
    """The slot answers a request, or somebody has borrowed it."""


class SlotView(NamedTuple):
    """What a slot does now."""

    request: Request | None
    n_tokens: int


@dataclass(slots=True)
class Running:
    """A request that has a slot. `prompt` are the steps of its prompt still to do."""

    request: Request
    session: Session
    prompt: Generator[None, None, np.ndarray] | None


@dataclass(slots=True)
class Counts:
    """Since the scheduler began."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    predicted_tokens: int = 0
    decode_steps: int = 0
    ends: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class SchedulerState:
    """Slots, and the requests that have one or wait for one. `changed` guards it and tells of changes; who
    takes a slot out of the idle ones holds `choosing` before it.
    """

    slots: tuple[Session, ...]
    waiting: WaitingLine
    cache: PrefixCache
    kv: Mapping[str, Any]
    idle: list[Session]  # longest idle first
    trace: Trace
    running: list[Running] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    is_draining: bool = False
    is_closed: bool = False
    failure: Exception | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)
    choosing: threading.Lock = field(default_factory=threading.Lock)

    def say_end(self, request: Request, reason: EndReason | Exception) -> None:
        """Counts an end and tells the request."""
        name = reason if isinstance(reason, str) else "error"
        self.counts.ends[name] = self.counts.ends.get(name, 0) + 1
        request.end(reason)
        note_request(self.trace, request)
