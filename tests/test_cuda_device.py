"""Devices, memory, streams and launches on the fake driver; what is refused, and how."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from cuda_kernel import count
from fake_cubins import write_fake_cubin
from fake_gpu import FakeGpu

from yakvrt.cuda.architecture import architectures_for
from yakvrt.cuda.arguments import Argument, Arguments
from yakvrt.cuda.device import Device
from yakvrt.cuda.device_kernels import built_kernels
from yakvrt.cuda.driver import DeviceError
from yakvrt.cuda.memory import DeviceMemory, PinnedMemory
from yakvrt.cuda.stream import Event, Stream
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.rms_norm import rms_norm_ref

ROOT = Path(__file__).parent.parent
NORM = kernel("rms_norm", "rms_norm_cuda")
SCORE = kernel("higgs_score_cuda", "higgs_score_cuda", "2bit", 64, 4)


def in_memory(array: np.ndarray, stream: Stream) -> DeviceMemory:
    memory = DeviceMemory(array.nbytes)
    memory.upload(array, stream)
    return memory


def test_arguments_lie_as_the_driver_reads_them() -> None:
    parameters = {"a": "f32*", "n": "i32", "big": "i64", "x": "f32", "b": "u8", "none": "u32*"}
    packed = Arguments(parameters, (0x7F0012345678, -2, 1 << 40, 1.5, np.uint8(200), None))
    places = np.ctypeslib.as_array((ctypes.c_uint64 * 6).from_address(packed.table))

    def at(i: int, n: int) -> bytes:
        return ctypes.string_at(int(places[i]), n)

    assert at(0, 8) == (0x7F0012345678).to_bytes(8, "little")
    assert at(1, 4) == b"\xfe\xff\xff\xff"
    assert at(2, 8) == (1 << 40).to_bytes(8, "little")
    assert at(3, 4) == np.float32(1.5).tobytes()
    assert at(4, 1) == b"\xc8"
    assert at(5, 8) == bytes(8)
    packed.put((1, 2, 3, float("-inf"), 0, 4096))
    assert at(3, 4) == np.float32(-np.inf).tobytes()
    assert at(5, 2) == b"\x00\x10"


@pytest.mark.parametrize(
    ("word", "value", "told"),
    [
        ("i32", 1 << 31, "n = 2147483648 is no i32"),
        ("i32", 0.5, r"n = 0\.5 is no i32"),
        ("u8", -1, "n = -1 is no u8"),
        ("i64*", 1.0, "n is a pointer"),
        ("f32", None, r"n is a number \(f32\), not NoneType"),
    ],
)
def test_values_that_a_parameter_does_not_take(word: str, value: Argument, told: str) -> None:
    with pytest.raises((TypeError, ValueError), match=told):
        Arguments({"n": word}, (value,))
    with pytest.raises(TypeError, match="2 arguments for the parameters n"):
        Arguments({"n": word}, (1, 2))


def test_a_launch_from_a_directory_of_cubins(gpu: FakeGpu, tmp_path: Path) -> None:
    write_fake_cubin(tmp_path, NORM)
    x, weight = np.random.default_rng(1).standard_normal((2, 3, 64)).astype(np.float32)
    weight = np.ascontiguousarray(weight[0])
    out = np.empty_like(x)
    with Device() as device:
        assert (device.name, device.capability) == ("Fake GPU", (9, 0))
        stream, kernels = Stream(), built_kernels(device, tmp_path)
        norm = kernels.load(NORM)
        assert kernels.load(NORM) is norm
        result, rows = DeviceMemory(x.nbytes), count(2)
        given = [in_memory(array, stream) for array in (x, weight, rows)]
        arguments = norm.arguments(result, 64, given[0], 64, given[1], 64, 1e-5, given[2])
        norm.launch(stream, 3, arguments)
        result.download(out, stream)
        stream.synchronise()
        for memory in (result, *given):
            memory.free()
        kernels.close()
    np.testing.assert_allclose(out[:2], rms_norm_ref(x[:2], weight, 1e-5), rtol=2e-6, atol=1e-6)
    assert np.isnan(out[2]).all()
    assert not gpu.device


def test_a_kernel_reads_pinned_memory_where_it_lies(gpu: FakeGpu, tmp_path: Path) -> None:
    write_fake_cubin(tmp_path, NORM)
    x = np.random.default_rng(2).standard_normal((1, 32)).astype(np.float32)
    with Device() as device:
        stream, norm = Stream(), built_kernels(device, tmp_path).load(NORM)
        pinned = PinnedMemory(3 * x.nbytes)
        rows = pinned.array.view(np.float32).reshape(3, 32)
        rows[0], rows[1] = x[0], 1
        given = in_memory(count(1), stream)
        place = [pinned.address + i * x.nbytes for i in range(3)]
        norm.launch(stream, 1, norm.arguments(place[2], 32, place[0], 32, place[1], 32, 1e-5, given))
        stream.synchronise()
        np.testing.assert_allclose(rows[2:], rms_norm_ref(x, np.ones(32, np.float32), 1e-5), rtol=2e-6)
        pinned.free()


def test_shared_memory_beyond_48_kb_is_asked_for(gpu: FakeGpu, tmp_path: Path) -> None:
    write_fake_cubin(tmp_path, SCORE)
    with Device() as device:
        built_kernels(device, tmp_path).load(SCORE)
        assert "cuFuncSetAttribute" in gpu.calls
    gpu.shared_bytes = 48 * 1024
    with (
        Device() as device,
        pytest.raises(DeviceError, match="65536 bytes of shared memory; a block may take 49"),
    ):
        built_kernels(device, tmp_path).load(SCORE)


def test_streams_wait_for_each_other_only_where_told(gpu: FakeGpu) -> None:
    with Device():
        first, second = Stream(), Stream()
        x, out = np.arange(4, dtype=np.float32), np.empty(4, np.float32)
        memory = in_memory(x, first)
        memory.download(out, second)
        second.synchronise()
        assert np.isnan(out).all()
        second.wait(first.record(Event()))
        memory.download(out, second)
        assert np.isnan(out).all()
        second.synchronise()
        np.testing.assert_array_equal(out, x)


def test_times_between_events(gpu: FakeGpu) -> None:
    with Device():
        stream, start, end = Stream(), Event(), Event()
        stream.record(start)
        stream.record(end)
        with pytest.raises(DeviceError, match="cuEventElapsedTime: CUDA_ERROR_NOT_READY"):
            end.ms_since(start)
        end.synchronise()
        assert 0 <= end.ms_since(start) < 1000


def test_copies_that_do_not_fit(gpu: FakeGpu) -> None:
    with Device():
        stream, memory = Stream(), DeviceMemory(8)
        with pytest.raises(ValueError, match="12 bytes from byte 0 on do not fit into 8"):
            memory.upload(np.zeros(3, np.float32), stream)
        with pytest.raises(ValueError, match="8 bytes from byte 4 on do not fit into 8"):
            memory.download(np.zeros(2, np.float32), stream, 4)
        with pytest.raises(ValueError, match="that is not contiguous"):
            memory.upload(np.zeros((2, 2), np.uint8)[:, :1], stream)
        with pytest.raises(ValueError, match="16 bytes from byte 0 on do not fit into 8"):
            memory.copy_from(DeviceMemory(16).address, 16, stream)


@pytest.mark.parametrize(
    ("changes", "faults", "told"),
    [
        ({"n_devices": 0}, {}, "there is no NVIDIA GPU that this process may use"),
        ({}, {"cuInit": 803}, "restart the machine after updating a driver"),
        ({}, {"cuDevicePrimaryCtxRetain": 46}, "in exclusive use by another process"),
        ({}, {"cuCtxSetCurrent": 201}, "refused cuCtxSetCurrent: CUDA_ERROR_INVALID_CONTEXT"),
    ],
)
def test_a_device_that_cannot_be_opened(
    gpu: FakeGpu, changes: dict[str, int], faults: dict[str, int], told: str
) -> None:
    for name, value in changes.items():
        setattr(gpu, name, value)
    gpu.faults = faults
    with pytest.raises(DeviceError, match=told):
        Device()


def test_an_error_newer_than_the_bindings(gpu: FakeGpu) -> None:
    gpu.faults = {"cuMemAlloc": 5555}
    with Device(), pytest.raises(DeviceError, match="refused cuMemAlloc with an unknown error"):
        DeviceMemory(8)


def test_a_stream_takes_its_own_context_into_every_thread(gpu: FakeGpu) -> None:
    """Also into one that has the number of an ended one, and back from another GPU's."""
    gpu.n_devices = 2
    with Device(0):
        first = Stream()
        own = gpu.thread.context
        with Device(1):
            assert gpu.thread.context != own
            first.enter()
            assert gpu.thread.context == own
            found = []

            def work() -> None:
                first.enter()
                DeviceMemory(8).free()
                found.append(gpu.thread.context)

            for _ in range(20):
                thread = Thread(target=work)
                thread.start()
                thread.join()
            assert found == [own] * 20


def test_there_is_no_second_gpu(gpu: FakeGpu) -> None:
    with pytest.raises(DeviceError, match="there is no GPU 1: this process may use 1, from 0 on"):
        Device(1)


def test_memory_that_is_not_there(gpu: FakeGpu) -> None:
    gpu.memory_bytes = 3_000_000
    with Device():
        memory = DeviceMemory(1_000_000)
        with pytest.raises(DeviceError, match="5 MB of device memory were asked for and 2 MB are free"):
            DeviceMemory(5_000_000)
        gpu.faults = {"cuMemHostAlloc": 2}
        with pytest.raises(DeviceError, match="7 MB of host memory cannot be pinned"):
            PinnedMemory(7_000_000)
        memory.free()
        memory.free()


def test_cubins_that_do_not_fit_the_gpu(gpu: FakeGpu, tmp_path: Path) -> None:
    gpu.capability = (8, 6)
    with Device() as device:
        with pytest.raises(
            DeviceError, match=r"no cubins for Fake GPU \(compute capability 8\.6\).*--arch sm_86"
        ):
            built_kernels(device, tmp_path)
        write_fake_cubin(tmp_path, NORM, "sm_80", made_by="14.2.1")
        kernels = built_kernels(device, tmp_path)
        assert kernels.arch == "sm_80"
        with pytest.raises(DeviceError, match=r"knows CUDA 13\.0, and the cubins are of CUDA 14: update"):
            kernels.load(NORM)


def test_the_architectures_of_gpus() -> None:
    assert architectures_for((8, 0)) == ["sm_80"]
    assert architectures_for((8, 9)) == ["sm_89", "sm_86", "sm_80"]
    assert architectures_for((9, 0)) == ["sm_90a"]
    assert architectures_for((10, 3)) == architectures_for((7, 5)) == []


def test_a_kernel_that_fails_is_told_of(gpu: FakeGpu, tmp_path: Path) -> None:
    write_fake_cubin(tmp_path, NORM)
    with Device() as device:
        stream, norm = Stream(), built_kernels(device, tmp_path).load(NORM)
        memory = DeviceMemory(8)
        rows = in_memory(count(1), stream)
        norm.launch(stream, 1, norm.arguments(memory, 32, memory, 32, memory, 32, 1e-5, rows))
        with pytest.raises(DeviceError, match="a kernel failed; the GPU is lost to this process"):
            stream.synchronise()
    assert "which has 2" in str(gpu.failures.pop())


def test_pointers_that_wide_loads_cannot_follow_are_found(gpu: FakeGpu, tmp_path: Path) -> None:
    write_fake_cubin(tmp_path, NORM)
    with Device() as device:
        stream, norm = Stream(), built_kernels(device, tmp_path).load(NORM)
        memory, one = DeviceMemory(1024), in_memory(count(1), stream)
        address = memory.address + 8
        norm.launch(stream, 1, norm.arguments(memory, 4, address, 4, memory, 4, 1e-5, one))
        with pytest.raises(DeviceError, match="a kernel failed"):
            stream.synchronise()
    assert "reaches 16 bytes at byte 8 of x" in str(gpu.failures.pop())


def run_python(statement: str) -> str:
    shown = subprocess.run(
        [sys.executable, "-c", statement], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return shown.stdout.strip()


def test_without_a_driver() -> None:
    """In a process that has no fake one; where there is a real one this is not to be seen."""
    opened = "from yakvrt.cuda.device import Device\nfrom yakvrt.cuda.driver import DeviceError\n"
    shown = run_python(
        opened + "try:\n Device().close()\n print('open')\nexcept DeviceError as error:\n print(error)"
    )
    assert shown == "open" or shown.startswith("there is no NVIDIA ")


def test_launching_loads_no_compiler(tmp_path: Path) -> None:
    write_fake_cubin(tmp_path, NORM)
    statement = f"""
import sys
from pathlib import Path
from yakvrt.cuda import cubin, device, driver, kernel_list, loaded_kernel, memory, stream
assert cubin.load_cubin(Path({str(tmp_path)!r}), kernel_list.all_kernels("sm_90a")[0], "sm_90a")
try:
    device.Device()
except driver.DeviceError:
    pass
print(*{{name.split(".")[0] for name in sys.modules}})
"""
    assert not {"numba", "llvmlite", "ml_dtypes", "torch"} & set(run_python(statement).split())
