"""Five ways of printing the records of a measurement, as llama-bench prints its own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TextIO, TypeVar

FORMAT_NAMES = ("md", "csv", "json", "jsonl", "sql")


class Fields(Protocol):
    """A record."""

    def fields(self) -> dict[str, Any]:
        """Every field in the order of writing; lists (of samples) only json and jsonl show."""
        ...


R = TypeVar("R", bound=Fields)


@dataclass(frozen=True, slots=True)
class Format(Generic[R]):
    """One way of writing: functions that return the text; the row's second argument counts from 0."""

    header: Callable[[], str]
    row: Callable[[R, int], str]
    footer: Callable[[R | None], str]


@dataclass(frozen=True, slots=True)
class Table(Generic[R]):
    """How records look in Markdown: the width of every column, negative for text to the left, and its cells.

    `footer` is printed below, from the last record.
    """

    widths: Mapping[str, int]
    cells: Callable[[R], Sequence[str]]
    footer: Callable[[R], str]


def formats(table: Table[R], sql_name: str) -> dict[str, Format[R]]:
    """The formats by name; `sql_name` is that of the SQL table."""
    return {
        "md": _markdown(table),
        "csv": Format(_nothing, _csv_row, _nothing_behind),
        "json": Format(lambda: "[\n", _json_row, lambda _: "\n]\n"),
        "jsonl": Format(_nothing, _jsonl_row, _nothing_behind),
        "sql": Format(_nothing, lambda record, index: _sql_row(record, index, sql_name), _nothing_behind),
    }


def print_records(records: Iterable[R], outputs: Sequence[tuple[Format[R], TextIO]]) -> None:
    """Prints every record as it comes. What Ctrl-C leaves is whole: no array stays open.

    The heading waits for the first record: what cannot be measured at all prints an error only.
    """
    last = None
    try:
        for index, record in enumerate(records):
            texts = [("" if index else form.header()) + form.row(record, index) for form, _ in outputs]
            last = record  # before it is printed: whoever reads it may press Ctrl-C at once
            for text, (_, stream) in zip(texts, outputs, strict=True):
                print(text, end="", file=stream, flush=True)
    except KeyboardInterrupt:
        _print_footers(last, outputs)
        raise
    _print_footers(last, outputs)


def _print_footers(last: R | None, outputs: Sequence[tuple[Format[R], TextIO]]) -> None:
    for form, stream in outputs:
        print(form.footer(last) if last else "", end="", file=stream, flush=True)


def _nothing() -> str:
    return ""


def _nothing_behind(_: object) -> str:
    return ""


def _markdown(table: Table[R]) -> Format[R]:
    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(-width) if width < 0 else cell.rjust(width)
            for cell, width in zip(cells, table.widths.values(), strict=True)
        )
        return "| " + " | ".join(padded) + " |\n"

    def header() -> str:
        rules = ["-" * -width if width < 0 else "-" * (width - 1) + ":" for width in table.widths.values()]
        return line(list(table.widths)) + line(rules)

    return Format(
        header,
        lambda record, _: line(table.cells(record)),
        lambda last: table.footer(last) if last else "",
    )


def _flat_fields(record: Fields) -> dict[str, Any]:
    """The fields for formats of one value a column."""
    return {name: value for name, value in record.fields().items() if not isinstance(value, list)}


def _csv_line(values: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _csv_row(record: Fields, index: int) -> str:
    fields = _flat_fields(record)
    names = _csv_line(list(fields)) if index == 0 else ""
    return names + _csv_line([int(value) if isinstance(value, bool) else value for value in fields.values()])


def _json_row(record: Fields, index: int) -> str:
    text = json.dumps(record.fields(), indent=2, ensure_ascii=False)
    return (",\n" if index else "") + "\n".join(f"  {line}" for line in text.splitlines())


def _jsonl_row(record: Fields, index: int) -> str:
    return json.dumps(record.fields(), ensure_ascii=False) + "\n"


def _sql_type(value: object) -> str:
    return "REAL" if isinstance(value, float) else "INTEGER" if isinstance(value, int) else "TEXT"


def _sql_value(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(int(value)) if isinstance(value, bool) else str(value)


def _sql_row(record: Fields, index: int, name: str) -> str:
    fields = _flat_fields(record)
    columns = ",\n".join(f"  {field} {_sql_type(value)}" for field, value in fields.items())
    table = f"CREATE TABLE IF NOT EXISTS {name} (\n{columns}\n);\n\n" if index == 0 else ""
    values = ", ".join(_sql_value(value) for value in fields.values())
    return f"{table}INSERT INTO {name} ({', '.join(fields)}) VALUES ({values});\n"
