"""Whole steps on a GPU: tiny models against golden logits, which takes safetensors and ml_dtypes to read
them, and YAKV's decode step against numpy.
"""

from __future__ import annotations

from typing import Any

from gpu_run import GpuRun

from yakvrt.cuda.device import Device

# family, and rows of a step of a prompt in bfloat16, for tensor cores; 0: exact
MODELS = (("llama3", 0), ("qwen3-moe", 0), ("llama3", 12), ("qwen3-moe", 12), ("llama3", 48))

# YAKV's key rows, whether rows rest in pinned host memory, and whether there is a tail
YAKV_STEPS = (("r3", False, True), ("r3", True, True), ("q4", False, True), ("q4", True, False))


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


def yakv_name_of(k_format: str, on_host: bool, tail: bool) -> str:
    return f"yakv step {k_format}, rows {'pinned' if on_host else 'on the device'}{', tail' if tail else ''}"


def examine_yakv_step(
    k_format: str, on_host: bool, tail: bool, device: Device, run: GpuRun
) -> dict[str, Any]:
    """Raises: Mismatch, DeviceError."""
    from yakv_device_step import yakv_step

    from yakvrt.cuda.backend import CudaBackend

    backend = CudaBackend(Device(device.number), run.kernels.directory)
    try:
        error = yakv_step(backend, k_format, on_host, tail)
    finally:
        backend.close()
    return {"of_allowed": round(error, 4)}
