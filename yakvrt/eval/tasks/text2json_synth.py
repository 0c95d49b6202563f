"""A look-alike of Text2JSON that needs no data: made-up records in prose, tables, lists and cards; not the
paper's data.

The records of one domain are asked for; they stand all over the text, between documents about other domains
and about nothing of the kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from yakvrt.eval.sample import Intensity, Sample
from yakvrt.eval.tasks.entry import TaskEntry
from yakvrt.eval.tasks.fill import fill
from yakvrt.eval.tasks.interleave import interleave
from yakvrt.eval.tasks.options import Option
from yakvrt.eval.tasks.synth_documents import distractor, documents
from yakvrt.eval.tasks.synth_records import DOMAINS, Domain, Record, draw_records
from yakvrt.eval.tasks.text2json import MAX_TOKENS, score_text2json
from yakvrt.eval.tasks.text2json_prompt import write_entries, write_prompt

# A document takes at least this many tokens.
SMALLEST_DOCUMENT = 16


@dataclass(frozen=True, slots=True)
class Text2JsonSynth:
    lengths: tuple[int, ...]
    entries: int
    others: int
    repeats: int
    name: str = "text2json-synth"
    intensity: Intensity = "high"

    def samples(self, seed: int, count: Callable[[str], int]) -> Iterator[Sample]:
        for repeat in range(self.repeats):
            domain = DOMAINS[repeat % len(DOMAINS)]
            for length in self.lengths:
                rng = Random(f"text2json-synth {seed} {length} {repeat}")
                records = draw_records(domain, self.entries, rng)
                build = partial(_prompt, domain, _Documents(domain, records, self.others, rng))
                what = f"a text of {self.entries} {domain.many}"
                prompt, _ = fill(build, length // SMALLEST_DOCUMENT, length, count, what)
                facts = {"length": length, "entries": self.entries, "domain": domain.many}
                name = f"text2json-synth-{length}-{repeat}"
                yield Sample(name, prompt, write_entries(records), MAX_TOKENS, facts)

    def score(self, sample: Sample, text: str) -> dict[str, float]:
        return score_text2json(sample, text)


class _Documents:
    """Documents that tell the records, and as many others as are asked for, always the same first ones."""

    def __init__(self, domain: Domain, records: list[Record], others: int, rng: Random) -> None:
        self._domain, self._others_percent, self._rng = domain, others, rng
        self._told = documents(domain, records, rng)
        # Evenly spread, each anywhere within its part of the text.
        self._places = [(i + rng.random()) / len(self._told) for i in range(len(self._told))]
        self._others: list[str] = []

    def text(self, n: int) -> str:
        """All of those that tell, among n others."""
        while len(self._others) < n:
            self._others.append(distractor(self._domain, self._others_percent, self._rng))
        return "\n\n".join(interleave(self._others[:n], self._told, self._places))


def _prompt(domain: Domain, written: _Documents, n: int) -> str:
    task = f"Find every {domain.one} in the documents above, in the order in which they stand there."
    return write_prompt(written.text(n), task, domain.keys)


def _open(options: Mapping[str, Any], data_dir: Path | None) -> Text2JsonSynth:
    return Text2JsonSynth(options["lengths"], options["entries"], options["others"], options["repeats"])


ENTRY = TaskEntry(
    "text2json-synth",
    "look-alike of Text2JSON: made-up records in prose, tables and lists; needs no data",
    "high",
    (
        Option("lengths", "lengths", "4k,8k,16k,32k", "tokens of a prompt"),
        Option("entries", "int", "10", "records to find in a prompt", 1, 20),
        Option(
            "others", "int", "70", "percent of the other documents that tell records of other kinds", 0, 100
        ),
        Option("repeats", "int", "8", "samples for each length, the four domains by turns", 1, 10000),
    ),
    _open,
)
