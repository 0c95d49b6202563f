"""Bad input at the command line, exit code, one line on stderr, bounded memory and time."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import pytest
from tiny_files import tiny_copy

from yakvrt import generate, terminal

ROOT = Path(__file__).parent.parent
MEMORY = 4 << 30
UNREACHABLE = {
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_RETRIES": "0",
    "PIP_TIMEOUT": "2",
    "PIP_CONFIG_FILE": os.devnull,
}
IDS = ("--prompt-ids", "1,2", "--json", "-n", "1", "-c", "64", "-t", "1", "--offline")


def bound() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def yakvrt(
    *args: str | bytes,
    verb: str = "generate",
    env: dict[str, str] | None = None,
    before: Callable[[], None] = bound,
    stdin: bytes | None = b"",
    stdout: int | IO[bytes] = subprocess.PIPE,
) -> tuple[int, bytes, str]:
    """(exit code, stdout, stderr) of a verb within the memory limit and 60 seconds."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("YAKVRT_")}
    environ |= {name: value for name, value in os.environ.items() if name == "YAKVRT_CACHE"} | (env or {})
    done = subprocess.run(
        [sys.executable, "-m", f"yakvrt.{verb}", *args],
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=before,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout or b"", done.stderr.decode()


def sentence(shown: tuple[int, bytes, str], code: int, notes: int = 0) -> str:
    """The error line after `notes` lines that say what was tried."""
    found, out, err = shown
    lines = err.splitlines()
    assert found == code, err
    assert out == b""
    assert len(lines) == notes + 1, err
    assert lines[-1].startswith("yakvrt: error: ")
    assert len(lines[-1]) < 1100
    assert "internal error" not in err
    assert "Traceback" not in err
    return lines[-1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_copy("qwen3", tmp_path_factory.mktemp("cli") / "model"))


@pytest.fixture(scope="module")
def kernels(model: str) -> None:
    """Compiles what the tiny model needs, outside the limits."""
    code, _, err = yakvrt("-m", model, *IDS, before=lambda: None)
    assert code == 0, err


# ---- flags, in this process


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--prompt-ids", "1" * 10_000_000], "token ids like 1,2,3"),
        (["--prompt-ids", "9223372036854775808"], "token ids like 1,2,3"),
        (["--prompt-ids", ",,,"], "token ids like 1,2,3"),
        (["--prompt-ids", "1,-2"], "token ids like 1,2,3"),
        (["-p", "x", "-t", "100000"], "from -1 to 512"),
        (["-p", "x", "-c", "-5"], "at least 0"),
        (["-p", "x", "-c", "9999999999999"], "at most 2147483647"),
        (["-p", "x", "-c", "9" * 5000], "at least 0"),
        (["-p", "x", "-n", "-3"], "at least -2"),
        (["-p", "x", "-ub", "0"], "from 1 to 8192"),
        (["-p", "x", "-ub", "8193"], "from 1 to 8192"),
        (["-p", "x", "--top-p", "2"], "top_p is 2.0"),
        (["-p", "x", "--top-p", "nan"], "top_p is nan"),
        (["-p", "x", "--temp", "inf"], "temperature is inf"),
        (["-p", "x", "--min-p", "-0.1"], "min_p is -0.1"),
        (["-p", "x", "-s", "9" * 30], "seed is 9"),
        (["-p", "x", "--json", "--logprobs", "100000"], "from 0 to 1000"),
        (["-p", "x", "-l", "garbage"], "bias like"),
        (["-p", "x", "-l", "1+nan"], "bias like"),
        (["-p", "x", "-l=-5+1"], "bias like"),
        (["-p", "x", "--stop", ""], "stop string is empty"),
        (["-p", "x", "-e", "--no-escape"], "not allowed with"),
        (["-p", "x", "--chat-template-kwargs", "[" * 100_000], "not a JSON object"),
        (["-p", "x", "--chat-template-kwargs", "{"], "not a JSON object"),
        (["-p", "x", "--raw", "-sys", "y"], "bypasses"),
    ],
)
def test_flags(flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = generate.main(flags)
    except SystemExit as end:
        code = int(str(end.code))
    shown = capsys.readouterr()
    assert complaint in sentence((code, shown.out.encode(), shown.err), 2)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("smolm2-135m", "(nearest: smollm2-135m)"),
        ("qwen3-4", "(nearest: qwen3-4b)"),
        ("llama3.2-3", "(nearest: llama3.2-3b)"),
        ("a\nb", "unknown model"),
        ("", "unknown model"),
        ("x" * 5000, "unknown model"),
        ("/" + "x" * 5000 + ".gguf", "unknown model"),
        ("./a\nb.gguf", "does not exist"),
        ("/dev/zero", "no regular file"),
        ("/dev/null", "no regular file"),
        ("/proc", "holds no .gguf"),
    ],
)
def test_models_that_are_none(name: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = generate.main(["-p", "x", "-m", name, "--offline"])
    assert complaint in sentence((code, b"", capsys.readouterr().err), 1)


def test_model_paths_that_are_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "zero.gguf").symlink_to("/dev/zero")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    (tmp_path / "folder.gguf").mkdir()
    for name in ("pipe.gguf", "zero.gguf", "zero.safetensors", "loop.gguf", "folder.gguf"):
        code = generate.main(["-p", "x", "-m", str(tmp_path / name), "--offline"])
        sentence((code, b"", capsys.readouterr().err), 1)
    code = generate.main(["--prompt-ids", "1", "-m", "/dev/zero", "--load-format", "dummy"])
    assert "no config.json" in sentence((code, b"", capsys.readouterr().err), 1)
    code = generate.main(["--prompt-ids", "1", "-m", "smollm2-135m", "--load-format", "dummy"])
    assert "give it a directory with a config.json" in sentence((code, b"", capsys.readouterr().err), 1)


def test_long_messages_are_cut() -> None:
    line = terminal.one_line(ValueError("a" * 10**6 + " z"))
    assert len(line) < 1100
    assert line.endswith("z")
    assert terminal.one_line(MemoryError("no room")) == (
        "out of memory (no room); lower --ctx-size or take a smaller model"
    )


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        import_module("no_such_package.inside")
    line = terminal.one_line(caught.value)
    assert "the package no_such_package is missing here" in line
    assert "pip install ." in line


# ---- prompts


def test_prompts_from_stdin_and_files(model: str, tmp_path: Path) -> None:
    common = ("-m", model, "--json", "--offline")
    garbage = bytes(range(128, 256)) * 100
    assert "stdin is not UTF-8 text" in sentence(yakvrt(*common, "-p", "-", stdin=garbage), 1)
    assert "prompt is empty" in sentence(yakvrt(*common, "-p", "-"), 1)
    shown = yakvrt(*common, "-p", "-", stdin=None, before=lambda: os.close(0))
    assert "stdin is closed" in sentence(shown, 1)
    assert "Is a directory" in sentence(yakvrt(*common, "-f", str(tmp_path)), 1)
    assert "/dev/zero is larger than 256 MB" in sentence(yakvrt(*common, "-f", "/dev/zero"), 1)
    assert "cannot be read" in sentence(yakvrt(*common, "-f", "/proc/self/mem"), 1)


def test_ids_and_contexts(model: str, kernels: None) -> None:
    common = ("-m", model, "--json", "--offline", "-t", "1")
    for ids in ("512", "2147483647"):
        assert "ids run from 0 to 511" in sentence(yakvrt(*common, "--prompt-ids", ids), 1)
    many = ",".join("1" * 5000)
    assert "prompt has 5000 tokens" in sentence(yakvrt(*common, "--prompt-ids", many, "-c", "64"), 1)
    shown = yakvrt(*common, "--prompt-ids", "1", "-c", "2147483647")
    assert "the largest that fits is --ctx-size " in sentence(shown, 1)
    assert "--json shows its ids" in sentence(yakvrt(*common[:2], "--prompt-ids", "1", "-c", "64"), 2)
    assert "give token ids with --prompt-ids" in sentence(yakvrt(*common, "-p", "x", "-c", "64"), 1)


def test_odd_but_valid_flags_run(model: str, kernels: None) -> None:
    for flags in (("-t", "0"), ("-n", "0"), ("--stop-id", "99999"), ("-c", "3")):
        code, out, err = yakvrt("-m", model, *IDS, *flags)
        assert (code, out[:1]) == (0, b"{"), err


# ---- the machine: no room, no network, no home


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file" / "cache")
    for verb, args in (("generate", ("-m", "smollm2-135m", "-p", "x")), ("pull", ("smollm2-135m",))):
        shown = yakvrt(*args, verb=verb, env={"YAKVRT_CACHE": place, "HF_HOME": str(tmp_path), **UNREACHABLE})
        assert "set YAKVRT_CACHE to a writable directory" in sentence(shown, 1)
    shown = yakvrt("-m", "smollm2-135m", "-p", "x", env={"YAKVRT_CACHE": "~nobody-of-this-name/x"})
    assert "set YAKVRT_CACHE" in sentence(shown, 1)


def test_no_network(tmp_path: Path) -> None:
    env = {"YAKVRT_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hub"), **UNREACHABLE}
    shown = yakvrt("-m", "somebody/something", "-p", "x", env=env)
    assert "cannot be reached" in sentence(shown, 1, notes=1)
    shown = yakvrt("-m", "smollm2-135m", "-p", "x", env=env)
    assert "the hub cannot be reached either" in sentence(shown, 1, notes=3)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 4096]
    shown = yakvrt("-m", "smollm2-135m", "-p", "x", "--offline", env=env)
    assert "fetch it once without --offline" in sentence(shown, 1)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system without a free byte where we may mount one, else an ordinary directory."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = os.geteuid() == 0 and _run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place))
    if mounted:
        with (place / "filler").open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 65536) == 65536:
                    pass
            except OSError:
                pass
    yield place
    if mounted:
        _run("umount", str(place))


def _run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def no_files() -> None:
    """Every write to a file fails, as on a full disk (EFBIG in place of ENOSPC)."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_full_disk_leaves_nothing_half_written(full_disk: Path, model: str) -> None:
    before = {path for path in full_disk.rglob("*") if path.is_file()}
    shown = yakvrt("-m", model, *IDS, env={"YAKVRT_CACHE": str(full_disk)}, before=no_files)
    sentence(shown, 1, notes=len(shown[2].splitlines()) - 1)
    env = {"YAKVRT_CACHE": str(full_disk), "HF_HOME": str(full_disk / "hub"), **UNREACHABLE}
    shown = yakvrt("-m", "smollm2-135m", "-p", "x", env=env, before=no_files)
    sentence(shown, 1, notes=len(shown[2].splitlines()) - 1)
    left = {path for path in full_disk.rglob("*") if path.is_file() and path.name != ".making"}  # a lock
    assert left == before


def test_stdout_that_is_full(model: str, kernels: None) -> None:
    with open("/dev/full", "wb") as full:
        assert "No space left" in sentence(yakvrt("-m", model, *IDS, stdout=full), 1)


def test_stdout_that_may_not_grow_is_named(tmp_path: Path) -> None:
    with open(tmp_path / "answer", "wb") as file:
        shown = yakvrt("--json", verb="models", stdout=file, before=no_files)
    assert f"stdout ({tmp_path / 'answer'}); raise the limit" in sentence(shown, 1)


def test_a_context_beyond_the_trained_one_is_warned_about(model: str, kernels: None) -> None:
    trained = json.loads((Path(model) / "config.json").read_bytes())["max_position_embeddings"]
    for beyond in (0, 1):
        code, _, err = yakvrt("-m", model, *IDS, "-c", str(trained + beyond))
        assert code == 0
        warned = f"yakvrt: warning: --ctx-size {trained + 1} is beyond the {trained} tokens the model was "
        assert err == (f"{warned}trained for; expect worse answers there\n" if beyond else "")


def test_a_limit_on_file_sizes_is_said_once(tmp_path: Path) -> None:
    env = {"YAKVRT_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hub"), **UNREACHABLE}
    shown = yakvrt("smollm2-135m", verb="pull", env=env, before=no_files)
    assert "raise the limit on file sizes (ulimit -f)" in sentence(shown, 1)


def test_little_memory_ends_in_a_sentence(model: str, kernels: None) -> None:
    def tight() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (450 << 20, 450 << 20))

    code, _, err = yakvrt("-m", model, *IDS, "-c", "1048576", before=tight)
    assert code == 1
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("yakvrt: error: ")


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("pull", ()),
        ("pull", ("a", "--unknown")),
        *((verb, ("--unknown",)) for verb in ("models", "bench", "transfer")),
    ],
)
def test_every_verb_refuses_in_one_line(verb: str, args: tuple[Any, ...]) -> None:
    assert f"(see yakvrt {verb} --help)" in sentence(yakvrt(*args, verb=verb), 2)
