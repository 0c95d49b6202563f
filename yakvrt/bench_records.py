"""The records of `yakvrt bench`, in llama-bench's field names, and the five ways of writing them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

TABLE = "llama_bench"
SAMPLE_FIELDS = ("samples_ns", "samples_ts")
OUR_FIELDS = ("kv_method", "kv_bytes", "dtype")


def test_name(n_prompt: int, n_gen: int, n_depth: int) -> str:
    """llama-bench's name of a test, for instance pp512, tg128, pp512+tg128, pp512 @ d4096."""
    parts = [f"pp{n_prompt}"] * (n_prompt > 0) + [f"tg{n_gen}"] * (n_gen > 0)
    return "+".join(parts) + (f" @ d{n_depth}" if n_depth else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One test with all its samples; fields keep llama-bench's names and order, our own come last.

    Units: *_ns nanoseconds of a whole repetition, *_ts tokens per second, model_size and kv_bytes bytes.
    """

    build_commit: str
    build_number: int
    cpu_info: str
    gpu_info: str
    backends: str
    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_batch: int
    n_ubatch: int
    n_threads: int
    cpu_mask: str = "0x0"
    cpu_strict: bool = False
    poll: int = 50
    type_k: str
    type_v: str
    n_gpu_layers: int = 0
    n_cpu_moe: int = 0
    split_mode: str = "none"
    main_gpu: int = 0
    no_kv_offload: bool = False
    flash_attn: bool = True
    devices: str = "none"
    tensor_split: str = "0.00"
    tensor_buft_overrides: str = "none"
    use_mmap: bool = True
    embeddings: bool = False
    no_op_offload: int = 0
    n_prompt: int
    n_gen: int
    n_depth: int
    test_time: str
    samples_ns: tuple[int, ...]
    kv_method: str
    kv_bytes: int
    dtype: str

    @property
    def samples_ts(self) -> tuple[float, ...]:
        """Tokens per second of every repetition."""
        return tuple((self.n_prompt + self.n_gen) * 1e9 / ns for ns in self.samples_ns)

    def fields(self) -> dict[str, Any]:
        """Every field in the order of writing, the statistics after test_time and before the samples."""
        stored = dataclasses.asdict(self)
        ours = {name: stored.pop(name) for name in OUR_FIELDS}
        samples = {"samples_ns": list(stored.pop("samples_ns")), "samples_ts": list(self.samples_ts)}
        statistics_of = {
            "avg_ns": round(statistics.fmean(self.samples_ns)),
            "stddev_ns": round(_stddev(self.samples_ns)),
            "avg_ts": statistics.fmean(self.samples_ts),
            "stddev_ts": _stddev(self.samples_ts),
        }
        return {**stored, **statistics_of, **samples, **ours}


def _stddev(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _flat_fields(record: Record) -> dict[str, Any]:
    """The fields without the lists of samples, for formats of one value a column."""
    return {name: value for name, value in record.fields().items() if name not in SAMPLE_FIELDS}


@dataclass(frozen=True, slots=True)
class Format:
    """One way of writing: each function returns the text to print, the row's second argument counts from 0.

    The sequence of names is what the Markdown table shows beside its usual columns; the others show all.
    """

    header: Callable[[Sequence[str]], str]
    row: Callable[[Record, int, Sequence[str]], str]
    footer: Callable[[Record | None], str]


def _nothing(_: object) -> str:
    return ""


def _markdown_widths(extra_columns: Sequence[str]) -> dict[str, int]:
    """Width of every column, negative for left-aligned text."""
    widths = {"model": -30, "size": 10, "params": 10, "backend": -10, "threads": 7}
    widths.update((name, max(8, len(name))) for name in extra_columns)
    return {**widths, "test": 15, "t/s": 20}


def _markdown_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.ljust(-width) if width < 0 else cell.rjust(width)
        for cell, width in zip(cells, widths, strict=True)
    )
    return "| " + " | ".join(padded) + " |\n"


def _markdown_header(extra_columns: Sequence[str]) -> str:
    widths = _markdown_widths(extra_columns)
    rules = ["-" * -width if width < 0 else "-" * (width - 1) + ":" for width in widths.values()]
    return _markdown_line(list(widths), list(widths.values())) + _markdown_line(rules, list(widths.values()))


def _markdown_row(record: Record, index: int, extra_columns: Sequence[str]) -> str:
    fields = record.fields()
    cells = [
        record.model_type,
        format_bytes(record.model_size),
        format_params(record.model_n_params),
        record.backends,
        str(record.n_threads),
        *(str(fields[name]) for name in extra_columns),
        test_name(record.n_prompt, record.n_gen, record.n_depth),
        f"{fields['avg_ts']:.2f} ± {fields['stddev_ts']:.2f}",
    ]
    return _markdown_line(cells, list(_markdown_widths(extra_columns).values()))


def _markdown_footer(last: Record | None) -> str:
    return f"\nbuild: {last.build_commit} ({last.build_number})\n" if last else ""


def format_bytes(n_bytes: int) -> str:
    """A size as llama-bench prints it."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.2f} MiB"


def format_params(n_params: int) -> str:
    """A parameter count as llama-bench prints it."""
    return f"{n_params / 1e9:.2f} B" if n_params >= 1e9 else f"{n_params / 1e6:.2f} M"


def _csv_line(values: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _csv_row(record: Record, index: int, extra_columns: Sequence[str]) -> str:
    fields = _flat_fields(record)
    names = _csv_line(list(fields)) if index == 0 else ""
    return names + _csv_line([int(value) if isinstance(value, bool) else value for value in fields.values()])


def _json_row(record: Record, index: int, extra_columns: Sequence[str]) -> str:
    text = json.dumps(record.fields(), indent=2, ensure_ascii=False)
    return (",\n" if index else "") + "\n".join(f"  {line}" for line in text.splitlines())


def _jsonl_row(record: Record, index: int, extra_columns: Sequence[str]) -> str:
    return json.dumps(record.fields(), ensure_ascii=False) + "\n"


def _sql_type(value: object) -> str:
    return "REAL" if isinstance(value, float) else "INTEGER" if isinstance(value, int) else "TEXT"


def _sql_value(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(int(value)) if isinstance(value, bool) else str(value)


def _sql_row(record: Record, index: int, extra_columns: Sequence[str]) -> str:
    fields = _flat_fields(record)
    columns = ",\n".join(f"  {name} {_sql_type(value)}" for name, value in fields.items())
    table = f"CREATE TABLE IF NOT EXISTS {TABLE} (\n{columns}\n);\n\n" if index == 0 else ""
    values = ", ".join(_sql_value(value) for value in fields.values())
    return f"{table}INSERT INTO {TABLE} ({', '.join(fields)}) VALUES ({values});\n"


FORMATS: dict[str, Format] = {
    "md": Format(_markdown_header, _markdown_row, _markdown_footer),
    "csv": Format(_nothing, _csv_row, _nothing),
    "json": Format(lambda _: "[\n", _json_row, lambda _: "\n]\n"),
    "jsonl": Format(_nothing, _jsonl_row, _nothing),
    "sql": Format(_nothing, _sql_row, _nothing),
}
