"""`--device cuda`: whole tiny models through the engine, on the fake driver and the emulator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cubins import write_fake_cubin
from fake_gpu import FakeGpu
from golden_values import tiny_cases, tiny_dir

import yakvrt
from yakvrt import generate, plan
from yakvrt.cuda import device_kernels
from yakvrt.cuda.driver import DeviceError
from yakvrt.kernel_build.spec import KernelSpec
from yakvrt.kvcache import tail_fit, yakv


@pytest.mark.parametrize("family", ["llama3", "qwen3-moe"])
def test_greedy_tokens_are_the_golden_ones(family: str, gpu: FakeGpu, fake_cubins: Path) -> None:
    case = tiny_cases(family)[1]
    with yakvrt.load(
        str(tiny_dir(family)),
        device="cuda",
        cubins=fake_cubins,
        ctx_size=32,
        cache_type="f32",
        ubatch_size=4,  # a prompt in two chunks
    ) as engine:
        sequence = engine.generate(case.ids, temperature=0, max_tokens=2, ignore_eos=True)
        list(sequence)
        assert sequence.ids == case.greedy_ids[:2]
    assert not gpu.failures
    assert not gpu.device
    assert not gpu.pinned
    assert gpu.calls.count("cuGraphLaunch") >= 3


def test_a_method_that_cannot_be_built_gives_all_back(gpu: FakeGpu, fake_cubins: Path) -> None:
    with pytest.raises(ValueError, match="rows of 16 numbers cannot be stored in 3 or 4 bits"):
        yakvrt.load(str(tiny_dir("llama3")), device="cuda", cubins=fake_cubins, kv="yakv", ctx_size=32)
    assert not gpu.device
    assert not gpu.pinned


def test_the_plan_names_both_memories(gpu: FakeGpu, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["-m", str(tiny_dir("qwen3")), "-dev", "cuda", "--kv", "yakv", "--json"]

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
    gpu.memory_bytes = on_host["GPU memory"] + moved // 2
    assert totals() == on_host
    assert not gpu.device


def test_devices_are_listed(gpu: FakeGpu, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        generate.main(["--list-devices"])
    assert ended.value.code == 0
    assert "  CUDA0: Fake GPU (1024 MiB, 1024 MiB free)\n" in capsys.readouterr().out


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
    assert not gpu.device


def test_memory_that_runs_out_while_loading(gpu: FakeGpu, fake_cubins: Path) -> None:
    gpu.faults["cuMemAlloc"] = 2
    with pytest.raises(DeviceError, match=r"MB of device memory were asked for and .* take a smaller model"):
        yakvrt.load(str(tiny_dir("llama3")), device="cuda", cubins=fake_cubins, ctx_size=32)
    assert not gpu.device


def test_without_a_driver_nothing_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["-m", "llama3.2-3b", "-dev", "cuda", "-p", "hi"]) == 1
    assert "there is no NVIDIA" in capsys.readouterr().err


def test_an_unknown_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        generate.main(["-dev", "rocm", "-p", "hi"])
    assert ended.value.code == 2
    assert "'rocm' is not cpu, cuda or cuda:N" in capsys.readouterr().err


CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def test_yakv_on_the_gpu_is_that_of_the_cpu(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt in chunks, of which a block leaves the window and whose tail is fitted, and two tokens behind;
    rows rest in pinned memory.
    """

    def compiled(wanted: dict[str, list[KernelSpec]], directory: Path, progress: object) -> None:
        for arch, specs in wanted.items():
            for spec in specs:
                write_fake_cubin(directory, spec, arch)

    monkeypatch.setattr(device_kernels, "compile_missing", compiled)
    monkeypatch.setattr(device_kernels, "cache_path", lambda: tmp_path)
    for module in (tail_fit, yakv):
        monkeypatch.setattr(module, "FIT_TOKENS", 1)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    ids = [i * 37 % 64 for i in range(134)]
    how: dict[str, Any] = {
        "load_format": "dummy",
        "kv": "yakv",
        "kv_args": {"min_seqlen_to_prune": "0", "sparse_budget": "0.1"},
        "ctx_size": 192,
        "ubatch_size": 80,
    }
    found = []
    for device in ({"device": "cpu"}, {"device": "cuda", "kv_device": "cpu"}):
        with yakvrt.load(str(tmp_path), **how, **device) as engine, engine.session() as session:
            found.append(np.array([session.prefill(ids), session.decode(5)]))
            assert session.kv["rows_read"] > 0
            engine.runner.decode([session.slot], [len(session.ids)], [6])  # the graph again
            assert session.kv["steps"] == 2
    assert np.abs(found[1] - found[0]).max() < 0.02 * np.abs(found[0]).max()
    assert not gpu.failures
    assert not gpu.pinned
