"""Cases of CUDA kernels through the device layer on the fake driver, and the program of scripts/test-gpu."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "bench"))

import bench_gpu
import gpu_questions
import gpu_steps
import tiny_device_model
from cuda_cases import attention, elementwise, matmul, moe, real_cases, scores, small_cases, weights
from cuda_cases.arrays import poisoned
from cuda_cases.case import Case, Mismatch, Sized, compare, untouched
from cuda_cases.matmul import round_activations
from cuda_kernel import solve
from fake_gpu import FakeGpu

from yakvrt.cuda import pinned_pool
from yakvrt.cuda.kernel_list import all_kernels

ROOT = Path(__file__).parent.parent
SMALL = small_cases()


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """bench/bench_gpu.py, asking the emulator for little."""
    monkeypatch.setattr(gpu_steps, "COPIED_BYTES", 1 << 16)
    monkeypatch.setattr(gpu_questions, "LAUNCHES", 2)
    monkeypatch.setattr(gpu_questions, "GRIDS", (1, 3))
    return bench_gpu


def test_every_kernel_has_a_case() -> None:
    launched = {launch.kernel.builder for sized in SMALL for launch in sized.make().launches}
    assert launched == {spec.builder for spec in all_kernels("sm_90a")}


@pytest.mark.parametrize("sized", SMALL, ids=lambda sized: sized.name)
def test_cases_are_right_on_the_fake_driver(gpu: FakeGpu, fake_cubins: Path, sized: Sized) -> None:
    *_, last = gpu_steps.events(fake_cubins, 0, gpu_steps.case_steps([sized], quick=True), 0)
    if gpu.failures:
        raise gpu.failures[0]
    assert 0 <= last["facts"]["of_allowed"] <= 1
    assert not gpu.device
    assert not gpu.pinned


REPEATING = {
    "decode matmul": partial(matmul.decode_matmul, "Q8_0", 1, 1, 2, 18, 64),
    "prefill matmul": partial(matmul.prefill_matmul, "Q4_0", 32, 3, 18, 64),
    "experts": partial(moe.grouped_matmul, "BF16", 8, False, 5, 4, 2, 6, 64),
    "embed": partial(elementwise.embed_planes, "Q8_0", 3, 64, 18),
    "decode attention": partial(attention.decode_attention, 2, 64, "bf16", (40, 9), 1),
    "ring attention": partial(attention.decode_attention, 2, 64, "bf16", (200, 9), 1, 1, (5, 64)),
    "prefill attention": partial(attention.prefill_attention, 1, 64, "f16", 20, 4),
    "plain attention": partial(attention.plain_attention, 2, 16, "f32", (40, 9)),
    "score": partial(scores.score, "2bit", 64, 2, True, False, [200, 64, 150, 1, 99, 99]),
}


@pytest.mark.parametrize("name", REPEATING)
def test_inputs_that_repeat_rows(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As those of real sizes do."""
    monkeypatch.setattr(weights, "DISTINCT", 7)
    monkeypatch.setattr(attention, "DISTINCT", 7)
    monkeypatch.setattr(scores, "DISTINCT", 2)
    solve(REPEATING[name]())


def test_models_are_steps_of_the_program(
    gpu: FakeGpu, fake_cubins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(tiny_device_model, "rounded_steps", lambda backend, *how: asked.append(how) or 0.5)
    *_, last = gpu_steps.events(fake_cubins, 0, gpu_steps.model_steps()[2:3], 0)
    assert last["facts"] == {"of_allowed": 0.5}
    assert asked == [("llama3", 12)]


def test_cases_for_other_gpus_are_left_out(gpu: FakeGpu, fake_cubins: Path) -> None:
    other = Sized("other", wrong, "sm_80")
    *_, last = gpu_steps.events(fake_cubins, 0, gpu_steps.case_steps([other], quick=True), 0)
    assert last["facts"] == {"kernels_for": "sm_80"}


def test_pinning_is_a_step_of_the_program(
    gpu: FakeGpu, fake_cubins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned_pool, "CHUNK_BYTES", 1 << 20)
    *_, last = gpu_steps.events(fake_cubins, 0, gpu_steps.model_steps()[-1:], 0)
    facts = last["facts"]
    assert (facts["one_address"], facts["gb"]) == (True, 0.0)
    assert "INVALID_VALUE" in facts["copies_across_chunks"]
    assert not gpu.held


def wrong() -> Case:
    """A case whose truth is another."""
    case = round_activations(1, 64)
    return replace(case, check=lambda: compare("one", np.zeros(1), np.ones(1), atol=0.5))


def beyond() -> Case:
    """A case that reaches beyond its memory."""
    case = round_activations(1, 64)
    (launch,) = case.launches
    return replace(
        case, launches=[replace(launch, arguments=(*launch.arguments[:2], 64000, *launch.arguments[3:]))]
    )


def test_the_program_goes_on_times_and_writes(
    gpu: FakeGpu, program: ModuleType, fake_cubins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [Sized("bad", wrong), Sized("good", partial(round_activations, 1, 64)), Sized("lost", beyond)]
    steps = gpu_steps.questions(quick=False) + gpu_steps.case_steps([*cases, cases[1]], quick=False)
    output = tmp_path / "result.json"
    names = [*(step.name for step in steps[:-1]), "last"]
    assert program.report(gpu_steps.events(fake_cubins, 0, steps, 0), names, output) == 1
    shown = capsys.readouterr().out
    result = json.loads(output.read_text())
    assert len(result["steps"]) == 6, (shown, gpu.failures)
    loads, ceilings, launch, bad, good, lost = result["steps"]
    assert loads["not_loaded"] == {}
    assert ceilings["ceilings"]["device copy"] > 0
    assert ceilings["ceilings"]["bf16 product"] is None
    assert launch["launch"]["host_us"] > 0
    assert "one: 1 of 1 are off" in bad["error"]
    assert good["launches"][0]["us"] > 0
    assert good["launches"][0]["of_limit"] is not None
    assert "the GPU is lost to this process" in lost["error"]
    assert result["not_reached"] == ["last"]
    assert "FAILED bad\nFAILED lost\nnot reached: last\n" in shown
    assert "bf16 product: no cuBLAS here" in shown


CHILD = """
import json, sys, time
first = int(sys.argv[-1])
print(json.dumps({"device": {}}), flush=True)
for step in range(first, 4):
    print(json.dumps({"step": step}), flush=True)
    if step == 1:
        sys.exit(9)
    if step == 2:
        time.sleep(60)
    print(json.dumps({"step": step, "facts": {}}), flush=True)
"""


def test_steps_that_end_or_hold_the_process_do_not_stop_the_others(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "STALL_S", 1)
    command = [sys.executable, "-c", CHILD]
    told = [event for event in program.conduct(command, [], 4, 60) if "facts" in event or "error" in event]
    assert [event["step"] for event in told] == [0, 1, 2, 3]
    assert [event.get("error") for event in told] == [None, "the process ended", "no answer for 1 s", None]
    told = [event for event in program.conduct(command, [], 4, 0.5) if "facts" in event or "error" in event]
    assert [event["step"] for event in told][:1] in ([0], [])


def test_a_gpu_that_is_gone_ends_the_run_with_what_was_measured(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = CHILD.replace("first = int(sys.argv[-1])", "first = int(sys.argv[-1])\nif first: sys.exit(3)")
    told = program.conduct([sys.executable, "-c", child], [], 4, 60)
    output = tmp_path / "result.json"
    assert program.report(told, ["a", "b", "c", "d"], output) == 1
    result = json.loads(output.read_text())
    assert [(row["name"], row["error"]) for row in result["steps"]] == [
        ("a", None),
        ("b", "the process ended"),
    ]
    assert result["not_reached"] == ["c", "d"]
    assert "ended before its first step" in capsys.readouterr().err


def test_what_is_off_is_told() -> None:
    expected = np.arange(6.0).reshape(2, 3)
    found = expected.copy()
    found[1, 2] += 0.25
    assert compare("x", found, expected, atol=0.5) == 0.5
    with pytest.raises(Mismatch, match=r"x: 1 of 6 are off, most \[1, 2\]: 5\.25 for 5\.0, 2\.5 times"):
        compare("x", found, expected, atol=0.1)
    found[0, 0] = np.nan
    with pytest.raises(Mismatch, match="inf times"):
        compare("x", found, expected, atol=1)
    with pytest.raises(Mismatch, match=r"n: 1 of 2 differ, first \[1\]: 3 for 2"):
        compare("n", np.array([1, 3]), np.array([1, 2]))
    for dtype in (np.float32, np.int32, np.uint16):
        array = poisoned(4, dtype=dtype)
        assert untouched("a", array) == 0
        array[2] = 1
        with pytest.raises(Mismatch, match="a: 1 numbers were written that must not be"):
            untouched("a", array)


def test_the_script_says_what_is_missing() -> None:
    listed = subprocess.run(
        [ROOT / "scripts" / "test-gpu", "--list"], capture_output=True, text=True, check=True
    )
    names = listed.stdout.splitlines()
    assert names[:3] == ["all cubins load", "ceilings", "launch cost"]
    assert names[3 + len(gpu_steps.model_steps()) :] == [case.name for case in real_cases()]
    assert len(set(names)) == len(names)
    run = subprocess.run([ROOT / "scripts" / "test-gpu", "--only", "nothing"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "test-gpu: no case or model holds 'nothing': --list prints them\n"


def test_the_program_needs_no_compiler() -> None:
    statement = "import sys\nsys.path[:0] = ['bench', 'tests']\nimport bench_gpu, cuda_cases\n"
    statement += "[case.make() for case in cuda_cases.small_cases()]\n"
    statement += "print(*{name.split('.')[0] for name in sys.modules})"
    shown = subprocess.run(
        [sys.executable, "-c", statement], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"numba", "llvmlite", "ml_dtypes", "gguf", "greenlet"} & set(shown.stdout.split())
