"""The verb: it listens while the model loads, drains when it is told to end, and says what is wrong."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from served import write_tokenizer
from tiny_files import tiny_copy
from trace_file_checks import check_nesting, ns, slices

from yakvrt.serve.verb import main


@contextmanager
def started(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and where it listens."""
    command = [sys.executable, "-m", "yakvrt", "serve", "--port", "0", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"listening on (\S+);", process.stderr.readline())
            assert found
            yield process, found[1]
        finally:
            process.kill()


def ready(url: str) -> list[int]:
    """Waits for the model. Returns: the answers of /health."""
    seen = []
    until = time.monotonic() + 120
    while not seen or seen[-1] != 200:
        assert time.monotonic() < until
        seen.append(httpx.get(f"{url}/health").status_code)
        time.sleep(0.02)
    return seen


def test_from_start_to_end(tmp_path: Path) -> None:
    write_tokenizer(tiny_copy("qwen3", tmp_path / "tiny"))
    path = tmp_path / "trace.json"
    flags = ("-m", str(tmp_path / "tiny"), "-c", "4000", "-np", "2", "--api-key", "k", "--alias", "mine")
    flags += ("--trace", str(path))
    with started(*flags) as (process, url):
        assert set(ready(url)) == {503, 200}
        key = {"Authorization": "Bearer k"}
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/v1/models", headers=key).json()["data"][0]["id"] == "mine"
        body = {"prompt": "x", "ignore_eos": True, "max_tokens": 700, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=key, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        last = json.loads(rest[-2][6:])
        assert last["timings"]["predicted_n"] == 700
        assert process.wait(30) == 0
    events = json.loads(path.read_text())["traceEvents"]
    check_nesting(events)
    asked = [e for e in events if e.get("cat") == "request"]
    assert [(e["ph"], e["name"]) for e in asked] == [
        ("b", "waiting"),
        ("e", "waiting"),
        ("X", "prompt"),
        ("X", "answer"),
    ]
    assert {e["args"]["request"] for e in asked} == {last["id"]}
    assert asked[-1]["args"]["tokens"] == 700
    steps = slices(events, name="decode", cat="")
    assert len(steps) == 699  # the first token comes from the prompt
    (prompt, answer), (began, ended) = map(ns, asked[2:]), (ns(steps[0])[0], ns(steps[-1])[1])
    assert prompt[1] == answer[0] <= began <= ended <= answer[1]
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_an_end_while_loading_or_beyond_the_limit(tmp_path: Path) -> None:
    write_tokenizer(tiny_copy("qwen3", tmp_path / "tiny"))
    with started("-m", str(tmp_path / "tiny")) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    flags = ("-m", str(tmp_path / "tiny"), "-c", "4096", "--drain-timeout", "1", "--no-warmup")
    with started(*flags) as (process, url):
        ready(url)
        body = {"prompt": "x", "ignore_eos": True, "n": 40, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            started_at = time.monotonic()
            rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert rest[-1]["error"]["code"] == "shutting_down"
        assert process.wait(30) == 0
        assert time.monotonic() - started_at < 15
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def n_waiting(url: str) -> float:
    found = re.search(r"^yakvrt:requests_deferred (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0


@pytest.mark.parametrize("pause_s", [0.0, 0.3])
def test_a_second_signal_ends_answers(tmp_path: Path, pause_s: float) -> None:
    """As the limit does, in streams and whole ones; one line is said of it all. The two differ: of one signal
    that comes again before it is handled, a process gets one.
    """
    write_tokenizer(tiny_copy("qwen3", tmp_path / "tiny"))
    with started("-m", str(tmp_path / "tiny"), "-c", "4096", "-np", "2", "--no-warmup") as (process, url):
        ready(url)
        body = {"prompt": "x", "ignore_eos": True, "n": 20}
        ask = {"method": "POST", "url": f"{url}/v1/completions", "timeout": 60}
        with (
            ThreadPoolExecutor(1) as clients,
            httpx.stream(**ask, json=body | {"stream": True}) as stream,
        ):
            whole = clients.submit(lambda: httpx.request(**ask, json=body))
            lines = stream.iter_lines()
            next(lines)
            while n_waiting(url) <= 18:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            time.sleep(pause_s)
            process.send_signal(signal.SIGTERM)
            started_at = time.monotonic()
            rest = [line for line in lines if line.startswith("data: ")]
            assert json.loads(rest[-2][6:])["error"]["code"] == "shutting_down"
            assert rest[-1] == "data: [DONE]"
            assert whole.result(30).json()["error"]["code"] == "shutting_down"
        assert process.wait(30) == 0
        assert time.monotonic() - started_at < 10
        assert process.stderr is not None
        loaded, told = process.stderr.read().splitlines()
        assert "is ready" in loaded
        assert told.startswith("yakvrt: shutting down")


def test_a_client_that_does_not_read_holds_up_no_end(tmp_path: Path) -> None:
    write_tokenizer(tiny_copy("qwen3", tmp_path / "tiny"))
    flags = ("-m", str(tmp_path / "tiny"), "-c", "2048", "-np", "2", "--no-warmup")
    with started(*flags) as (process, url), socket.socket() as client:
        ready(url)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        body = {"prompt": "x", "ignore_eos": True, "n": 4, "stream": True, "logprobs": 20}
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        client.sendall(head.encode() + data)
        while n_waiting(url) > 1:  # megabytes, more than the system holds for it
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr is not None
        _, told = process.stderr.read().splitlines()
        assert told.startswith("yakvrt: shutting down")


def test_a_model_that_is_none_ends_it(tmp_path: Path) -> None:
    with started("-m", str(tmp_path)) as (process, _):
        assert process.wait(60) == 1
        assert process.stderr is not None
        (line,) = process.stderr.read().splitlines()
        assert line.startswith("yakvrt: error: ")


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--port", "70000"], 2, "from 0 to 65535"),
        (["--cors-origins", "example.org"], 2, "no origin"),
        (["--slot-save-path", "/nowhere/at/all"], 2, "no directory"),
        (["--api-key", "ké"], 2, "ASCII"),
        (["--max-body-size", "many"], 2, "a size like"),
        (["--timeout", "-1"], 2, "seconds"),
        (["-np", "0"], 2, "from 1 to 4096"),
        (["--temp", "-1"], 2, "temperature is -1"),
        (["--host", "256.0.0.1"], 1, "name another --host"),
    ],
)
def test_flags_that_make_no_sense(
    flags: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = main(flags)
    except SystemExit as end:
        found = int(end.code or 0)
    error = capsys.readouterr().err
    assert (found, error.count("\n")) == (code, 1)
    assert words in error


def test_a_port_in_use_and_empty_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 1
    assert "(Address already in use); name another --port" in capsys.readouterr().err
    (tmp_path / "keys").write_text("\n\n")
    assert main(["--api-key-file", str(tmp_path / "keys")]) == 1
    assert "holds no key" in capsys.readouterr().err
    assert main(["--api-key", ""]) == 2  # as of a variable that is not set
    assert "--api-key holds no key" in capsys.readouterr().err
