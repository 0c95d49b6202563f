"""What was measured on a device, kept between runs: one JSON file a device, in sections that merge.

`save` writes a section, `load` reads all of them, `LinkRates.read` and its like give a section its types. A
file is hostile until checked: its size, its depth, and that every number is finite and not negative.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from .cache_directory import cache_directory
from .whole_file import write_whole

VERSION = 1
MAX_BYTES = 1 << 20
MAX_DEPTH = 8
MAX_NUMBER = 1e18

Section = Mapping[str, Any]
"""Names to finite numbers of 0 or more, texts, lists and further mappings of these."""


class TuningError(ValueError):
    """A file of measurements that cannot be used, or a section with a value it must not have."""


def tuning_path(device_name: str) -> Path:
    """Of the device that calls itself so: letters, digits, dots and dashes of the name are kept.

    Raises: RuntimeError where there is no directory for it.
    """
    safe = re.sub(r"[^a-z0-9.]+", "-", device_name.lower()).strip("-.")[:100]
    return cache_directory() / "tuning" / f"{safe or 'device'}.json"


def load(device_name: str) -> dict[str, Section] | None:
    """The sections measured on a device; None where nothing was, or no directory keeps any. A broken file is
    said once, not raised: measurements only make predictions and choices better.
    """
    try:
        path = tuning_path(device_name)
    except RuntimeError:
        return None
    try:
        return _read(path, device_name)
    except FileNotFoundError:
        return None
    except (OSError, TuningError) as error:
        print(f"yakvrt: {path} is ignored ({error}); remove it, then measure again", file=sys.stderr)
        return None


def save(device_name: str, section: str, values: Section) -> Path:
    """Replaces one section and keeps the others, unless the file is broken. Seen whole or not at all; of
    several that save at once none loses its section.

    Raises: TuningError for a value that load() would refuse, RuntimeError where there is no directory for it
        or that takes no file.
    """
    path = tuning_path(device_name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(path.parent):
            sections = load(device_name) or {}
            content = {"version": VERSION, "device": device_name, "sections": {**sections, section: values}}
            _check_tree(content["sections"], 0)
            text = json.dumps(content, indent=1) + "\n"  # ASCII: names may hold halves of characters
            if len(text) > MAX_BYTES:
                raise TuningError(
                    f"{path} would be over {MAX_BYTES >> 10} KiB; remove it, then measure again"
                )
            write_whole(path, text.encode())
    except OSError as error:
        raise RuntimeError(
            f"{path} cannot be written ({error.strerror}): set YAKVRT_CACHE to a writable directory"
        ) from error
    return path


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process or thread at a time. The lock goes with the descriptor, also when the process is killed."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path, device_name: str) -> dict[str, Section]:
    with path.open("rb") as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise TuningError(f"it is over {MAX_BYTES >> 10} KiB")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TuningError("it is not JSON") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise TuningError(f"it is not of version {VERSION}")
    if content.get("device") != device_name:
        raise TuningError(f"it is of another device than {device_name}")
    sections = content.get("sections")
    if not isinstance(sections, dict) or not all(isinstance(each, dict) for each in sections.values()):
        raise TuningError("it holds no sections")
    _check_tree(sections, 0)
    return sections


def _check_tree(value: object, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TuningError(f"it nests deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping):
        for name, each in value.items():
            if not isinstance(name, str):
                raise TuningError(f"{name!r} is no name")
            _check_tree(each, depth + 1)
    elif isinstance(value, list | tuple):
        for each in value:
            _check_tree(each, depth + 1)
    elif isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TuningError(f"{value!r} is neither a number nor a text")
    elif not isinstance(value, str) and not (0 <= value <= MAX_NUMBER and math.isfinite(value)):
        raise TuningError(f"{value!r} is no number of 0 or more")


@dataclass(frozen=True, slots=True)
class LinkRates:
    """Section "link" of a GPU: what its link and its memory reach, in 1e9 bytes a second, and what starting
    work costs. Medians; written by `yakvrt transfer`.
    """

    to_device_gbps: float  # large copies of pinned memory
    to_host_gbps: float
    gather_gbps: float  # rows of host memory, read by a kernel
    memory_gbps: float  # the device's own memory: bytes that a copy within it reads and writes
    copy_us: float  # of an empty copy
    launch_us: float  # of an empty kernel within a graph
    crossover_bytes: float  # rows that large come faster by copies than by a kernel; 0: none were
    gather_blocks: float  # of the fastest gather

    @classmethod
    def read(cls, sections: Mapping[str, Section]) -> Self | None:
        """None where the section is not there. Raises: TuningError where it lacks a number."""
        return None if "link" not in sections else cls(**numbers(sections["link"], cls))


@dataclass(frozen=True, slots=True)
class HostRates:
    """Section "host" of a CPU: what its memory gives, in 1e9 bytes a second, a median; written by `yakvrt
    transfer`.
    """

    gather_gbps: float  # scattered rows, by all threads of a step

    @classmethod
    def read(cls, sections: Mapping[str, Section]) -> Self | None:
        """None where the section is not there. Raises: TuningError where it lacks a number."""
        return None if "host" not in sections else cls(**numbers(sections["host"], cls))


def fetch_gbps(device_name: str) -> float:
    """What rows for the host reach on their way to a device of that name, a GPU or a CPU, as measured there:
    the ceiling of what fetches them. 0 where it was not measured.
    """
    try:
        sections = load(device_name) or {}
        rates = LinkRates.read(sections) or HostRates.read(sections)
    except TuningError:
        return 0.0
    return rates.gather_gbps if rates else 0.0


def numbers(section: Section, kind: type[Any]) -> dict[str, float]:
    """The numbers that a dataclass asks for; what else a section holds is left alone. Raises: TuningError."""
    found = {field.name: section.get(field.name) for field in fields(kind)}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TuningError(f"{name} is {value!r}, not a number; measure again")
    return {name: float(value) for name, value in found.items() if value is not None}
