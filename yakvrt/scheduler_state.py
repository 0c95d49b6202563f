"""What a scheduler knows of its slots and tells of itself."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from .request import Request
    from .session import Session


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
