"""`--device cuda`: whole tiny models through the engine, on the fake driver and the emulator."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu
from golden_values import tiny_cases, tiny_dir
from kernel_team import SCORE_ROUNDING
from tiny_device_model import WIDE_CONFIG, slots_together

import yakvrt
from yakvrt import cuda_device, generate, memory_plan, plan
from yakvrt.cuda import record_yakv
from yakvrt.cuda.driver import DeviceError
from yakvrt.kvcache import tail_fit, yakv


@pytest.fixture
def wide(tmp_path: Path) -> str:
    """A model whose heads YAKV takes; its weights are random."""
    (tmp_path / "config.json").write_text(json.dumps(WIDE_CONFIG))
    return str(tmp_path)


@pytest.mark.parametrize(("family", "batches"), [("llama3", (4, 3)), ("qwen3-moe", (2,))])
def test_tokens_are_the_golden_ones(
    family: str, batches: tuple[int, ...], gpu: FakeGpu, fake_cubins: Path
) -> None:
    """A prompt in two chunks, then slots of different lengths decode together, a second time from the graph:
    each holds a beginning of the prompt, whose logits are golden at every position.
    """
    case = tiny_cases(family)[1]
    with yakvrt.load(
        str(tiny_dir(family)),
        device="cuda",
        cubins=fake_cubins,
        ctx_size=32,
        cache_type="f32",
        ubatch_size=4,
        n_slots=batches[0],
    ) as engine:
        sessions = [engine.session() for _ in range(batches[0])]
        sequence = engine.generate(
            case.ids, temperature=0, max_tokens=1, ignore_eos=True, session=sessions[0]
        )
        list(sequence)
        assert sequence.ids == case.greedy_ids[:1]
        for n, session in zip((3, 5, 4), sessions[1:], strict=False):
            session.copy_from(sessions[0], n)
        slots, lengths = [session.slot for session in sessions], [len(session.ids) for session in sessions]
        tokens = [*case.ids, *case.greedy_ids]
        greedy = [*case.logits.argmax(axis=1).tolist(), *case.greedy_ids[1:]]
        gpu.calls.clear()
        for i, n in enumerate(batches):
            held = [length + i for length in lengths[:n]]
            logits = engine.runner.decode(slots[:n], held, [tokens[at] for at in held])
            assert logits.argmax(axis=1).tolist() == [greedy[at] for at in held]
            assert np.abs(logits[1:] - case.logits[held[1:]]).max(initial=0) < 1e-3
        assert gpu.calls.count("cuStreamBeginCapture") == 1
        assert gpu.calls.count("cuGraphLaunch") == len(batches)
    assert not gpu.failures
    assert not gpu.held


def test_an_engine_that_nobody_closes_gives_all_back(gpu: FakeGpu, fake_cubins: Path) -> None:
    how: dict[str, Any] = {"device": "cuda", "cubins": fake_cubins, "cache_type": "f32"}
    engine = yakvrt.load(str(tiny_dir("llama3")), ctx_size=32, ubatch_size=4, **how)
    with engine.session() as session:
        session.prefill([1, 2, 3])
    assert gpu.held
    del engine, session
    gc.collect()
    assert not gpu.held


def test_a_method_that_cannot_be_built_gives_all_back(gpu: FakeGpu, fake_cubins: Path) -> None:
    with pytest.raises(ValueError, match="rows of 16 numbers cannot be stored in 3 or 4 bits"):
        yakvrt.load(str(tiny_dir("llama3")), device="cuda", cubins=fake_cubins, kv="yakv", ctx_size=32)
    assert not gpu.held


def test_the_plan_names_both_memories(gpu: FakeGpu, wide: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["-m", wide, "--load-format", "dummy", "-dev", "cuda", "--kv", "yakv", "--json"]

    def record(*more: str) -> dict[str, Any]:
        assert plan.main([*flags, *more]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    def totals(*more: str) -> dict[str, int]:
        return {place["name"]: place["total_bytes"] for place in record("-c", "2000", *more)["places"]}

    on_gpu, on_host = totals("--kv-device", "gpu"), totals("--kv-device", "cpu")
    moved = on_gpu["GPU memory"] - on_host["GPU memory"]
    assert moved == on_host["host memory"] - on_gpu["host memory"] > 0
    assert totals() == on_gpu
    prompt = record("-c", "2000")["prompt_bytes"]
    assert prompt["exact rows of one layer"] == prompt["exact rows of the layer before"] > 0
    gpu.memory_bytes = on_host["GPU memory"] + moved // 2
    assert totals() == on_host
    assert not gpu.held


def test_the_plan_leaves_some_of_the_hosts_memory(
    gpu: FakeGpu, wide: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_device, "available_memory", lambda: 320 << 20)
    flags = ["-m", wide, "--load-format", "dummy", "-dev", "cuda", "--kv", "yakv", "--kv-device", "cpu"]
    assert plan.main([*flags, "-c", "2000", "--json"]) == 0
    places = json.loads(capsys.readouterr().out)["places"]
    assert places[1]["available_bytes"] == 300 << 20
    assert generate.main([*flags, "-c", "1000000", "--prompt-ids", "1", "--json"]) == 1
    assert "of host memory for its KV cache" in capsys.readouterr().err


@pytest.mark.parametrize(("ctx_size", "slot_cache"), [(347, "2"), (400, "1")])
def test_rows_for_the_host_are_pinned_while_loading(
    gpu: FakeGpu, compiled_on_demand: None, wide: str, ctx_size: int, slot_cache: str
) -> None:
    told = []
    with yakvrt.load(
        wide,
        load_format="dummy",
        device="cuda",
        kv="yakv",
        kv_args={"slot_cache": slot_cache},
        kv_device="cpu",
        ctx_size=ctx_size,
        progress=lambda *what: told.append(what),
    ):
        assert len(gpu.registered) == 1
    assert ("pinning host memory (MiB)", 0, 0) in told
    assert not gpu.held


def test_a_slot_too_short_for_codes(gpu: FakeGpu, compiled_on_demand: None, wide: str) -> None:
    found = []
    for device in ({"device": "cpu"}, {"device": "cuda", "kv_device": "cpu"}):
        how: dict[str, Any] = {"load_format": "dummy", "kv": "yakv", "ctx_size": 64, "ubatch_size": 4}
        with yakvrt.load(wide, **how, **device) as engine, engine.session() as session:
            found.append(np.array([session.prefill([1, 2, 3]), session.decode(4)]))
    assert np.abs(found[1] - found[0]).max() < 0.02 * np.abs(found[0]).max()
    assert not gpu.failures
    assert not gpu.held


@pytest.mark.parametrize(
    ("model", "flags", "told"),
    [
        ("qwen3-moe", [], "takes heads of 64, 128, 192, 256 numbers, and the model's have 32: take another"),
        ("wide", ["--kv-args", "v_bits=8"], "rows hold r3 or 4 bits of a key, 4 of a value"),
        ("wide", ["-ctk", "f32"], "YAKV's exact rows are f16 or bf16"),
        (
            "wide",
            ["--kv-device", "cpu", "--kv-args", "slot_cache=0"],
            "holds 0 of a head where a step selects",
        ),
    ],
)
def test_what_yakv_has_no_kernels_for_is_told_before_loading(
    gpu: FakeGpu, wide: str, capsys: pytest.CaptureFixture[str], model: str, flags: list[str], told: str
) -> None:
    chosen = [wide, "--load-format", "dummy"] if model == "wide" else [str(tiny_dir(model))]
    argv = ["-m", *chosen, "-dev", "cuda", "--kv", "yakv", *flags]
    assert generate.main([*argv, "--prompt-ids", "1,2", "--json"]) == 1
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1
    assert plan.main(argv) == 1
    assert told in capsys.readouterr().err
    assert not {"cuMemAlloc", "cuMemHostAlloc"} & set(gpu.calls)


def test_devices_are_listed(gpu: FakeGpu, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        generate.main(["--list-devices"])
    assert ended.value.code == 0
    assert "  CUDA0: Fake GPU (1024 MiB, 1024 MiB free)\n" in capsys.readouterr().out
    gpu.faults = {"cuDevicePrimaryCtxRetain": 46}
    with pytest.raises(SystemExit):
        generate.main(["--list-devices"])
    told = "  CUDA0: Fake GPU (1024 MiB, the GPU is in exclusive use by another process"
    assert told in capsys.readouterr().out


def test_more_experts_than_a_router_holds(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_device, "MAX_EXPERTS", 3)
    assert generate.main(["-m", str(tiny_dir("qwen3-moe")), "-dev", "cuda", "-p", "x"]) == 1
    assert "on a GPU, a layer has up to 3 experts, and the model's have 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["-dev", "cuda:3"], 1, "there is no GPU 3: this process may use 1, from 0 on"),
        (["-dev", "cuda", "--mlock"], 2, "--mlock is for the CPU, not for --device cuda"),
        (["-dev", "cuda", "--cubins", "nowhere"], 1, "nowhere is no directory"),
        (["-dev", "cuda", "-c", "2000000000"], 1, "of GPU memory for its KV cache"),
    ],
)
def test_one_sentence(
    gpu: FakeGpu,
    fake_cubins: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
    told: str,
) -> None:
    argv = ["-m", str(tiny_dir("llama3")), "--prompt-ids", "1,2", "--json", "--cubins", str(fake_cubins)]
    assert generate.main([*argv, *flags]) == code
    assert told in capsys.readouterr().err
    assert not gpu.held


def test_memory_that_runs_out_while_loading(gpu: FakeGpu, fake_cubins: Path) -> None:
    gpu.faults["cuMemAlloc"] = 2
    with pytest.raises(DeviceError, match=r"MB of device memory were asked for and .* take a smaller model"):
        yakvrt.load(str(tiny_dir("llama3")), device="cuda", cubins=fake_cubins, ctx_size=32)
    assert not gpu.held


def test_without_a_driver_nothing_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["-m", "llama3.2-3b", "-dev", "cuda", "-p", "hi"]) == 1
    assert "there is no NVIDIA" in capsys.readouterr().err


def test_an_unknown_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        generate.main(["-dev", "rocm", "-p", "hi"])
    assert ended.value.code == 2
    assert "'rocm' is not cpu, cuda or cuda:N" in capsys.readouterr().err


MOE = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.mark.parametrize(
    ("more", "kv", "budget"),
    [({}, "yakv", "0.1"), (MOE, "yakv", "0.1"), ({}, "yakv-1.5bit", "1")],
    ids=["llama", "qwen3_moe", "llama-1.5bit"],
)
def test_yakv_on_the_gpu_is_that_of_the_cpu(
    more: dict[str, Any],
    kv: str,
    budget: str,
    gpu: FakeGpu,
    compiled_on_demand: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A prompt in chunks, of which a block leaves the window and whose tail is fitted; then four slots decode
    together, three, two and one: some steps are captured, one is replayed. Rows rest in pinned memory, and
    come in two turns. With 1.5 bits all rows are selected: how a prompt's keys are rounded decides which is a
    selection's last.
    """
    monkeypatch.setattr(record_yakv, "fetch_turns", lambda n_rows, _: min(n_rows, 2))
    for module in (tail_fit, yakv):
        monkeypatch.setattr(module, "FIT_TOKENS", 1)
    (tmp_path / "config.json").write_text(json.dumps({**WIDE_CONFIG, **more}))
    prompt = [i * 37 % 64 for i in range(134)]
    how: dict[str, Any] = {
        "load_format": "dummy",
        "kv": kv,
        "kv_args": {"min_seqlen_to_prune": "0", "sparse_budget": budget},
        "ctx_size": 192,
        "ubatch_size": 80,
        "n_slots": 4,
    }

    tokens: list[list[int]] = []

    def run(**device: str) -> np.ndarray:
        with yakvrt.load(str(tmp_path), **how, **device) as engine:
            logits, kv_figures = slots_together(engine, prompt, (133, 132, 134), (4, 3, 2, 1), tokens)
        assert kv_figures["steps"] == 10
        assert kv_figures["rows_read"] > 0
        return logits

    cpu, cuda = run(device="cpu"), run(device="cuda", kv_device="cpu")
    # where the CPU scores by tables (codeword_tables.py) it may select another row for the last
    far = {"int8": 0.02, "tables": 0.1}[SCORE_ROUNDING] * np.abs(cpu).max()
    assert np.abs(cuda - cpu).max() < far
    assert np.median(np.abs(cuda - cpu)) < 0.005 * np.abs(cpu).max()
    assert cuda.argmax(axis=1).tolist() == cpu.argmax(axis=1).tolist()
    assert not gpu.failures
    assert not gpu.held


def test_rows_do_not_go_to_a_host_that_is_short(
    gpu: FakeGpu, wide: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the queries of a prompt, which the host holds whatever lies there."""
    left = 128 << 10  # bytes beside what is fixed
    free = (memory_plan.FIXED_BYTES + left) * 16 // 15
    monkeypatch.setattr(cuda_device, "available_memory", lambda: free)
    found = []
    for where in ("auto", "gpu", "cpu"):
        flags = ["-m", wide, "--load-format", "dummy", "-dev", "cuda", "--kv", "lrqk"]
        assert plan.main([*flags, "--kv-device", where, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    auto, on_gpu, on_host = (record["n_tokens"] for record in found)
    assert auto == on_gpu > on_host
    queries = found[0]["prompt_bytes"]["queries"]
    assert queries <= left <= queries * (auto + 16) // auto
