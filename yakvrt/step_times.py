"""The time of a decode step, from steps of a few layers of the model that were timed.

A step is a head (embedding, logits, what any step costs) and layers that are alike. A layer grows with the
tokens held, as often as there are slots, while weights are read once for all:

    step(B, n) = head(B) + L * (layer(B) + B * (growth of a layer from the shallowest depth to n + upkeep))

Upkeep is what a slot does once in many tokens, as encoding a block of 64, divided among them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

from .tuning import TuningError

MAX_POINTS = 64


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Milliseconds of a step of n_layers layers: depth_ms[i] with one slot that holds n_tokens[i] tokens,
    batch_ms[i] with n_slots[i] slots of n_tokens[0] tokens, one_layer_ms[i] so through a single layer.
    n_slots begins with 1. upkeep_ms: what a token of one slot takes on average beyond these, in n_layers
    layers. spread: the middle half of a step's samples over their median, the median of all of these; large
    where other work was on the machine.

    Raises: TuningError for numbers that no measurement gives.
    """

    n_layers: int
    n_tokens: tuple[int, ...]
    depth_ms: tuple[float, ...]
    n_slots: tuple[int, ...]
    batch_ms: tuple[float, ...]
    one_layer_ms: tuple[float, ...]
    upkeep_ms: float = 0.0
    spread: float = 0.0

    def __post_init__(self) -> None:
        sizes = {len(self.n_tokens), len(self.depth_ms)}, {len(self.n_slots), len(self.batch_ms)}
        if any(len(each) > 1 for each in sizes) or len(self.one_layer_ms) != len(self.batch_ms):
            raise TuningError("a time is missing; calibrate again")
        rising = all(a < b for points in (self.n_tokens, self.n_slots) for a, b in pairwise(points))
        if not (self.n_tokens and rising and self.n_slots[:1] == (1,) and self.n_layers >= 1):
            raise TuningError("depths and slots do not rise from one slot; calibrate again")
        if min(*self.depth_ms, *self.batch_ms, *self.one_layer_ms) <= 0:
            raise TuningError("a step took no time; calibrate again")
        if self.upkeep_ms < 0:
            raise TuningError("upkeep_ms is below nothing; calibrate again")

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Self:
        """From a tuning file. Raises: TuningError."""

        def points(name: str, kind: type) -> tuple[Any, ...]:
            values = entry.get(name)
            if not isinstance(values, list) or not 1 <= len(values) <= MAX_POINTS:
                raise TuningError(f"{name} is no list of 1 to {MAX_POINTS} numbers; calibrate again")
            if any(isinstance(each, bool) or not isinstance(each, int | kind) for each in values):
                raise TuningError(f"{name} holds what is no number; calibrate again")
            return tuple(values)

        n_layers, upkeep, spread = (entry.get(name) for name in ("n_layers", "upkeep_ms", "spread"))
        if not (
            isinstance(n_layers, int) and isinstance(upkeep, int | float) and isinstance(spread, int | float)
        ):
            raise TuningError("n_layers, upkeep_ms or spread is no number; calibrate again")
        depths = points("n_tokens", int), points("depth_ms", float)
        batches = points("n_slots", int), points("batch_ms", float), points("one_layer_ms", float)
        return cls(n_layers, *depths, *batches, upkeep, spread)

    def step_ms(self, n_layers: int, n_tokens: int, n_slots: int = 1) -> float | None:
        """Of a model of n_layers layers and n_slots slots of n_tokens tokens each; None for more slots than
        were timed, and where noise in the times leaves nothing of it.
        """
        if n_slots > self.n_slots[-1]:
            return None
        batch = _line(self.n_slots, self.batch_ms, n_slots)
        one_layer = _line(self.n_slots, self.one_layer_ms, n_slots)
        layer = (batch - one_layer) / (self.n_layers - 1) if self.n_layers > 1 else batch
        head = one_layer - layer
        growth = _line(self.n_tokens, self.depth_ms, n_tokens) - self.depth_ms[0] + self.upkeep_ms
        step = head + n_layers * (layer + n_slots * growth / self.n_layers)
        return step if step > 0 else None

    def entry(self) -> dict[str, Any]:
        """For a tuning file."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def _line(points: Sequence[int], values: Sequence[float], x: int) -> float:
    """Through the points, straight between them; before the first and behind the last as between the two
    nearest.
    """
    if len(points) == 1:
        return values[0]
    i = min(max(bisect_left(points, x), 1), len(points) - 1)
    part = (x - points[i - 1]) / (points[i] - points[i - 1])
    return values[i - 1] + part * (values[i] - values[i - 1])
