"""A hub repository becomes files; the hub is a local server and the client is the real one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, etag, serve

from yakvrt import hub, pull
from yakvrt.hub import HubError, HubUnreachable

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = json.dumps({"metadata": {}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}).encode()
SMALL = {
    "config.json": b'{"in": "config.json"}',
    "generation_config.json": b'{"in": "generation_config.json"}',
    "tokenizer.json": b'{"in": "tokenizer.json"}',
    "tokenizer_config.json": b'{"in": "tokenizer_config.json"}',
    "chat_template.jinja": b"template",
}
SHARDED = {**SMALL, "model.safetensors.index.json": INDEX, SHARDS[0]: b"first", SHARDS[1]: b"second"}
UNWANTED = {"pytorch_model.bin": b"pickle", "consolidated.safetensors": b"again", "onnx/model.onnx": b"no"}
GGUF = {"README.md": b"", "m-q8_0.gguf": b"eight", "m-q4_k_m.gguf": b"four", "m-q2_k.gguf": b"two"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with a sharded repository and a GGUF repository, and an empty hub cache."""
    from huggingface_hub import constants

    with serve() as running:
        running.repos = {"user/sharded": {**SHARDED, **UNWANTED}, "user/m-GGUF": GGUF}
        # The client reads its environment when it is imported, which other tests may have caused already.
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setenv("YAKVRT_CACHE", str(tmp_path / "cache"))
        yield running


def test_sharded_repository_brings_what_is_needed_and_nothing_else(server: HubServer) -> None:
    files = hub.resolve("user/sharded", progress=False)
    assert files.name == "user/sharded"
    assert [path.name for path in files.weights] == list(SHARDS)
    assert [path.read_bytes() for path in files.weights] == [b"first", b"second"]
    assert files.config == files.directory / "config.json"
    assert files.tokenizer == files.directory / "tokenizer.json"
    assert files.chat_template == files.directory / "chat_template.jinja"
    assert files.generation_config == files.directory / "generation_config.json"
    assert sorted(server.fetched()) == sorted(SHARDED)


def test_a_complete_copy_needs_no_request(server: HubServer) -> None:
    files = hub.resolve("user/sharded", progress=False)
    server.requests.clear()
    assert hub.resolve("user/sharded", progress=False) == files
    assert hub.resolve("user/sharded", offline=True) == files
    assert server.requests == []
    assert hub.resolve("user/sharded", progress=False, refresh=True) == files
    assert server.fetched() == []


def test_an_incomplete_copy_is_completed_and_not_used_offline(server: HubServer) -> None:
    files = hub.resolve("user/sharded", progress=False)
    files.weights[1].resolve().unlink()
    files.weights[1].unlink()
    with pytest.raises(HubUnreachable, match="not complete in the hub's cache and offline mode is on"):
        hub.resolve("user/sharded", offline=True)
    server.requests.clear()
    assert hub.resolve("user/sharded", progress=False) == files
    assert server.fetched() == [SHARDS[1]]


def test_a_refresh_without_network_keeps_the_copy(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = hub.resolve("user/m-GGUF", progress=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert hub.resolve("user/m-GGUF", progress=False, refresh=True) == files
    assert "using the copy in the hub's cache" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("user/m-GGUF", "m-q4_k_m.gguf"),
        ("user/m-GGUF:Q8_0", "m-q8_0.gguf"),
        ("user/m-GGUF:m-q2_k.gguf", "m-q2_k.gguf"),
    ],
)
def test_only_the_gguf_of_the_quant_is_fetched(server: HubServer, model: str, name: str) -> None:
    files = hub.resolve(model, progress=False)
    assert [path.name for path in files.weights] == [name]
    assert files.weights[0].read_bytes() == GGUF[name]
    assert files.config is None
    assert server.fetched() == [name]


def test_a_missing_quant_lists_the_others(server: HubServer) -> None:
    with pytest.raises(HubError, match="no GGUF file of quant Q6_K: choose one of m-q2_k, m-q4_k_m, m-q8_0"):
        hub.resolve("user/m-GGUF:Q6_K", progress=False)


def test_a_repository_of_several_models_says_how_to_choose(server: HubServer) -> None:
    server.repos["user/many"] = {"in/b-IQ1_S.gguf": b"b", "in/a-IQ1_S.gguf": b"a"}
    with pytest.raises(HubError, match=r"holds 2 models \(.*\): give one of them, as user/many:a-IQ1_S$"):
        hub.resolve("user/many", progress=False)
    assert hub.resolve("user/many:a-IQ1_S", progress=False).weights[0].read_bytes() == b"a"


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (
            403,
            "GatedRepo",
            r"is gated: accept its licence at http://127.0.0.1:\d+/user/closed, then set HF_TOKEN",
        ),
        (401, "GatedRepo", r"is gated: accept its licence"),
        (401, "", r"hub has no repository user/closed, or it is private|refuses access"),
        (403, "", r"refuses access to user/closed \(HTTP 403\): set a valid HF_TOKEN"),
        (404, "RepoNotFound", r"hub has no repository user/closed, or it is private: check its name"),
        (503, "", r"cannot serve user/closed now \(HTTP 503\): try again later"),
        (418, "", r"refuses user/closed \(HTTP 418\)"),
    ],
)
def test_refusals_say_what_to_do(server: HubServer, status: int, code: str, reason: str) -> None:
    server.refuse["user/closed"] = (status, code)
    with pytest.raises(HubError, match=reason) as caught:
        hub.resolve("user/closed", progress=False)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, HubUnreachable) == (status == 503)


@pytest.mark.parametrize("repo", ["user/sharded", "user/m-GGUF"])
@pytest.mark.parametrize("status", [401, 403])
def test_gated_files_of_a_public_list_say_what_to_do(server: HubServer, repo: str, status: int) -> None:
    server.refuse[f"{repo}/resolve"] = (status, "GatedRepo")
    with pytest.raises(
        HubError, match=rf"{repo} is gated: accept its licence at .*/{repo}, then set HF_TOKEN"
    ):
        hub.resolve(repo, progress=False)


def test_no_network_says_what_to_do(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachable, match=r"cannot be reached to fetch user/m-GGUF: check the network"):
        hub.resolve("user/m-GGUF", progress=False)


def test_full_disk_is_noticed_before_downloading(server: HubServer) -> None:
    server.sizes["m-q4_k_m.gguf"] = 1 << 60
    with pytest.raises(
        HubError, match=r"bytes free and 1,152,921,504,606,846,976 are needed: free some space"
    ):
        hub.resolve("user/m-GGUF", progress=False)
    assert server.fetched() == []


def test_shards_outside_the_repository_are_refused(server: HubServer) -> None:
    evil = json.dumps({"weight_map": {"a": "../../../etc/passwd.safetensors"}}).encode()
    server.repos["user/evil"] = {"config.json": b"{}", "model.safetensors.index.json": evil}
    with pytest.raises(HubError, match="outside its directory"):
        hub.resolve("user/evil", progress=False)


def test_the_verb_reads_the_environment_and_keeps_stdout_clean(server: HubServer, tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_secret",
    }
    environ.pop("HF_HUB_CACHE")
    command = [sys.executable, "-m", "yakvrt.pull", "user/m-GGUF:Q8_0"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == b"eight"
    assert done.stdout.startswith(str(tmp_path / "home" / "hub"))
    assert done.stderr == "yakvrt: fetching user/m-GGUF:Q8_0 from the hub\n"
    assert "Bearer hf_secret" in server.tokens
    again = subprocess.run(
        [*command, "--offline"],
        env={**environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (again.stdout, again.stderr) == (done.stdout, "")


def test_pull_verify_fetches_a_damaged_file_again(
    server: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pull.main(["user/m-GGUF", "--verify", "-q"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.resolve().name == etag(b"four")
    path.resolve().write_bytes(b"evil")
    assert pull.main(["user/m-GGUF", "--verify", "-q"]) == 0
    out, err = capsys.readouterr()
    assert "sha256 is wrong, the file is removed" in err
    assert Path(out.strip()).read_bytes() == b"four"


def test_ctrl_c_leaves_nothing_and_says_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        environ = {**os.environ, "PIP_INDEX_URL": index, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "0"}
        running = subprocess.Popen(
            [sys.executable, "-m", "yakvrt.pull", "smollm2-135m"],
            env={**environ, "YAKVRT_CACHE": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(30)
        connection, _ = silent.accept()  # pip asks for the index and gets no answer
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
        connection.settimeout(30)
        while connection.recv(65536):  # ends when the pip process is gone
            pass
        connection.close()
    assert running.returncode == 130
    assert out == ""
    assert err.splitlines()[1:] == ["yakvrt: interrupted"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_repository_may_keep_its_gguf_in_a_directory(server: HubServer) -> None:
    server.repos["user/nested"] = {"README.md": b"", "quants/m-q4_k_m.gguf": b"four"}
    files = hub.resolve("user/nested", progress=False)
    assert files.weights[0].read_bytes() == b"four"
    assert hub.resolve("user/nested", offline=True) == files


def test_a_configuration_is_fetched_without_weights(server: HubServer) -> None:
    config = hub.config_alone("user/sharded")
    assert config is not None
    assert config.read_bytes() == SMALL["config.json"]
    assert server.fetched() == ["config.json"]
    assert hub.config_alone("user/sharded", offline=True) == config
    server.repos["user/tiny"] = {**SMALL, "model.safetensors": b"weights"}
    hub.resolve("user/tiny", progress=False)
    assert hub.config_alone("user/tiny") is None  # the weights are here
    assert hub.config_alone("user/m-GGUF:Q4_K_M") is None
    with pytest.raises(HubUnreachable, match=r"fetches its config\.json alone"):
        hub.config_alone("user/never-seen", offline=True)


def test_a_plan_without_network_says_so_at_once(server: HubServer, tmp_path: Path) -> None:
    started = time.monotonic()
    shown = subprocess.run(
        [sys.executable, "-m", "yakvrt.plan", "-m", "user/never-seen"],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.returncode == 1
    assert "cannot be reached to fetch user/never-seen" in shown.stderr
    assert shown.stderr.count("\n") == 1
    assert time.monotonic() - started < 10


def test_a_configuration_that_is_here_needs_no_request(server: HubServer) -> None:
    config = hub.config_alone("user/sharded")
    server.requests.clear()
    assert hub.config_alone("user/sharded") == config
    assert server.requests == []
