"""Times of a model's decode steps in the device's tuning file: made by `plan --calibrate`, found by plan.

They count for one model's shapes and number formats, one KV method with its parameters, one number of
threads, and the kernels, compilers and CPU flags that they were made with: what differs makes another entry.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yakvrt.bench_facts import cpu_info
from yakvrt.device_arguments import gpu_name, threads_of
from yakvrt.machine_arguments import machine_keywords
from yakvrt.machine_facts import machine_facts
from yakvrt.step_times import StepTimes
from yakvrt.step_timing import (
    Progress,
    Timed,
    batches_up_to,
    depths_up_to,
    layers_to_time,
    some_layers,
    time_steps,
)
from yakvrt.terminal import note
from yakvrt.tuning import Section, TuningError, load, save, tuning_path
from yakvrt.weight_shapes import tensor_shapes

if TYPE_CHECKING:
    from yakvrt.device import Device
    from yakvrt.memory_plan import MemoryPlan
    from yakvrt.model_source import ModelSource

SECTION = "decode"
MOST_ENTRIES = 64
CACHES = 8  # times the last cache: so much weight is timed
LEAST_CACHE_BYTES = 32 << 20
BUSY_SPREAD = 0.25  # of the middle half of the samples: a guess


@dataclass(frozen=True, slots=True)
class Setting:
    """What times are for: a device by its name, and everything that a step's time hangs on."""

    device_name: str
    key: str
    n_threads: int


def setting_of(args: argparse.Namespace, source: ModelSource, parameters: Any, kind: str) -> Setting:
    """Raises: UsageError, DeviceError."""
    gpu = gpu_name(args)
    if gpu:
        from yakvrt.cuda.compilers import cache_path

        n_threads, made_of = 1, (str(args.cubins or _kernels(cache_path)), args.kv_device)
    else:
        from yakvrt.cpu.affinity import team_size, usable
        from yakvrt.cpu.kernel_cache import default_directory
        from yakvrt.cpu.topology import machine_topology

        affinity = machine_keywords(args)["affinity"]
        n_threads = team_size(threads_of(args), affinity, usable(affinity, machine_topology()))
        made_of = (_kernels(default_directory), repr(affinity))
    formats = [source.tensors[name].format for name, _ in tensor_shapes(source.config)]
    told = (source.config, formats, args.dtype, args.kv, parameters, kind, n_threads, *made_of)
    return Setting(gpu or cpu_info(), hashlib.sha256(repr(told).encode()).hexdigest()[:16], n_threads)


def _kernels(directory: Callable[[], Path]) -> str:
    """Which kernels run; empty where there are none and nothing compiles or keeps them."""
    try:
        return directory().name
    except RuntimeError:
        return ""


def find(setting: Setting, sections: dict[str, Section]) -> tuple[StepTimes, str] | None:
    """The times and when they were taken; None where there are none. A broken entry is said, not raised."""
    entry = _entries(sections).get(setting.key)
    if not isinstance(entry, dict):
        return None
    try:
        return StepTimes.read(entry), str(entry.get("date", ""))[:10]
    except TuningError as error:
        print(f"yakvrt: times in {tuning_path(setting.device_name)} are ignored: {error}", file=sys.stderr)
        return None


def calibrate(
    args: argparse.Namespace,
    setting: Setting,
    source: ModelSource,
    device: Device,
    plan: MemoryPlan,
    timed: Timed,
    progress: Progress | None,
) -> None:
    """Times steps of the model and keeps them; takes the device's memory, for some layers of the model.

    Raises: whatever loading a model does, and as tuning.save.
    """
    weight_bytes = sum(place.weight_bytes for place in plan.places)
    some = some_layers(source, layers_to_time(source.config, weight_bytes, least_bytes()))
    times = time_steps(some, device, timed, progress)
    if times.spread > BUSY_SPREAD:
        note(
            f"the machine was busy, the times of a step spread by {times.spread:.0%}: "
            "--calibrate again when it is quiet"
        )
    about = {
        "model": source.name,
        "kv": args.kv,
        "kv_args": dict(args.kv_args),
        "dtype": args.dtype,
        "threads": setting.n_threads,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    others = {
        key: entry
        for key, entry in _entries(load(setting.device_name) or {}).items()
        if key != setting.key and isinstance(entry, dict)
    }
    kept = dict(list(others.items())[1 - MOST_ENTRIES :])  # the newest, as each is added behind the others
    save(setting.device_name, SECTION, {"steps": {**kept, setting.key: {**about, **times.entry()}}})


def least_bytes() -> int:
    """So much weight is timed, where a model has it: far more than the last cache holds."""
    return CACHES * max(LEAST_CACHE_BYTES, machine_facts().llc_bytes)


def timed_for(method: Any, parameters: Any, kind: str, dtype: str, n_tokens: int, n_slots: int) -> Timed:
    """Depths up to n_tokens, and numbers of slots up to n_slots."""
    return Timed(method, parameters, kind, dtype, depths_up_to(n_tokens), batches_up_to(n_slots))


def _entries(sections: dict[str, Section]) -> dict[str, Any]:
    steps = sections.get(SECTION, {}).get("steps")
    return steps if isinstance(steps, dict) else {}
