"""What a benchmark record says about the machine, the build and the model file."""

from __future__ import annotations

import collections
import json
import math
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .model_files import is_gguf

if TYPE_CHECKING:
    from yakvrt.engine import Engine
    from yakvrt.model_files import ModelFiles

MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The weights of a model: their number, their bytes and the type most of them are stored in."""

    type_name: str
    n_params: int
    size_bytes: int


def cpu_info() -> str:
    """The processor's own name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def build() -> tuple[str, int]:
    """The git commit of a source checkout and its number; the version and 0 where there is no git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "--short", "HEAD"), int(git("rev-list", "--count", "HEAD"))
    except (OSError, subprocess.CalledProcessError):
        return __version__, 0


def model_facts(files: ModelFiles, family: str) -> ModelFacts:
    """Counts the tensors of the weight files without reading any weights."""
    counts: collections.Counter[str] = collections.Counter()
    n_params = size_bytes = 0
    for path in files.weights:
        for format_name, n_elements, n_bytes in _tensors(path):
            counts[format_name] += n_elements
            n_params += n_elements
            size_bytes += n_bytes
    most = counts.most_common(1)[0][0] if counts else "none"
    return ModelFacts(f"{family} {_label(n_params)} {most}", n_params, size_bytes)


def dummy_facts(engine: Engine) -> ModelFacts:
    """Facts of random weights, which no file holds: as the engine keeps them."""
    n_params = engine.config.n_params
    return ModelFacts(f"{engine.config.family} {_label(n_params)} dummy", n_params, engine.weight_bytes)


def _label(n_params: int) -> str:
    return f"{n_params / 1e9:.1f}B" if n_params >= 1e9 else f"{n_params / 1e6:.0f}M"


def _tensors(path: Path) -> list[tuple[str, int, int]]:
    """Type, number of elements and bytes of every tensor in a weight file."""
    if is_gguf(path):
        from gguf_tools.reader import GGUFFile

        with GGUFFile(path) as file:
            return [(t.format.name, math.prod(t.shape), t.data.nbytes) for t in file.tensors.values()]
    with path.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise ValueError(
                f"{path} has a header of {header_bytes} bytes, at most {MAX_HEADER_BYTES}: fetch it again"
            )
        header = json.loads(stream.read(header_bytes))
    return [
        (entry["dtype"], math.prod(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    ]
