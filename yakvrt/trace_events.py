"""What was noted (trace_log.py) as Chrome's trace events, a line of JSON each.

A process for each test or run, a track for each thread or stream. Spans of steps hold slices of their stages;
`wait_us` is what a thread waited for others in a slice, `bytes` its even share of what the stage reads.
Counters: bytes that a decode step reads; bytes moved from the host so far, and the hit rate since the reading
before, where the KV method counts them. Of a server also a track for each slot, with the prompts and answers
that it had, and one for each request while it waits.

Source: the Trace Event Format (Google, 2016), JSON objects.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yakvrt.kvcache.contract import StepBytes
    from yakvrt.trace_log import Past, TraceLog
    from yakvrt.trace_records import Label

# Between the numbers of two processes; that of a process is its first track's as well, which others follow.
# Perfetto takes a thread 0 for the first of its process, and knows threads by their numbers alone.
TRACKS = 10_000
SLOTS = 1000  # the track of the first; threads are fewer
Record = tuple[int, int, int, int, int, int]  # label, track, begin_ns, end_ns and two numbers
Reader = tuple[int, Callable[[int], "StepBytes"]]  # number of layers, Engine.step_bytes


def events(log: TraceLog, readers: list[Reader]) -> Iterator[str]:
    """All of them. readers: of each process."""
    for process, name in enumerate(log.processes):
        yield _metadata("process_name", process, 0, name=name)
    slots = {(past.process, past.slot) for past in log.pasts if past.slot is not None}
    of_slots = {(process, SLOTS + slot): f"slot {slot}" for process, slot in slots}
    for (process, track), name in sorted((log.tracks | of_slots).items()):
        yield _metadata("thread_name", process, track, name=name)
        yield _metadata("thread_sort_index", process, track, sort_index=track)
    for i, past in enumerate(log.pasts):
        yield from _past(past, i, log.began_ns)
    step: list[Record] = []  # slices whose outermost span has not come yet
    counters = _Counters(log.began_ns)
    for records in log.records():
        for record in records.tolist():
            label = log.labels[record[0]]
            if label.is_counter:
                yield from counters.read(label, record)
                continue
            step.append(record)
            if not label.within:
                yield from _step_events(log, step, readers[label.process])
                step = []
    if step:  # an interrupted span has ended as well, but its record may not have fitted
        yield from _step_events(log, step, readers[log.labels[step[-1][0]].process])


def _step_events(log: TraceLog, step: list[Record], reader: Reader) -> Iterator[str]:
    """The outermost span first, which is the last in `step`, then what it holds."""
    outermost = log.labels[step[-1][0]]
    kv: dict[str, int] = {}
    labels: Mapping[int, int] = {}
    if outermost.name == "decode":
        n_layers, step_bytes = reader
        position, n_rows = step[-1][4:]
        labels = Counter(record[0] for record in step)
        names = {log.labels[label].name for label in labels}
        weights = sum(record[5] for record in step if "bytes" in log.labels[record[0]].numbers)
        read = {"weights": weights}
        if n_rows == 1:
            device, host = step_bytes(position + 1)
            read |= {"KV, device": device, "KV, host": host}
            kv = {"attend": host // n_layers}
            scanned = "select" if "select" in names else "attend"
            kv[scanned] = kv.get(scanned, 0) + device // n_layers
        yield _counter("bytes read", outermost.process, step[-1][2] - log.began_ns, read)
    for record in (step[-1], *step[:-1]):
        label = log.labels[record[0]]
        n_bytes = kv[label.name] // labels[record[0]] if label.name in kv and label.layer >= 0 else 0
        yield _slice(label, record, n_bytes, log.began_ns)


class _Counters:
    """Totals, and what follows from the reading before."""

    def __init__(self, began_ns: int) -> None:
        self._began_ns = began_ns
        self._before = (-1, 0, 0)

    def read(self, label: Label, record: Record) -> Iterator[str]:
        at_ns, moved, gross = record[2] - self._began_ns, *record[4:]
        process, moved_before, gross_before = self._before
        self._before = label.process, moved, gross
        yield _counter("bytes moved from the host", label.process, at_ns, {"total": moved})
        if process == label.process and gross > gross_before:
            hit_rate = 1 - (moved - moved_before) / (gross - gross_before)
            yield _counter("hit rate", label.process, at_ns, {"hit rate": round(hit_rate, 4)})


def _slice(label: Label, record: Record, n_bytes: int, began_ns: int) -> str:
    """Written out, as there are many. n_bytes: read beside the weights."""
    _, track, begin_ns, end_ns, *numbers = record
    shown = [f'"layer":{label.layer}'] if label.layer >= 0 else []
    for name, number in zip(label.numbers, numbers, strict=False):
        if name == "wait_ns":
            shown.append(f'"wait_us":{_us(number)}')
        elif name == "bytes":
            n_bytes += number
        else:
            shown.append(f'"{name}":{number}')
    if n_bytes:
        shown.append(f'"bytes":{n_bytes}')
    return (
        f'{{"ph":"X",{_place(label.process, track)},"ts":{_us(begin_ns - began_ns)},'
        f'"dur":{_us(end_ns - begin_ns)},"name":"{label.name}","cat":"{label.within}",'
        f'"args":{{{",".join(shown)}}}}}'
    )


def _past(past: Past, number: int, began_ns: int) -> Iterator[str]:
    place = _place(past.process, 0 if past.slot is None else SLOTS + past.slot)
    head = f'{place},"name":"{past.name}","cat":"request","args":{_json(past.told)}'
    begin, end = (_us(at_ns - began_ns) for at_ns in (past.begin_ns, past.end_ns))
    if past.slot is None:  # there may be many at a time: a track of its own for each
        yield f'{{"ph":"b","id2":{{"local":"{number}"}},"ts":{begin},{head}}}'
        yield f'{{"ph":"e","id2":{{"local":"{number}"}},"ts":{end},{head}}}'
    else:
        duration = _us(past.end_ns - past.begin_ns)
        yield f'{{"ph":"X","ts":{begin},"dur":{duration},{head}}}'


def _counter(name: str, process: int, at_ns: int, values: dict[str, Any]) -> str:
    return f'{{"ph":"C",{_place(process)},"ts":{_us(at_ns)},"name":"{name}","args":{_json(values)}}}'


def _metadata(kind: str, process: int, track: int, **values: Any) -> str:
    return f'{{"ph":"M",{_place(process, track)},"name":"{kind}","args":{_json(values)}}}'


def _place(process: int, track: int = 0) -> str:
    pid = TRACKS * (process + 1)
    return f'"pid":{pid},"tid":{pid + track}'


def _us(ns: int) -> str:
    return f"{ns // 1000}.{ns % 1000:03}"


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"))
