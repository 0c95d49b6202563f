"""gguf_tools against gguf-py and llama.cpp: opening, dequantising, quantising, and the error of quantising.

    python bench/bench_gguf_tools.py --model MODEL.gguf --reps 5 --out bench/results/NAME.json

Needs gguf and llama-cpp-python. Without --model, opening is timed on a file written here with 151936 tokens.
Sides take turns, every figure is a median, and each says how many other CPUs were busy meanwhile.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import result_file
from numpy.typing import NDArray
from quantise_files import llama_file, quantise_in_turn
from quiet import MAX_OTHER_CPUS, Meter

QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
DEQUANTISED = (*QUANTISED, "F16", "BF16")
N_VALUES = 1 << 25
CALLS = 12  # of one sample, so that it lasts long enough to tell what else the machine did


def in_turn(sides: Mapping[str, Callable[[], object]], reps: int) -> dict[str, dict[str, Any]]:
    """Median seconds of every side, each called once before; the first to go changes every turn."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for call in sides.values():
        call()
    names = list(sides)
    for turn in range(reps):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with Meter() as meter:
                sides[name]()
            samples[name].append((meter.wall_s, meter.other_cpus))
    return {
        name: {
            "median_s": statistics.median(s for s, _ in taken),
            "min_s": min(s for s, _ in taken),
            "other_cpus": round(statistics.median(other for _, other in taken), 2),
            "all_s": [round(s, 5) for s, _ in taken],
            "all_busy": [round(other, 2) for _, other in taken],
        }
        for name, taken in samples.items()
    }


def vocabulary_file(path: Path) -> Path:
    """A GGUF file with as many tokens and merges as Qwen has."""
    from gguf import GGUFWriter

    tokens = [f"token{i}" for i in range(151_936)]
    writer = GGUFWriter(path, "qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([f"to ken{i}" for i in range(151_387)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def opening(path: Path, reps: int) -> dict[str, Any]:
    """Opening a file and reading every metadata value that is no array; and the list of tokens as well."""
    from gguf import GGUFReader, GGUFValueType

    from gguf_tools.meta_value import ValueType
    from gguf_tools.reader import GGUFFile

    def ours() -> None:
        with GGUFFile(path) as file:
            for key in file.metadata:
                if file.metadata.place(key)[0] != ValueType.ARRAY:
                    file.metadata[key]

    def ours_tokens() -> None:
        with GGUFFile(path) as file:
            assert len(file.metadata["tokenizer.ggml.tokens"]) > 1

    def theirs() -> None:
        for entry in GGUFReader(path).fields.values():
            if entry.types[0] != GGUFValueType.ARRAY:
                entry.contents()

    def theirs_tokens() -> None:
        assert len(GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()) > 1

    sides = {"gguf_tools": ours, "gguf_tools, all tokens": ours_tokens}
    return in_turn({**sides, "gguf-py": theirs, "gguf-py, all tokens": theirs_tokens}, reps)


def _any_rows(name: str, n_rows: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Rows of 4096 values with ordinary scales and random codes; which codes does not change the speed."""
    from gguf_tools.formats import FORMATS
    from gguf_tools.quantize import quantize

    fmt = FORMATS[name]
    if fmt.block_len == 1:
        return quantize(rng.standard_normal((n_rows, 4096), np.float32), name)
    rows = rng.integers(0, 256, (n_rows, fmt.row_bytes(4096)), np.uint8)
    for field in {"d", "m", "dmin"} & set(fmt.block.names or ()):
        rows.view(fmt.block)[field] = 0.01
    return rows


def dequantising(reps: int) -> dict[str, Any]:
    """GB/s of stored bytes read and float32 written, beside a copy that moves as many bytes in all.

    One thread; results go into one array that was written before, and so does the copy.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as reference

    from gguf_tools.dequantize import dequantize

    rng = np.random.default_rng(0)
    target = np.zeros((N_VALUES // 4096, 4096), np.float32)
    source = np.ones_like(target)
    rows: dict[str, Any] = {}
    for name in DEQUANTISED:
        some = _any_rows(name, len(target) // 16, rng)
        data = np.tile(some, (16, 1))
        kind = GGMLQuantizationType[name]
        expected, got = dequantize(some, name), dequantize(data, name, out=target, compiled=True)[: len(some)]
        if not np.array_equal(got.view(np.uint32), expected.view(np.uint32)):
            raise RuntimeError(f"{name}: compiled and uncompiled decoding differ")
        n_bytes = data.nbytes + target.nbytes
        half = n_bytes // 8
        sides: dict[str, Callable[[], object]] = {
            "gguf_tools": lambda data=data, name=name: dequantize(data, name, out=target, compiled=True),
            "copy": lambda half=half: np.copyto(target.reshape(-1)[:half], source.reshape(-1)[:half]),
        }
        repeated = {side: lambda call=call: [call() for _ in range(CALLS)] for side, call in sides.items()}
        taken = in_turn(repeated, reps)
        slow = in_turn(
            {
                "numpy alone": lambda data=data, name=name: dequantize(data, name, out=target),
                "gguf-py": lambda data=data, kind=kind: reference(data, kind),
            },
            2,
        )
        gb_s = {side: CALLS * n_bytes / t["median_s"] / 1e9 for side, t in taken.items()}
        gb_s |= {side: n_bytes / t["median_s"] / 1e9 for side, t in slow.items()}
        pairs = [
            (copy / ours, busy <= MAX_OTHER_CPUS)
            for ours, copy, busy in zip(
                taken["gguf_tools"]["all_s"],
                taken["copy"]["all_s"],
                taken["gguf_tools"]["all_busy"],
                strict=True,
            )
        ]
        rows[name] = {
            "gb_s": {side: round(rate, 2) for side, rate in gb_s.items()},
            "share_of_copy": round(statistics.median(ratio for ratio, _ in pairs), 3),
            "all_shares": [round(ratio, 3) for ratio, _ in pairs],
            "quiet_samples": sum(quiet for _, quiet in pairs),
            "other_cpus": taken["gguf_tools"]["other_cpus"],
        }
        print(f"dequantise {name:<5}", {k: v for k, v in rows[name].items() if k != "all_shares"})
    return rows


def errors() -> dict[str, Any]:
    """Root mean square errors of gguf_tools and of llama.cpp's quantiser, on values of three kinds."""
    import llama_cpp

    from gguf_tools.dequantize import dequantize
    from gguf_tools.formats import FORMATS
    from gguf_tools.quantize import quantize

    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    encode = library.ggml_quantize_chunk
    encode.restype = ctypes.c_size_t
    encode.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((256, 4096))
    outliers = np.where(np.arange(4096) % 256 == 7, 5.0, normal * 0.05)
    inputs = {"normal": normal, "heavy tails": rng.standard_t(3, normal.shape), "outliers": outliers}

    def rmse(x: NDArray[np.float32], data: NDArray[np.uint8], name: str) -> float:
        return float(np.sqrt(np.mean((dequantize(data, name).astype(np.float64) - x) ** 2)))

    table: dict[str, Any] = {}
    for name in QUANTISED:
        table[name] = {}
        for label, values in inputs.items():
            x = values.astype(np.float32)
            theirs = np.empty((len(x), FORMATS[name].row_bytes(x.shape[1])), np.uint8)
            encode(FORMATS[name].ggml_id, x.ctypes.data, theirs.ctypes.data, 0, *x.shape, None)
            mine = quantize(x, name)
            ours_rmse, theirs_rmse = rmse(x, mine, name), rmse(x, theirs, name)
            same = bool(np.array_equal(mine, theirs))
            table[name][label] = {
                "gguf_tools": round(ours_rmse, 7), "llama.cpp": round(theirs_rmse, 7),
                "ratio": round(ours_rmse / theirs_rmse, 4), "same_bytes": same,
            }  # fmt: skip
        print(f"rmse {name:<5}", {label: row["ratio"] for label, row in table[name].items()})
    return table


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="gguf_tools against gguf-py and llama.cpp.")
    parser.add_argument("--model", type=Path, help="the file to open; default: one written here")
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of quantising a file")
    parser.add_argument("--types", default="Q4_K,Q6_K,Q8_0", help="types that a file is quantised to")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {"bench": "gguf_tools", **result_file.facts()}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or vocabulary_file(Path(folder) / "vocabulary.gguf")
        result["open"] = {"file": model.name, **opening(model, args.reps)}
        for side, taken in result["open"].items():
            if side != "file":
                print(f"open {side}: {1000 * taken['median_s']:.1f} ms")
        result["rmse"] = errors()
        result["dequantise"] = dequantising(max(args.reps, 11))
        source = llama_file(Path(folder) / "source.gguf")
        reps = max(1, args.reps // 2)
        result["quantise"] = quantise_in_turn(source, args.types.split(","), args.threads, reps)
    result["seconds"] = round(time.perf_counter() - began, 1)
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
