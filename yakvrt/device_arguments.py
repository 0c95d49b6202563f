"""The flags of what runs a model, the CPU or a GPU, under llama.cpp's names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from yakvrt.cli_parsing import kind
from yakvrt.device import KV_DEVICES, gpu_number, open_gpu
from yakvrt.machine_arguments import machine_keywords
from yakvrt.terminal import UsageError

if TYPE_CHECKING:
    from yakvrt.device import Device


class ListDevices(argparse.Action):
    """Prints the devices, as llama.cpp does, and ends."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print("Available devices:")
        print("\n".join(f"  {line}" for line in device_lines()))
        parser.exit()


def device_lines() -> list[str]:
    """The CPU, and every GPU with its memory or why there is none."""
    from yakvrt.cuda.device import list_devices
    from yakvrt.cuda.driver import DeviceError

    lines = ["CPU"]
    try:
        for gpu in list_devices():
            free = gpu.refused or f"{gpu.free_bytes >> 20} MiB free"
            lines.append(f"CUDA{gpu.number}: {gpu.name} ({gpu.memory_bytes >> 20} MiB, {free})")
    except DeviceError as error:
        lines.append(f"no GPU: {error}")
    return lines


def _device(text: str) -> str:
    gpu_number(text)
    return text.lower()


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """What computes."""
    add = parser.add_argument_group("device").add_argument
    add(
        *("-dev", "--device"),
        type=kind("cpu, cuda or cuda:N", _device),
        default="cpu",
        metavar="DEV",
        help="cpu, cuda or cuda:N (cpu)",
    )
    add("--list-devices", action=ListDevices, nargs=0, help="print the devices and exit")
    add(
        "--kv-device",
        choices=KV_DEVICES,
        default="auto",
        help="with a GPU, where a method's rows for the host rest: there, on the GPU if they fit (auto)",
    )
    add(
        "--cubins",
        metavar="DIR",
        default=os.environ.get("YAKVRT_CUBINS") or None,
        help="kernels that `kernels build` made ($YAKVRT_CUBINS; else they are compiled)",
    )


def on_gpu(args: argparse.Namespace) -> bool:
    """Raises: UsageError for flags that are for the CPU alone."""
    if gpu_number(args.device) is None:
        return False
    wrong = [flag for flag, given in (("--mlock", args.mlock), ("--tile-cache", args.tile_cache)) if given]
    if wrong:
        raise UsageError(f"{wrong[0]} is for the CPU, not for --device {args.device}; leave one out")
    return True


def gpu_name(args: argparse.Namespace) -> str:
    """What the GPU calls itself, empty for the CPU. Raises: UsageError, DeviceError."""
    if not on_gpu(args):
        return ""
    from yakvrt.cuda.device import Device

    with Device(gpu_number(args.device) or 0) as device:
        return str(device.name)


def chosen_device(args: argparse.Namespace) -> Device:
    """The device to plan for. Raises: UsageError, DeviceError."""
    if on_gpu(args):
        return open_gpu(gpu_number(args.device) or 0, args.cubins, args.kv_device)
    from yakvrt.cpu_device import CpuDevice

    return CpuDevice(threads_of(args), **machine_keywords(args))


def threads_of(args: argparse.Namespace) -> int | None:
    """-t, None for as many as suit the machine."""
    return args.threads if args.threads and args.threads > 0 else None


def device_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags mean to yakvrt.load(). Raises: UsageError."""
    if not on_gpu(args):
        return {"device": args.device}
    return {"device": args.device, "cubins": args.cubins, "kv_device": args.kv_device}
