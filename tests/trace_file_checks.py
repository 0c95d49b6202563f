"""Reading a trace file, and what is true of all."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]


def read(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


def check_tracks(events: Sequence[Event]) -> None:
    """Perfetto mixes threads 0 up with others, and those of one number in several processes."""
    process_of: dict[int, int] = {}
    for event in events:
        assert event["tid"] > 0
        assert process_of.setdefault(event["tid"], event["pid"]) == event["pid"]


def slices(events: Sequence[Event], **wanted: object) -> list[Event]:
    found = [event for event in events if event["ph"] == "X"]
    return [event for event in found if all(event[name] == value for name, value in wanted.items())]


def ns(event: Event) -> tuple[int, int]:
    return round(event["ts"] * 1000), round((event["ts"] + event["dur"]) * 1000)


def check_nesting(events: Sequence[Event]) -> None:
    """On a track a slice lies within another or beside it."""
    check_tracks(events)
    tracks = defaultdict(list)
    for event in slices(events):
        tracks[event["pid"], event["tid"]].append(ns(event))
    for found in tracks.values():
        open_until: list[int] = []
        for begin, end in sorted(found, key=lambda span: (span[0], -span[1])):
            assert begin <= end
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert not open_until or end <= open_until[-1]
            open_until.append(end)
