"""The tasks of `python -m yakvrt eval`, by name.

A sample with max_tokens 0 asks for no generation: its prompt is a raw text without a chat template, its
answer the text's continuation, and only the fidelity readings say something of it.
"""

from __future__ import annotations

from yakvrt.eval.tasks import (
    continuation,
    html_to_tsv,
    loong,
    multineedle,
    niah,
    ruler,
    text2json,
    text2json_longproc,
    text2json_synth,
)
from yakvrt.eval.tasks.entry import TaskEntry

__all__ = ["TASKS", "TaskEntry"]

TASKS: dict[str, TaskEntry] = {
    entry.name: entry
    for entry in (
        text2json.ENTRY,
        text2json_longproc.ENTRY,
        text2json_synth.ENTRY,
        *html_to_tsv.ENTRIES,
        multineedle.ENTRY,
        niah.ENTRY,
        ruler.ENTRY,
        loong.ENTRY,
        continuation.ENTRY,
    )
}
