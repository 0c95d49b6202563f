"""Times decode steps of a few layers of a model, over slots that hold random rows.

The layers are the model's own, spread evenly, from its file or random: their time hangs on shapes and number
formats, not on values. They are as many as the last cache cannot hold, so that weights come from memory as in
the whole model; a model that small is timed whole.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import rope_frequencies
from .kvcache.contract import AttentionInput, KvSetting
from .runner import Runner
from .step_times import StepTimes

if TYPE_CHECKING:
    from .backend import Backend
    from .config import ModelConfig
    from .device import Device
    from .kvcache.contract import KvMethod
    from .model_source import ModelSource
    from .weights import Weights

CHUNK = 256
ROUNDS, LEAST_ROUNDS, STEPS = 12, 3, 4
MUCH = 1.5  # times the usual step
PERIOD, PERIODS = 64, 3  # tokens after which methods do again what not every step does, as encoding a block
ENOUGH_S = 20.0
LEAST_LAYERS = 4
BATCH_TOKENS = 512  # the shallowest depth, which batches are timed at
MOST_TOKENS = 1 << 17  # deeper steps follow the line through the last two depths: filling slots takes long

Clock = Callable[[], float]  # seconds
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Timed:
    """What to time: a KV method, rows of `kind`, weights as `dtype`, depths and numbers of slots."""

    method: ModuleType
    parameters: Any
    kind: str
    dtype: str
    n_tokens: tuple[int, ...]
    n_slots: tuple[int, ...]


def depths_up_to(n_tokens: int) -> tuple[int, ...]:
    """Those to time so that any depth up to n_tokens lies near or between, or behind MOST_TOKENS."""
    deepest = min(n_tokens, MOST_TOKENS)
    steps = (BATCH_TOKENS * 4**i for i in range(20))
    return (*(n for n in steps if n < deepest), deepest)


def batches_up_to(n_slots: int) -> tuple[int, ...]:
    """Powers of two, and n_slots."""
    return (*(2**i for i in range(12) if 2**i < n_slots), n_slots)


def layers_to_time(config: ModelConfig, weight_bytes: int, least_bytes: int) -> int:
    """So many that they hold least_bytes of a model's weight_bytes, at least LEAST_LAYERS, as few layers
    beside a large head tell little of a layer.
    """
    tables = config.vocab_size * config.hidden_dim * (1 if config.tied else 2)
    layer_bytes = weight_bytes * (1 - tables / config.n_params) / config.n_layers
    return min(config.n_layers, max(LEAST_LAYERS, -int(-least_bytes // layer_bytes)))


def some_layers(source: ModelSource, n_layers: int) -> ModelSource:
    """A model of n_layers of its layers, spread evenly, as number formats may differ among them."""
    all_layers = source.config.n_layers
    tensors = {name: each for name, each in source.tensors.items() if not name.startswith("blk.")}
    for i in range(n_layers):
        own, other = f"blk.{i}.", f"blk.{(2 * i + 1) * all_layers // (2 * n_layers)}."
        names = [name for name in source.tensors if name.startswith(other)]
        tensors |= {own + name.removeprefix(other): source.tensors[name] for name in names}
    return replace(source, config=replace(source.config, n_layers=n_layers), tensors=tensors)


def time_steps(
    source: ModelSource,
    device: Device,
    timed: Timed,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> StepTimes:
    """Rounds of StepTiming, until there are enough or time is up."""
    timing = StepTiming(source, device, timed, progress, clock)
    began = clock()
    for done in range(ROUNDS):
        if done >= LEAST_ROUNDS and clock() - began > ENOUGH_S:
            break
        timing.round()
        if progress:
            progress("timing steps", done + 1, ROUNDS)
    return timing.times()


class StepTiming:
    """Slots of every depth and number that `timed` asks for, and steps over them in rounds, so that a machine
    whose speed drifts drifts for all alike.
    """

    def __init__(
        self,
        source: ModelSource,
        device: Device,
        timed: Timed,
        progress: Progress | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Of all layers of the source, as some_layers() gives it. The device must have planned for it."""
        backend = device.open(progress)
        weights = device.load(source, timed.dtype, None)
        self._timed, self._clock, self._n_layers = timed, clock, source.config.n_layers
        self._batches: list[Steps] = []
        self._one_layer: list[Steps] = []
        self._deeper: list[Steps] = []
        batches = [(n_slots, timed.n_tokens[0]) for n_slots in timed.n_slots]
        filled = batches + [(1, n_tokens) for n_tokens in timed.n_tokens[1:]]
        for i, (n_slots, n_tokens) in enumerate(filled):
            if progress:
                progress("filling slots", i, len(filled))
            held = FilledSlots(backend, source.config, weights, timed, n_slots, n_tokens)
            if i == 0:
                self._upkeep_ms = time_upkeep(held, self._n_layers, clock)
            whole = self._batches if i < len(batches) else self._deeper
            whole.append(Steps(held, self._n_layers))
            if i < len(batches):
                self._one_layer.append(Steps(held, 1))

    def round(self) -> None:
        """A round of each."""
        for side in self._sides():
            side.run(self._clock)

    def times(self) -> StepTimes:
        """Of at least two rounds since the last time."""
        batch_ms, one_layer_ms, deeper_ms = (
            tuple(side.step_ms for side in sides) for sides in (self._batches, self._one_layer, self._deeper)
        )
        spread = statistics.median(side.spread for side in self._sides())
        for side in self._sides():
            side.forget()
        depths = self._timed.n_tokens, (batch_ms[0], *deeper_ms)
        batches = self._timed.n_slots, batch_ms, one_layer_ms
        found = self._n_layers, *depths, *batches, self._upkeep_ms, round(spread, 4)
        return StepTimes(*found)

    def _sides(self) -> list[Steps]:
        return [*self._batches, *self._one_layer, *self._deeper]


def time_upkeep(held: FilledSlots, n_layers: int, clock: Clock) -> float:
    """Milliseconds a token that steps of a slot take on average beyond what most of them do, from some turns
    over a period: of positions that took much longer every time. What is less could be noise, which would be
    multiplied by slots and layers, and is under 1 % of a step.
    """
    steps = Steps(held, n_layers, 1, PERIOD)
    for _ in range(PERIODS):
        steps.run(clock)
    least = [min(taken) for taken in steps.taken_ms]
    return sum(ms - steps.step_ms for ms in least if ms > MUCH * steps.step_ms) / PERIOD


class FilledSlots:
    """n_slots slots of one method that hold the same n_tokens tokens each; room for a period of steps."""

    def __init__(
        self,
        backend: Backend,
        config: ModelConfig,
        weights: Weights,
        timed: Timed,
        n_slots: int,
        n_tokens: int,
    ) -> None:
        ctx_size = -(-(n_tokens + PERIOD + 1) // 64) * 64
        rope = rope_frequencies(config)
        self.setting = KvSetting(backend, config, weights, n_slots, ctx_size, timed.kind, *rope)
        self.n_tokens = n_tokens
        self.method: KvMethod = timed.method.build(self.setting, timed.parameters)
        self.numbers = [self.method.open(ctx_size) for _ in range(n_slots)]
        fill_slot(self.setting, self.method, self.numbers[0], n_tokens)
        for slot in self.numbers[1:]:
            filled = self.method.state(self.numbers[0], n_tokens)
            for name, array in self.method.state(slot, n_tokens).items():
                array.values[...] = np.asarray(filled[name].values)
            self.method.truncate(slot, n_tokens, n_tokens)


class Steps:
    """Steps of the first n_slots slots, or all, through the first n_layers layers, on different tokens.

    taken_ms[i]: what n_steps positions, one after the other, took in every round.
    """

    def __init__(
        self, slots: FilledSlots, n_layers: int, n_slots: int | None = None, n_steps: int = STEPS
    ) -> None:
        setting, numbers = slots.setting, slots.numbers[:n_slots]
        config = replace(setting.config, n_layers=n_layers)
        self._runner = Runner(setting.backend, config, setting.weights, slots.method, chunk=CHUNK)
        self._method, self._slots, self._position = slots.method, numbers, slots.n_tokens
        self._tokens = np.random.default_rng(0).integers(config.vocab_size, size=(n_steps + 1, len(numbers)))
        self.taken_ms: list[list[float]] = [[] for _ in range(n_steps)]

    def forget(self) -> None:
        """All samples."""
        for taken in self.taken_ms:
            taken.clear()

    def run(self, clock: Clock) -> None:
        """A round: a step that brings these rows nearer, then the timed ones, which are forgotten."""
        first, end = self._position, self._position + len(self._tokens)
        for i, tokens in enumerate(self._tokens.tolist()):
            positions = [first + i] * len(self._slots)
            began = clock()
            self._runner.decode(self._slots, positions, tokens)
            if i:
                self.taken_ms[i - 1].append((clock() - began) * 1e3)
        self._position = min(self._method.truncate(slot, end, first) for slot in self._slots)

    @property
    def step_ms(self) -> float:
        """The median of the positions' medians: what one of them does beside a step, as encoding a block,
        hardly counts (time_upkeep).
        """
        return statistics.median(map(statistics.median, self.taken_ms))

    @property
    def spread(self) -> float:
        """The middle half of a position's samples over their median, the median of all positions."""
        quarters = [statistics.quantiles(taken, n=4) for taken in self.taken_ms]
        return statistics.median((high - low) / median for low, median, high in quarters)


def fill_slot(setting: KvSetting, method: KvMethod, slot: int, n_tokens: int) -> None:
    """An empty slot takes in n_tokens tokens of random rows, layer by layer, as a prompt's.

    The model has no part in it: attention and weights would take most of a prompt's time.
    """
    backend, config = setting.backend, setting.config
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    widths = {"h": config.hidden_dim, "q_plain": q, "k_plain": kv, "q": q, "k": kv, "v": kv}
    heads = config.n_heads, config.n_kv_heads, config.head_dim
    recorder = backend.record(CHUNK, inv_freq=setting.inv_freq, rope_scale=setting.rope_scale, heads=heads)
    names = [field.name for field in fields(AttentionInput)]
    attention = AttentionInput(**{name: recorder.buffer(widths[name]) for name in names})
    for layer in range(config.n_layers):
        method.prefill(recorder, layer, attention)
        recorder.next_part()
    step = backend.finish(recorder)
    random = np.random.default_rng(slot)
    rows = {name: random.standard_normal((CHUNK, widths[name]), np.float32) for name in names}
    step.batch.slots[:] = slot
    for layer in range(config.n_layers):
        method.restore(layer, slot, 0)
        for first in range(0, n_tokens, CHUNK):
            n = step.batch.n_rows[0] = min(CHUNK, n_tokens - first)
            step.batch.positions[:n] = np.arange(first, first + n)
            for name in names:  # turned by a column a chunk, no two rows are alike
                turned = np.roll(rows[name], first // CHUNK + layer, axis=1)
                backend.write(getattr(attention, name), turned[:n])
            step.run(layer)
        method.store(layer, slot, 0, n_tokens)
