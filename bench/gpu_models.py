"""Whole steps on a GPU: tiny models against golden logits, which takes safetensors and ml_dtypes to read
them, and YAKV's decode step against numpy.
"""

from __future__ import annotations

from typing import Any

from gpu_run import GpuRun

from yakvrt.cuda.device import Device

# family, and rows of a step of a prompt in bfloat16, for tensor cores; 0: exact
MODELS = (("llama3", 0), ("qwen3-moe", 0), ("llama3", 12), ("qwen3-moe", 12), ("llama3", 48))

# YAKV's selector, key rows, whether rows rest in pinned host memory, whether there is a tail, and turns
YAKV_STEPS = (
    ("2bit", "r3", False, True, 1),
    ("2bit", "r3", True, True, 2),
    ("2bit", "q4", False, True, 1),
    ("2bit", "q4", True, False, 1),
    ("1.5bit", "r3", False, True, 1),
    ("1.5bit", "q4", True, True, 2),
)


def name_of(family: str, rounded_rows: int) -> str:
    return f"tiny {family}, {f'rounded steps of {rounded_rows} rows' if rounded_rows else 'exact steps'}"


def examine_model(family: str, rounded_rows: int, device: Device, run: GpuRun) -> dict[str, Any]:
    """Raises: Mismatch, DeviceError."""
    try:
        import ml_dtypes  # noqa: F401
        import safetensors  # noqa: F401
    except ImportError as error:
        return {"left_out": f"needs {error.name}"}
    from tiny_device_model import exact_steps, rounded_steps

    from yakvrt.cuda.backend import CudaBackend

    backend = CudaBackend(Device(device.number), run.kernels.directory)
    try:
        rounded = rounded_rows > 0
        error = rounded_steps(backend, family, rounded_rows) if rounded else exact_steps(backend, family)
    finally:
        backend.close()
    return {"of_allowed": round(error, 4)}


def yakv_name_of(selector: str, k_format: str, on_host: bool, tail: bool, n_turns: int) -> str:
    rows = "pinned" if on_host else "on the device"
    turns = f", {n_turns} turns" if n_turns > 1 else ""
    return f"yakv step {selector} {k_format}, rows {rows}{', tail' if tail else ''}{turns}"


def examine_yakv_step(
    selector: str, k_format: str, on_host: bool, tail: bool, n_turns: int, device: Device, run: GpuRun
) -> dict[str, Any]:
    """Raises: Mismatch, DeviceError."""
    from yakv_device_step import yakv_step

    from yakvrt.cuda.backend import CudaBackend

    backend = CudaBackend(Device(device.number), run.kernels.directory)
    try:
        error, _ = yakv_step(backend, selector, k_format, on_host, tail, n_turns)
    finally:
        backend.close()
    return {"of_allowed": round(error, 4)}
