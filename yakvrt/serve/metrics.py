"""GET /metrics, in Prometheus's text format; llama.cpp's names where it has the same figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from yakvrt.serve.service import Model, Service

if TYPE_CHECKING:
    from yakvrt.request import Request as Answered

FORMAT = "text/plain; version=0.0.4; charset=utf-8"
TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """What one server counts."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(SchedulerFigures(service))
        registry = self.registry
        self._responses = Counter("yakvrt:http_responses", "HTTP responses", ["status"], registry=registry)
        self._ttft = Histogram(
            "yakvrt:time_to_first_token_seconds", "From arrival", buckets=TTFT_S, registry=registry
        )
        self._tpot = Histogram(
            "yakvrt:time_per_output_token_seconds",
            "Of an answer, after its first token",
            buckets=TPOT_S,
            registry=registry,
        )

    def responded(self, status: int) -> None:
        self._responses.labels(str(status)).inc()

    def answered(self, request: Answered) -> None:
        """An answer has ended."""
        timings = request.timings
        if timings["ttft_ms"]:
            self._ttft.observe(timings["ttft_ms"] / 1e3)
        if timings["predicted_per_token_ms"]:
            self._tpot.observe(timings["predicted_per_token_ms"] / 1e3)


class SchedulerFigures(Collector):
    """Read from the scheduler when asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        model = self._service.loaded
        yield GaugeMetricFamily("yakvrt:ready", "1 once the model is loaded", value=float(model is not None))
        if model is not None:
            yield from _counters(model)
            yield from _gauges(model)

    def describe(self) -> list[Metric]:
        return []


def _counters(model: Model) -> Iterator[Metric]:
    counts = model.scheduler.counts
    for name, help, value in (
        ("prompt_tokens", "Prompt tokens, those found in the cache with them", counts.prompt_tokens),
        ("prompt_tokens_cached", "Prompt tokens that a slot or the cache knew", counts.cached_tokens),
        ("tokens_predicted", "Tokens of answers", counts.predicted_tokens),
        ("n_decode", "Steps that decode", counts.decode_steps),
        ("requests", "Answers asked for", counts.requests),
    ):
        yield CounterMetricFamily(f"yakvrt:{name}", help, value=value)
    ends = CounterMetricFamily("yakvrt:requests_ended", "Answers by how they ended", labels=["reason"])
    for reason, n in list(counts.ends.items()):
        ends.add_metric([reason], n)
    yield ends
    kv = model.scheduler.kv
    for name, help in (
        ("gross_bytes", "Bytes that the KV method asked of the host"),
        ("moved_bytes", "Bytes that it moved from there"),
    ):
        if name in kv:
            yield CounterMetricFamily(f"yakvrt:kv_{name}", help, value=float(kv[name]))


def _gauges(model: Model) -> Iterator[Metric]:
    scheduler = model.scheduler
    slots = scheduler.slots()
    held = sum(slot.n_tokens for slot in slots)
    for name, help, value in (
        ("requests_processing", "Answers that have a slot", scheduler.n_running),
        ("requests_deferred", "Answers that wait for a slot", scheduler.n_waiting),
        ("slots", "Slots", len(slots)),
        ("kv_cache_tokens", "Tokens that slots hold", held),
        ("kv_cache_usage_ratio", "Their part of what fits", held / (len(slots) * model.engine.ctx_size)),
        ("kv_bytes", "Memory of all slots", scheduler.kv.get("bytes", 0)),
        ("kv_hit_rate", "Rows for the host that were found on the device", scheduler.kv.get("hit_rate", 0)),
        ("prefix_cache_bytes", "Memory of what slots had to forget", scheduler.cache.n_bytes),
    ):
        yield GaugeMetricFamily(f"yakvrt:{name}", help, value=float(value))


async def metrics(http: Request) -> Response:
    """All figures."""
    counted: Metrics = http.app.state.metrics
    return Response(generate_latest(counted.registry), headers={"Content-Type": FORMAT})
