"""All CUDA kernels compile without a GPU, for three architectures, into the code they promise."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from yakvrt.cuda import compilers
from yakvrt.cuda.architecture import architectures
from yakvrt.cuda.compile import compile_cubins, make_ptx, read_resources
from yakvrt.cuda.compilers import cache_path, compile_missing
from yakvrt.cuda.cubin import Cubin, load_cubin, read_cubin, write_cubin
from yakvrt.cuda.disassembly import count_instructions, machine_code
from yakvrt.cuda.kernel_list import all_kernels
from yakvrt.cuda.resource_report import occupancy, report_row
from yakvrt.cuda_kernels import main
from yakvrt.kernel_build.spec import kernel

ROOT = Path(__file__).parent.parent
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a")
SPEC = kernel("rms_norm", "rms_norm_cuda")


@pytest.fixture(scope="session")
def cubins(alone: Callable[[str], AbstractContextManager[None]]) -> dict[str, list[Cubin]]:
    with alone("cubins"):
        return compile_missing({arch: all_kernels(arch) for arch in ARCHITECTURES}, cache_path())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_keeps_to_registers_and_its_promised_instructions(
    cubins: dict[str, list[Cubin]], arch: str
) -> None:
    assert [cubin.manifest.symbol for cubin in cubins[arch]] == [spec.symbol for spec in all_kernels(arch)]
    for cubin in cubins[arch]:
        row = report_row(cubin.manifest)
        name = f"{row['name']} for {arch}"
        assert row["stack_bytes"] == row["spill_bytes"] == 0, name
        assert 0 < row["registers"] <= 255, name
        assert 0 < row["occupancy"] <= 1, name
        instructions = cubin.manifest.instructions
        assert instructions, name
        for promised in cubin.manifest.opcodes:
            assert any(found.startswith(promised) for found in instructions), f"{name} holds no {promised}"


def test_float64_is_refused() -> None:
    from yakvrt.cuda import device_ops as g
    from yakvrt.kernels.cuda_kernel import CudaKernel

    def doubled(out: Any) -> None:
        out[0] = out[0] * 0.1

    ptx = make_ptx(CudaKernel(doubled, "f32*", 32), "doubled")
    assert ".f64" in ptx
    assert ".entry doubled(" in ptx

    class Spec:
        symbol = "doubled"

        def build(self, given: object) -> CudaKernel:
            assert given is g
            return CudaKernel(doubled, "f32*", 32)

    with pytest.raises(RuntimeError, match="doubled computes in float64: wrap its constants"):
        list(compile_cubins(Spec(), ["sm_80"]))  # type: ignore[arg-type]


def test_the_manifest_has_what_a_launch_takes(cubins: dict[str, list[Cubin]]) -> None:
    manifest = next(c.manifest for c in cubins["sm_90a"] if c.manifest.symbol == "rms_norm")
    assert manifest.parameters["eps"] == "f32"
    assert list(manifest.parameters)[:2] == ["out", "out_stride"]
    assert (manifest.threads, manifest.shared_bytes, manifest.arch) == (256, 0, "sm_90a")


def test_a_second_build_compiles_nothing_and_damage_is_mended(tmp_path: Path) -> None:
    compiled: list[str] = []

    def build() -> Cubin:
        (cubin,) = compile_missing({"sm_80": [SPEC]}, tmp_path, lambda _, __, s: compiled.append(s))["sm_80"]
        return cubin

    first = build()
    assert build() == first
    assert compiled == ["rms_norm"]
    for name, damage in (("rms_norm.json", b"{}"), ("rms_norm.json", b"["), ("rms_norm.cubin", b"\x7fELF")):
        write_cubin(tmp_path / "sm_80", first)
        (tmp_path / "sm_80" / name).write_bytes(damage)
        assert read_cubin(tmp_path / "sm_80", "rms_norm") is None
    assert build().code[:4] == b"\x7fELF"
    assert compiled == ["rms_norm"] * 2
    stale = Cubin(dataclasses.replace(first.manifest, sources="older"), first.code)
    write_cubin(tmp_path / "sm_80", stale)
    build()
    assert compiled == ["rms_norm"] * 3


def test_processes_that_build_at_once_leave_whole_cubins(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from yakvrt.cuda.compilers import compile_missing
from yakvrt.kernel_build.spec import kernel
compile_missing({{"sm_80": [kernel("rms_norm", "rms_norm_cuda")]}}, Path({str(tmp_path)!r}))
"""
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(3)]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    assert load_cubin(tmp_path, SPEC, "sm_80").code[:4] == b"\x7fELF"
    assert sorted(path.name for path in (tmp_path / "sm_80").iterdir()) == ["rms_norm.cubin", "rms_norm.json"]


def test_instructions_of_many_kernels_are_told_apart(cubins: dict[str, list[Cubin]]) -> None:
    some = cubins["sm_90a"][:3]
    together = count_instructions([cubin.code for cubin in some], "sm_90a")
    alone = [count_instructions([cubin.code], "sm_90a") for cubin in some]
    assert together == [counts[0] for counts in alone if counts]
    assert together == [cubin.manifest.instructions for cubin in some]
    for cubin, counts in zip(some, together or [], strict=True):
        assert 16 * sum(counts.values()) == len(machine_code(cubin.code))


def test_cubins_of_another_version_or_architecture_are_refused(
    tmp_path: Path, cubins: dict[str, list[Cubin]]
) -> None:
    remedy = f"run python -m yakvrt kernels build --arch sm_90a -o {tmp_path}"
    place = tmp_path / "sm_90a"
    with pytest.raises(ValueError, match=f"no whole cubin of the kernel rms_norm: {remedy}"):
        load_cubin(tmp_path, SPEC, "sm_90a")
    place.mkdir()
    whole = next(c for c in cubins["sm_90a"] if c.manifest.symbol == "rms_norm")
    write_cubin(place, whole)
    assert load_cubin(tmp_path, SPEC, "sm_90a") == whole
    write_cubin(place, Cubin(dataclasses.replace(whole.manifest, arch="sm_80"), whole.code))
    with pytest.raises(ValueError, match=f"a cubin for sm_80: {remedy}"):
        load_cubin(tmp_path, SPEC, "sm_90a")
    write_cubin(place, Cubin(dataclasses.replace(whole.manifest, sources="older"), whole.code))
    with pytest.raises(ValueError, match=f"of another version of yakvrt: {remedy}"):
        load_cubin(tmp_path, SPEC, "sm_90a")


def test_build_and_report(
    tmp_path: Path, cubins: dict[str, list[Cubin]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sm_90a").mkdir()
    for cubin in cubins["sm_90a"][1:]:  # what is there already is not compiled again
        write_cubin(tmp_path / "sm_90a", cubin)
    assert main(["build", "--arch", "sm_90a", "-o", str(tmp_path)]) == 0
    n_kernels = len(all_kernels("sm_90a"))
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'sm_90a'}: {n_kernels} cubins, ")
    assert main(["report", "--json", "-o", str(tmp_path), "--arch", "sm_90a"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [spec.symbol for spec in all_kernels("sm_90a")]
    assert rows[0]["opcodes"]["LDG.E.128"] >= 1
    assert rows[0]["work"]["floor_ns"] == pytest.approx(8 / 4800)
    assert main(["report", "-o", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "rms_norm  " in table
    assert "LDG.E.128" in table


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["build", "--arch", "sm_75", "-o", "DIR"], 2, "no architecture 'sm_75': choose among sm_80, "),
        (["build", "--arch", "sm_80"], 2, "add -o DIR"),
        (["build", "--arch", "sm_80", "-o", "/proc/cubins"], 1, "choose a writable directory"),
        (["build", "--arch", "sm_80", "-o", "/dev/null/cubins"], 1, "choose a writable directory"),
        (["report", "-o", "DIR"], 1, "run python -m yakvrt kernels build --arch sm_90a -o "),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str], code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path) if word == "DIR" else word for word in arguments]) == code
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1


def test_missing_compilers_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compilers, "PACKAGES", ("numpy", "no-such-compiler"))
    assert main(["build", "--arch", "sm_80", "-o", str(tmp_path)]) == 1
    assert "takes no-such-compiler: run pip install 'yakvrt[cuda]'" in capsys.readouterr().err


def test_cubins_are_read_and_reported_on_without_a_compiler(
    tmp_path: Path, cubins: dict[str, list[Cubin]]
) -> None:
    """What a deployment has: numpy, the package and the cubins."""
    (tmp_path / "sm_90a").mkdir()
    for cubin in cubins["sm_90a"]:
        write_cubin(tmp_path / "sm_90a", cubin)
    code = f"""
import sys
for name in ("numba", "llvmlite", "numba_cuda"):
    sys.modules[name] = None
from pathlib import Path
from yakvrt.cuda.cubin import load_cubin
from yakvrt.cuda.kernel_list import all_kernels
loaded = [load_cubin(Path({str(tmp_path)!r}), spec, "sm_90a") for spec in all_kernels("sm_90a")]
print(sum(len(cubin.code) > 1000 for cubin in loaded))
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(shown.stdout) == len(all_kernels("sm_90a"))


def test_occupancy_of_an_h200() -> None:
    assert occupancy(256, 32, 0) == 1
    assert occupancy(1024, 64, 0) == 0.5  # 65536 registers are those of one block
    assert occupancy(1024, 65, 0) == 0  # 72 a thread: such a block cannot start
    assert occupancy(128, 32, 100 * 1024) == 2 * 128 / 2048
    assert occupancy(32, 16, 0) == 0.5  # 32 blocks
    assert occupancy(128, 33, 0) == 12 * 128 / 2048


def test_the_assemblers_figures_are_read() -> None:
    log = """ptxas info    : Function properties for k
ptxas         .     16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 23 registers, used 1 barriers, 32 bytes smem, 384 bytes cmem[0]"""
    assert dataclasses.astuple(read_resources(log)) == (23, 32, 16, 12)
    with pytest.raises(RuntimeError, match="did not tell the registers"):
        read_resources("ptxas info")
    told = "Potential Performance Loss: wgmma.mma_async instructions are serialized due to"
    with pytest.raises(RuntimeError, match="keeps wgmma from running beside other work"):
        read_resources(f"{told}\n{log}")


def test_architectures() -> None:
    assert architectures("sm_90a, sm_80,sm_90a") == ["sm_90a", "sm_80"]
