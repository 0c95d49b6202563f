"""What is examined on a GPU, step by step: do cubins load, ceilings, what a launch costs, models, cases.

A step may lose the GPU or hang, so steps run in a process of their own:

    python gpu_steps.py CUBINS DEVICE FIRST [--quick] [--only TEXT]

runs them from number FIRST on and prints a JSON line before and behind each; bench_gpu.py reads them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gpu_ceilings
import gpu_models
import gpu_pinning
import gpu_questions
from cuda_cases import real_cases
from cuda_cases.case import LINK, Sized
from gpu_run import GpuRun

from yakvrt.cuda.device import Device
from yakvrt.cuda.device_kernels import built_kernels
from yakvrt.cuda.driver import DeviceError, DeviceLost

COPIED_BYTES = 1 << 30  # at once, of the ceilings
TARGET_MS = 10.0


@dataclass(frozen=True)
class Step:
    """`run` returns facts for JSON."""

    name: str
    run: Callable[[Device, GpuRun], dict[str, Any]]


def questions(quick: bool) -> list[Step]:
    made = [Step("all cubins load", lambda _, run: {"not_loaded": gpu_questions.not_loaded(run.kernels)})]
    if not quick:
        made.append(Step("ceilings", lambda device, _: {"ceilings": ceilings(device)}))
        made.append(Step("launch cost", lambda _, run: {"launch": gpu_questions.launch_cost(run.kernels)}))
    return made


def case_steps(cases: list[Sized], quick: bool) -> list[Step]:
    return [Step(sized.name, partial(examine, sized, quick)) for sized in cases]


def model_steps() -> list[Step]:
    models = [
        Step(gpu_models.name_of(*model), partial(gpu_models.examine_model, *model))
        for model in gpu_models.MODELS
    ]
    steps = [
        Step(gpu_models.yakv_name_of(*step), partial(gpu_models.examine_yakv_step, *step))
        for step in gpu_models.YAKV_STEPS
    ]
    return [*models, *steps, Step(gpu_pinning.NAME, gpu_pinning.examine_pinning)]


def ceilings(device: Device) -> dict[str, float | None]:
    return gpu_ceilings.measured(min(COPIED_BYTES, device.free_bytes() // 4))


def examine(sized: Sized, quick: bool, device: Device, run: GpuRun) -> dict[str, Any]:
    """Runs a case, compares it with its truth, then times its launches; nothing where it is for other GPUs.

    Raises: Mismatch, DeviceError.
    """
    if sized.arch not in (None, run.kernels.arch):
        return {"kernels_for": sized.arch}
    case = sized.make()
    placed = run.solve(case)
    try:
        facts: dict[str, Any] = {"of_allowed": round(case.check(), 4)}
        if quick:
            return facts
        times = run.microseconds(case, placed, TARGET_MS)
        facts["launches"] = [
            {
                "kernel": launch.kernel.symbol,
                "us": us,
                "n_bytes": launch.n_bytes,
                "n_operations": launch.n_operations,
                "limit": launch.limit,
            }
            for launch, us in zip(case.launches, times, strict=True)
        ]
        if case.launches[0].limit == LINK:
            facts["by_grid"] = gpu_questions.by_grid(run, case, placed)
        return facts
    finally:
        placed.free()


def events(cubins: Path, number: int, steps: list[Step], first: int) -> Iterator[dict[str, Any]]:
    """The device; then of every step its number, and once more with its facts or the error.

    A step that loses the GPU is the last.
    """
    try:
        device = Device(number)
        kernels = built_kernels(device, cubins)
    except DeviceError as error:
        yield {"refused": str(error)}
        return
    with device:
        major, minor = device.cuda_version
        yield {
            "device": {
                "name": device.name,
                "capability": list(device.capability),
                "multiprocessors": device.n_multiprocessors,
                "memory_gib": round(device.memory_bytes / 2**30, 1),
                "driver_cuda": f"{major}.{minor}",
                "cubins": kernels.arch,
            }
        }
        run = GpuRun(kernels)
        for i, step in enumerate(steps[first:], first):
            yield {"step": i}
            try:
                yield {"step": i, "facts": step.run(device, run)}
            except Exception as error:
                yield {"step": i, "error": f"{type(error).__name__}: {error}"}
                if isinstance(error, DeviceLost) or (isinstance(error, DeviceError) and not answers(device)):
                    return
        kernels.close()


def answers(device: Device) -> bool:
    """Whether further steps can run in this process."""
    try:
        device.synchronise()
    except DeviceError:
        return False
    return True


def chosen_steps(only: str, quick: bool) -> list[Step]:
    """All of them, or the cases and models whose names hold a text."""
    cases = [case for case in real_cases() if only in case.name]
    models = [step for step in model_steps() if only in step.name]
    return [*questions(quick), *models, *case_steps(cases, quick)] if cases or models else []


def main() -> int:
    """Runs the steps from one on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cubins", type=Path)
    parser.add_argument("device", type=int)
    parser.add_argument("first", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    steps = chosen_steps(args.only, args.quick)
    for event in events(args.cubins, args.device, steps, args.first):
        print(json.dumps(event), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
