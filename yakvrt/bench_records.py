"""The records of `yakvrt bench`, in llama-bench's field names, and how they look in a table."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yakvrt.record_formats import Table

SQL_TABLE = "llama_bench"
OUR_FIELDS = (
    *("kv_method", "kv_bytes", "kv_moved_bytes", "kv_hit_rate", "kv_link_gbps", "kv_link_part", "dtype"),
)


def test_name(n_prompt: int, n_gen: int, n_depth: int) -> str:
    """llama-bench's name of a test, for instance pp512, tg128, pp512+tg128, pp512 @ d4096."""
    parts = [f"pp{n_prompt}"] * (n_prompt > 0) + [f"tg{n_gen}"] * (n_gen > 0)
    return "+".join(parts) + (f" @ d{n_depth}" if n_depth else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One test with all its samples; fields keep llama-bench's names and order, our own come last.

    Units: *_ns nanoseconds of a whole repetition, *_ts tokens per second, model_size and kv_bytes bytes,
    kv_moved_bytes bytes from the host for a generated token, kv_hit_rate the part of the bytes asked of the
    host that were found on the device. kv_link_gbps: 10^9 of the moved bytes a second of a whole step, of
    tests that only generate, else 0; kv_link_part: that over what `yakvrt transfer` measured of rows on their
    way to this device, 0 where it did not. On the CPU its memory is the link.
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
    kv_moved_bytes: int
    kv_hit_rate: float
    kv_link_gbps: float
    kv_link_part: float
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


def bench_table(extra_columns: Sequence[str]) -> Table[Record]:
    """llama-bench's Markdown table, with these fields before the test."""

    def cells(record: Record) -> list[str]:
        fields = record.fields()
        return [
            record.model_type,
            format_bytes(record.model_size),
            format_params(record.model_n_params),
            record.backends,
            str(record.n_threads),
            *(str(fields[name]) for name in extra_columns),
            test_name(record.n_prompt, record.n_gen, record.n_depth),
            f"{fields['avg_ts']:.2f} ± {fields['stddev_ts']:.2f}",
        ]

    widths = {"model": -30, "size": 10, "params": 10, "backend": -10, "threads": 7}
    widths.update((name, max(8, len(name))) for name in extra_columns)
    return Table(
        {**widths, "test": 15, "t/s": 20},
        cells,
        lambda last: f"\nbuild: {last.build_commit} ({last.build_number})\n",
    )


def format_bytes(n_bytes: int) -> str:
    """A size as llama-bench prints it."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.2f} MiB"


def format_params(n_params: int) -> str:
    """A parameter count as llama-bench prints it."""
    return f"{n_params / 1e9:.2f} B" if n_params >= 1e9 else f"{n_params / 1e6:.2f} M"
