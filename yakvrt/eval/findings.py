"""The records of one model, to be asked: readings of methods, by task, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bootstrap import Interval, Strata, mean_of
from .records import Record, key_of

Method = tuple[str, float | None]  # label and budget
FULL: Method = ("full", None)
MIN_SCORE = 10.0  # points of full attention, below which a method has nothing to lose


def reading(record: Record, name: str) -> float | None:
    """A reading by its name, "score" for the task's own; None where the record has none."""
    value = record.get("score", {}).get("score") if name == "score" else record.get(name)
    return None if value is None else float(value)


def title(method: Method) -> str:
    label, budget = method
    return label if budget is None else f"{label} @ {budget:.4g}"


@dataclass(frozen=True, slots=True)
class Findings:
    """All records of a model; of two for the same sample and method the later counts. A sample is its id and
    what tells its content, as samples of other seeds or options may have its id.
    """

    model: str
    records: tuple[Record, ...]
    skipped: tuple[Record, ...]

    @classmethod
    def of(cls, model: str, records: Sequence[Record]) -> Findings:
        found = {(*key_of(record), record["prompt"]): record for record in records}
        kept = [record for record in found.values() if "skipped" not in record]
        return cls(model, tuple(kept), tuple(record for record in found.values() if "skipped" in record))

    @property
    def tasks(self) -> dict[str, str]:
        """Their intensities by name: low ones first."""
        found = {record["task"]: record["intensity"] for record in self.records}
        return dict(sorted(found.items(), key=lambda pair: pair[1] == "high"))

    @property
    def failed(self) -> dict[str, float]:
        """Tasks on which full attention scores less than MIN_SCORE, and what it scores."""
        scores = {task: self.plain_mean("score", task, FULL) for task in self.tasks}
        return {task: score for task, score in scores.items() if score is not None and score < MIN_SCORE}

    def lost(self, method: Method, intensity: str) -> Interval:
        """Points of score lost against full attention, over the tasks that it does not fail."""
        found = self.differences("score", FULL, method, intensity)
        return mean_of({task: values for task, values in found.items() if task not in self.failed})

    @property
    def methods(self) -> list[Method]:
        """In the order in which they were asked for, budget by budget, full attention first."""
        found = dict.fromkeys((record["method"], record["budget"]) for record in self.records)
        return sorted(found, key=lambda method: (method[0] != "full", method[1] or 0.0))

    @property
    def offloading(self) -> set[str]:
        """Labels of the methods that ask bytes of the host."""
        return {record["method"] for record in self.records if record.get("gross_bytes")}

    def records_of(self, task: str, method: Method) -> list[Record]:
        return [r for r in self.records if (r["task"], r["method"], r["budget"]) == (task, *method)]

    def values(self, name: str, method: Method, intensity: str | None = None) -> dict[str, dict[str, float]]:
        """Readings of one method: by task (all, or those of an intensity) and sample."""
        found: dict[str, dict[str, float]] = {}
        for record in self.records:
            if (record["method"], record["budget"]) != method or intensity not in (None, record["intensity"]):
                continue
            value = reading(record, name)
            if value is not None:
                found.setdefault(record["task"], {})[record["sample"] + " " + record["prompt"]] = value
        return found

    def differences(self, name: str, a: Method, b: Method, intensity: str | None = None) -> Strata:
        """a's readings less b's, for samples that have both."""
        of_a, of_b = self.values(name, a, intensity), self.values(name, b, intensity)
        found = {}
        for task in of_a.keys() & of_b.keys():
            shared = sorted(of_a[task].keys() & of_b[task].keys())
            if shared:
                found[task] = np.array([of_a[task][sample] - of_b[task][sample] for sample in shared])
        return dict(sorted(found.items()))

    def mean(
        self, name: str, method: Method, *, task: str | None = None, intensity: str | None = None
    ) -> Interval:
        found = self.values(name, method, intensity)
        return mean_of({t: np.array(list(v.values())) for t, v in sorted(found.items()) if task in (None, t)})

    def plain_mean(self, name: str, task: str, method: Method) -> float | None:
        """Without an interval, for what is counted rather than drawn."""
        values = [value for r in self.records_of(task, method) if (value := reading(r, name)) is not None]
        return float(np.mean(values)) if values else None

    def grid(self, task: str, method: Method) -> dict[tuple[Any, Any], float]:
        """Mean scores by the facts length and depth of a task that has both; else empty."""
        cells: dict[tuple[Any, Any], list[float]] = {}
        for record in self.records_of(task, method):
            facts, value = record["facts"], reading(record, "score")
            cell = facts.get("length"), facts.get("depth")
            if value is not None and all(isinstance(each, int) for each in cell):
                cells.setdefault(cell, []).append(value)
        return {cell: float(np.mean(values)) for cell, values in cells.items()}
