"""Log-probabilities saved to a file, and llama-perplexity's statistics of another model against them."""

from __future__ import annotations

import math
import os
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Wide = TypeVar("Wide", npt.NDArray[np.float32], npt.NDArray[np.float64])
Codes = npt.NDArray[np.uint16]
Tokens = npt.NDArray[np.int32]

# File: header, tokens int32 [chunks, ctx], then per scored token one row of (lowest, step) float32 and a
# uint16 code for every word: log-probability = lowest + code * step. All little-endian.
HEADER = struct.Struct("<8sIIII")  # magic, version, ctx, vocab, chunks
MAGIC = b"yakvrtKL"
VERSION = 1
LIMIT = 1 << 24
# Words less likely than the best one by more than this (in log) are saved as if exactly that unlikely: over
# 150k words they hold less than 6e-6 of the probability, and the step stays at 3.7e-4.
RANGE = 24.0
PERCENTILES = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1)


def n_scored(n_ctx: int) -> int:
    """How many tokens of a window are scored: the second half, less its first."""
    return n_ctx - n_ctx // 2 - 1


def log_softmax(logits: Wide) -> Wide:
    """Log-probabilities along the last axis, in the type of the logits; sums are float64.

    Shapes: logits (..., V) -> (..., V)
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    found: Wide = shifted - np.log(total).astype(shifted.dtype)
    return found


def row_type(n_vocab: int) -> np.dtype[np.void]:
    """One saved row."""
    return np.dtype([("lowest", "<f4"), ("step", "<f4"), ("codes", "<u2", (n_vocab,))])


def encode_rows(log_probs: Floats) -> npt.NDArray[np.void]:
    """Rows as they are saved."""
    top = log_probs.max(axis=1, keepdims=True)
    lowest = np.maximum(log_probs.min(axis=1, keepdims=True), top - np.float32(RANGE))
    step = (top - lowest) / np.float32(65535)
    codes = (np.maximum(log_probs, lowest) - lowest) / np.where(step > 0, step, 1)
    rows = np.empty(len(log_probs), row_type(log_probs.shape[1]))
    rows["lowest"], rows["step"] = lowest[:, 0], step[:, 0]
    rows["codes"] = np.minimum(np.rint(codes), 65535).astype(np.uint16)
    return rows


class LogProbWriter:
    """Writes log-probabilities to a temporary name, renamed when the `with` block ends without an error.

    Raises: ValueError when the path is no place for a file, or the disk has no room for it.
    """

    def __init__(self, path: Path, windows: Tokens, n_vocab: int) -> None:
        n_chunks, n_ctx = windows.shape
        size = HEADER.size + windows.size * 4 + n_chunks * n_scored(n_ctx) * row_type(n_vocab).itemsize
        self._path = file_to_write(path)
        free = shutil.disk_usage(self._path.parent).free
        if size > free:
            need, have = f"{size / 1e9:.1f} GB", f"{free / 1e9:.1f} GB"
            raise ValueError(f"{path} would take {need}, the disk has {have} free; lower --chunks")
        self._part = self._path.with_name(f".{self._path.name[:200]}.{os.getpid()}.part")
        try:
            self._file: BinaryIO = self._part.open("wb")
        except OSError as error:
            raise ValueError(
                f"{path} cannot be written ({error.strerror}); name a file in a writable directory"
            ) from None
        self._head = HEADER.pack(MAGIC, VERSION, n_ctx, n_vocab, n_chunks) + windows.astype("<i4").tobytes()

    def write(self, log_probs: Floats) -> None:
        """Append rows."""
        try:
            self._file.write(self._head + encode_rows(log_probs).tobytes())
        except OSError as error:
            raise self._full(error) from None
        self._head = b""

    def __enter__(self) -> LogProbWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._file.close()
            if kind is None:
                self._part.replace(self._path)
        except OSError as error:
            if kind is None:
                raise self._full(error) from None
        finally:
            self._part.unlink(missing_ok=True)

    def _full(self, error: OSError) -> ValueError:
        return ValueError(
            f"{self._path} cannot be written ({error.strerror}); free some space, lower --chunks or "
            "name a file on another disk"
        )


def file_to_write(path: Path) -> Path:
    """Where a file of this name is really written: a link keeps pointing at its target, which is replaced.

    Raises: ValueError when something else than a regular file is there, or its directory is missing.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise ValueError(f"{path} is a directory; name a file in it")
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise ValueError(f"{path} is no regular file; name a file to write")
    if not target.parent.is_dir():
        raise ValueError(f"the directory {target.parent} of {path} does not exist; make it first")
    return target


class SavedLogProbs:
    """A file of LogProbWriter, mapped; .windows are its tokens, rows() the saved rows of one chunk.

    Raises: ValueError when the file is no such file, of another version or cut off.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            head = file.read(HEADER.size)
        if len(head) < HEADER.size or not head.startswith(MAGIC):
            raise ValueError(f"{path} holds no saved log-probabilities; make it with --kl-divergence-base")
        _, version, self.n_ctx, self.n_vocab, n_chunks = HEADER.unpack(head)
        if version != VERSION:
            raise ValueError(
                f"{path} has format version {version}, this program reads {VERSION}; save it again"
            )
        if not (4 <= self.n_ctx <= LIMIT and 1 <= self.n_vocab <= LIMIT and 1 <= n_chunks <= LIMIT):
            raise ValueError(f"{path} has sizes no model has; save it again")
        n_rows = n_chunks * n_scored(self.n_ctx)
        start = HEADER.size + n_chunks * self.n_ctx * 4
        size, real = start + n_rows * row_type(self.n_vocab).itemsize, path.stat().st_size
        if size != real:
            raise ValueError(f"{path} has {real} bytes where its header promises {size}; save it again")
        self.windows: Tokens = np.fromfile(path, "<i4", n_chunks * self.n_ctx, offset=HEADER.size).reshape(
            n_chunks, self.n_ctx
        )
        if self.windows.min() < 0 or self.windows.max() >= self.n_vocab:
            raise ValueError(f"{path} holds token ids beyond its vocabulary; save it again")
        self._rows = np.memmap(path, row_type(self.n_vocab), "r", start, (n_chunks, n_scored(self.n_ctx)))

    def rows(self, chunk: int) -> npt.NDArray[np.void]:
        """The rows of one chunk, still on disk."""
        return np.asarray(self._rows[chunk])


@dataclass(slots=True)
class Comparison:
    """Per scored token: NLL here and in the base, KL divergence, change of probability, same best word."""

    nll: list[Doubles]
    nll_base: list[Doubles]
    kld: list[Doubles]
    delta_p: list[Doubles]
    same_top: list[npt.NDArray[np.bool_]]

    @classmethod
    def empty(cls) -> Comparison:
        return cls([], [], [], [], [])

    def add(self, log_probs: Floats, rows: npt.NDArray[np.void], targets: Sequence[int] | Tokens) -> None:
        """Compare one block of rows with the saved ones."""
        at, target = np.arange(len(log_probs)), np.asarray(targets)
        codes: Codes = rows["codes"]
        base = rows["lowest"][:, None] + codes.astype(np.float32) * rows["step"][:, None]
        mine, theirs = log_probs[at, target].astype(np.float64), base[at, target].astype(np.float64)
        self.nll.append(-mine)
        self.nll_base.append(-theirs)
        self.kld.append((np.exp(base) * (base - log_probs)).sum(axis=1, dtype=np.float64))
        self.delta_p.append(np.exp(mine) - np.exp(theirs))
        # Words that share the best code are equally good: the code is all that the file knows.
        self.same_top.append(codes[at, log_probs.argmax(axis=1)] == codes.max(axis=1))

    def statistics(self) -> dict[str, Any]:
        """llama-perplexity's numbers over all tokens so far; a pair is a value and its standard error."""
        nll, base = np.concatenate(self.nll), np.concatenate(self.nll_base)
        kld, delta = np.concatenate(self.kld), np.concatenate(self.delta_p) * 100
        same = float(np.concatenate(self.same_top).mean())
        n = len(nll)
        (ln_q, ln_q_error), (ln_base, ln_base_error) = mean_error(nll), mean_error(base)
        covariance = float(np.mean(nll * base) - ln_q * ln_base) / (n - 1) if n > 10 else 0.0
        ratio_error = math.sqrt(max(ln_q_error**2 + ln_base_error**2 - 2 * covariance, 0))
        ppl, ppl_base, ratio = math.exp(ln_q), math.exp(ln_base), math.exp(ln_q - ln_base)
        both = ln_q_error * ln_base_error
        spread = (ppl * ln_q_error) ** 2 + (ppl_base * ln_base_error) ** 2 - 2 * ppl * ppl_base * covariance
        square, square_error = mean_error(delta**2)
        rms = math.sqrt(square)
        return {
            "n_tokens": n,
            "ppl": (ppl, ppl * ln_q_error),
            "ppl_base": (ppl_base, ppl_base * ln_base_error),
            "correlation": 100 * covariance / both if both else 100.0,
            "ln_ratio": (ln_q - ln_base, ratio_error),
            "ratio": (ratio, ratio * ratio_error),
            "difference": (ppl - ppl_base, math.sqrt(max(spread, 0))),
            "kld": mean_error(kld),
            "kld_range": spread_of(kld),
            "delta_p": mean_error(delta),
            "delta_p_range": spread_of(delta),
            "delta_p_rms": (rms, 0.5 * square_error / rms if rms else 0.0),
            "same_top_p": (100 * same, 100 * math.sqrt(same * (1 - same) / max(n - 1, 1))),
        }


def mean_error(values: Doubles) -> tuple[float, float]:
    """The mean and its standard error; too few values for one give 0."""
    n = len(values)
    return float(values.mean()), float(values.std() / math.sqrt(n - 1)) if n > 10 else 0.0


def spread_of(values: Doubles) -> dict[str, float]:
    """Maximum, percentiles and minimum."""
    inner = {
        f"{p:.1f}%": float(q) for p, q in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)
    }
    return {"max": float(values.max()), **inner, "min": float(values.min())}


def chunk_line(number: int, stats: dict[str, Any]) -> str:
    """The running line of one chunk."""
    numbers = (
        ("ppl", 9, 4),
        ("ln_ratio", 10, 5),
        ("kld", 10, 5),
        ("delta_p_rms", 6, 3),
        ("same_top_p", 6, 3),
    )
    cells = [f"{stats[key][0]:{w}.{d}f} ± {stats[key][1]:{w}.{d}f}" for key, w, d in numbers]
    return f"{number:4d}    " + "    ".join(cell + (" %" if i > 2 else "") for i, cell in enumerate(cells))


CHUNK_TITLE = (
    "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS"
    "            Same top p"
)


def report(stats: dict[str, Any]) -> str:
    """The three tables that llama-perplexity prints."""

    def pair(title: str, key: str) -> str:
        value, error = stats[key]
        return f"{title:<30}: {value:10.6f} ± {error:10.6f}"

    def ranges(title: str, key: str, form: str) -> list[str]:
        names = {"max": "Maximum", "50.0%": "Median", "min": "Minimum"}
        return [f"{names.get(k, f'{k:>5}'):<7} {title}: {form.format(v)}" for k, v in stats[key].items()]

    def percent(title: str, key: str) -> str:
        return f"{title}: {stats[key][0]:6.3f} ± {stats[key][1]:5.3f} %"

    lines = [
        "====== Perplexity statistics ======",
        pair("Mean PPL(Q)", "ppl"),
        pair("Mean PPL(base)", "ppl_base"),
        f"{'Cor(ln(PPL(Q)), ln(PPL(base)))':<30}: {stats['correlation']:6.2f}%",
        pair("Mean ln(PPL(Q)/PPL(base))", "ln_ratio"),
        pair("Mean PPL(Q)/PPL(base)", "ratio"),
        pair("Mean PPL(Q)-PPL(base)", "difference"),
        "",
        "====== KL divergence statistics ======",
        f"Mean    KLD: {stats['kld'][0]:10.6f} ± {stats['kld'][1]:10.6f}",
        *ranges("KLD", "kld_range", "{:10.6f}"),
        "",
        "====== Token probability statistics ======",
        percent("Mean    Δp", "delta_p"),
        *ranges("Δp", "delta_p_range", "{:6.3f}%"),
        percent("RMS Δp    ", "delta_p_rms"),
        percent("Same top p", "same_top_p"),
    ]
    return "\n".join(lines)
