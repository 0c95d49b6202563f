"""Whole tiny models on a GPU against golden logits; takes safetensors and ml_dtypes, to read them."""

from __future__ import annotations

from typing import Any

from gpu_run import GpuRun

from yakvrt.cuda.device import Device

# family, and whether activations and KV are rounded to bfloat16 for tensor cores
MODELS = (("llama3", False), ("qwen3-moe", False), ("llama3", True), ("qwen3-moe", True))


def name_of(family: str, rounded: bool) -> str:
    return f"tiny {family}, {'rounded' if rounded else 'exact'} steps"


def examine_model(family: str, rounded: bool, device: Device, run: GpuRun) -> dict[str, Any]:
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
        error = (rounded_steps if rounded else exact_steps)(backend, family)
    finally:
        backend.close()
    return {"of_allowed": round(error, 4)}
