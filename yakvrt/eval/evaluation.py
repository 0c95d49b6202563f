"""The loop over samples: what is missing is asked for, scored and recorded, with the time left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from typing import Any, Protocol

from yakvrt.terminal import counted, note

from .method_specs import MethodSpec
from .records import RecordFile
from .sample import Sample, Task
from .time_left import TimeLeft

Progress = Callable[[str, float], None]  # what runs, the share done


class Skipped(Exception):
    """A sample that cannot be asked, for instance since it is longer than the context; says why."""


def limited(sample: Sample, max_tokens: int | None) -> int:
    """The most tokens of an answer, where no more than so many are wanted."""
    return sample.max_tokens if max_tokens is None else min(sample.max_tokens, max_tokens)


class Side(Protocol):
    """What answers samples: our engine, or a server."""

    def readings(
        self, sample: Sample, specs: Sequence[MethodSpec], progress: Progress
    ) -> Iterator[tuple[MethodSpec, dict[str, Any]]]:
        """Of each of the methods, in any order. "text", where there is one, is its answer.

        Raises: Skipped; ValueError and RuntimeError with a sentence.
        """


@dataclass(frozen=True, slots=True)
class Question:
    """A sample of a task. `content` is short and tells it from others that have its id."""

    task: Task
    sample: Sample
    content: str

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "task": self.task.name,
            "intensity": self.task.intensity,
            "sample": self.sample.id,
            "prompt": self.content,
            "facts": dict(self.sample.facts),
        }


def questions(tasks: Iterable[Task], seed: int, count: Callable[[str], int], limit: int) -> list[Question]:
    """The first `limit` samples of each task; the tasks take turns, so that a run cut short has some of each.

    Raises: ValueError, also for a task without any sample, or with two different ones of one id.
    """
    by_task = []
    for task in tasks:
        found: dict[str, Question] = {}
        for sample in islice(task.samples(seed, count), limit):
            question = Question(task, sample, _content(sample))
            held = found.setdefault(sample.id, question)  # lengths=4k,4096 make a sample twice
            if held.content != question.content:
                raise ValueError(
                    f"the task {task.name} has two samples {sample.id!r}, whose records would mix; give them "
                    "different ids in its data"
                )
        if not found:
            raise ValueError(f"the task {task.name} has no samples; change its options or data")
        by_task.append(found.values())
    return [one for turn in zip_longest(*by_task) for one in turn if one]


def _content(sample: Sample) -> str:
    text = json.dumps([sample.prompt, sample.answer, sample.max_tokens])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def evaluate(side: Side, asked: Sequence[Question], specs: Sequence[MethodSpec], records: RecordFile) -> int:
    """Records what is missing. Returns: the samples skipped, now or before."""
    todo = []
    for question in asked:
        names = question.task.name, question.sample.id
        if records.has((*names, "", None), question.content):
            continue
        missing = [spec for spec in specs if not records.has((*names, *spec.key), question.content)]
        if missing:
            todo.append((question, missing))
    total = sum(len(missing) for _, missing in todo)
    if (held := len(asked) * len(specs) - total) > 0:
        note(f"{counted(held, 'record')} of {len(asked) * len(specs)} are there or were skipped")
    left = TimeLeft(total)
    for question, missing in todo:
        title = f"{question.task.name} {question.sample.id}"
        try:
            for spec, readings in side.readings(question.sample, missing, partial(_show, left, title)):
                record = _record(question, spec, readings)
                records.add(record)
                left.finish()
                print(
                    f"[{left.done}/{total}] {title} {spec.title}: {shown(record)}; {left.left()}", flush=True
                )
        except Skipped as reason:
            skipped = {**question.fields, "method": "", "budget": None, "skipped": str(reason)}
            records.add(skipped)
            for _ in missing:
                left.finish()
            note(f"{title} is skipped: {reason}")
    return sum(records.has((q.task.name, q.sample.id, "", None), q.content) for q in asked)


def _show(left: TimeLeft, title: str, what: str, share: float) -> None:
    left.show(f"{title}: {what}", share)


def _record(question: Question, spec: MethodSpec, readings: dict[str, Any]) -> dict[str, Any]:
    record = {**question.fields, "method": spec.label, "budget": spec.budget, **readings}
    if "text" in readings:
        record["score"] = question.task.score(question.sample, readings["text"])
    return record


def shown(record: dict[str, Any]) -> str:
    """What a record says, in a line."""
    parts = []
    if "score" in record:
        parts.append(f"score {record['score']['score']:.1f}")
    if "kl_mean" in record:
        parts.append(f"KL {record['kl_mean']:.4f}, NLL {record['nll']:.3f}")
    if "gross_bytes" in record:
        parts.append(f"{record['gross_bytes'] / 1e6:.2f} MB gross, {record['moved_bytes'] / 1e6:.2f} moved")
    return ", ".join([*parts, f"{record['seconds']:.1f} s"])
