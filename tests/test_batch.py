"""Batches: one result a request whatever happens, the server's answers, bad files named at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import write_tokenizer
from tiny_files import tiny_copy

from yakvrt.__main__ import main
from yakvrt.batch.backlog import MAX_LOSSES, Backlog, Task
from yakvrt.batch.placement import Placement, place, worker_args
from yakvrt.batch.requests import BatchRequest
from yakvrt.terminal import UsageError

ROOT = Path(__file__).parent.parent
Lines = list[dict[str, Any]]


def chat(name: str, text: str = "hello", **body: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0, **body}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def text(name: str, prompt: str = "once", **body: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **body}
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body}


def write(path: Path, requests: Lines) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in requests))
    return path


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Results by custom_id; every line is whole, and no custom_id comes twice."""
    content = path.read_text()
    assert content.endswith("\n")
    lines = [json.loads(line) for line in content.splitlines()]
    results = {line["custom_id"]: line for line in lines}
    assert len(results) == len(lines)
    return results


def body(result: dict[str, Any]) -> Any:
    return result["response"]["body"]


def tiny_text_model(directory: Path) -> Path:
    """A model that reads and writes text; its answers mean nothing."""
    write_tokenizer(tiny_copy("qwen3", directory))
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def batch(model: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs the verb on in.jsonl and out.jsonl of tmp_path."""

    def run(*flags: str) -> int:
        return main(["batch", *map(str, files(tmp_path)), *model_flags(model), *flags])

    return run


def files(directory: Path) -> list[Path]:
    return [directory / "in.jsonl", directory / "out.jsonl"]


def model_flags(model: Path) -> list[str]:
    return ["-m", str(model), "-t", "1", "-c", "512", "-np", "2", "--offline"]


def test_results_are_the_answers_and_refusals_of_the_server(
    batch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = [
        chat("chat"),
        text("text"),
        text("again"),
        chat("streamed", stream=True),
        chat("whole", stream=False),
        chat("unknown field", tempreature=1),
        text("too long", "x" * 600),
        text("ä\n", n=2),
    ]
    write(tmp_path / "in.jsonl", requests)
    assert batch() == 0
    assert "5 requests done, 3 failed" in capsys.readouterr().err
    results = read(tmp_path / "out.jsonl")
    assert set(results) == {each["custom_id"] for each in requests}
    assert all(each["error"] is None for each in results.values())
    statuses = {name: each["response"]["status_code"] for name, each in results.items()}
    failed = {"streamed", "unknown field", "too long"}
    assert statuses == {name: 400 if name in failed else 200 for name in results}
    assert body(results["streamed"])["error"]["param"] == "stream"
    assert body(results["unknown field"])["error"]["code"] == "unknown_parameter"
    assert body(results["too long"])["error"]["code"] == "context_length_exceeded"
    assert body(results["chat"])["object"] == "chat.completion"
    assert body(results["chat"])["choices"] == body(results["whole"])["choices"]
    assert body(results["text"])["usage"]["completion_tokens"] == 8
    assert len(body(results["ä\n"])["choices"]) == 2
    assert results["text"]["id"] == results["again"]["id"] != results["chat"]["id"]
    assert body(results["text"])["choices"] == body(results["again"])["choices"]


def test_a_killed_run_goes_on_where_it_was(batch: Callable[..., int], model: Path, tmp_path: Path) -> None:
    source, output = files(tmp_path)
    requests = [text(f"r{i}", f"once {i}", max_tokens=400) for i in range(40)]
    write(source, requests)
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "yakvrt", "batch", str(source), str(output), *model_flags(model)]
    with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as running:
        wait_for_lines(output, 3)
        running.send_signal(signal.SIGKILL)
    before = output.read_bytes()
    assert 3 <= before.count(b"\n") < len(requests)
    whole = before[: before.rfind(b"\n") + 1]
    output.write_bytes(whole + b'{"id":"batch_req_12')
    write(source, requests[::-1])  # the order does not matter
    assert batch() == 0
    assert output.read_bytes().startswith(whole)
    results = read(output)
    assert set(results) == {each["custom_id"] for each in requests}
    assert all(body(each)["usage"]["completion_tokens"] == 400 for each in results.values())
    after = output.read_bytes()
    assert (
        main(["batch", str(source), str(output), "-m", "/nowhere"]) == 0
    )  # nothing left: no model is needed
    assert output.read_bytes() == after


def wait_for_lines(path: Path, n: int) -> None:
    until = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < n:
        assert time.monotonic() < until
        time.sleep(0.005)


BAD = {
    "no JSON": ("{", "line 2: "),
    "an array": ("[1]", "line 2: Expected `object`, got `array`"),
    "deep": ('{"custom_id":' + "[" * 100_000, "line 2: "),
    "twice": (json.dumps(chat("first")), "line 2: custom_id 'first' is that of line 1 too"),
    "no id": (json.dumps(chat("")), "line 2: custom_id must have 1 to 512 characters"),
    "a number": (json.dumps(chat("x") | {"custom_id": 1}), "line 2: Expected `str`, got `int`"),
    "half a character": (json.dumps(chat("\ud800")), "line 2: "),
    "method": (json.dumps(chat("x") | {"method": "GET"}), "line 2: method is 'GET', only POST is known"),
    "url": (json.dumps(chat("x") | {"url": "/v1/embeddings"}), "line 2: url is '/v1/embeddings', known are"),
    "body": (json.dumps(chat("x") | {"body": "x"}), "line 2: body is no JSON object"),
    "field": (json.dumps(chat("x") | {"bodi": 1}), "line 2: Object contains unknown field `bodi`"),
    "long": (json.dumps(chat("x", "x" * (16 << 20))), "line 2: longer than 16777216 bytes"),
    "several": ("{\n{\n{\n{\n{\n{\n{", "; and 2 more. Nothing was run"),
}


@pytest.mark.parametrize("which", BAD)
def test_bad_lines_are_named_before_anything_runs(
    batch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    line, words = BAD[which]
    (tmp_path / "in.jsonl").write_text(f"{json.dumps(chat('first'))}\n{line}\n{json.dumps(chat('last'))}\n")
    assert batch("-m", "/nowhere") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def held(request: dict[str, Any], model: str = "tiny") -> str:
    """A result of it."""
    asked = BatchRequest(request["custom_id"], request["url"], json.dumps(request["body"]).encode())
    response = {"status_code": 200, "request_id": "req_1", "body": {"model": model}}
    line = {"id": asked.id, "custom_id": asked.custom_id, "response": response, "error": None}
    return json.dumps(line, separators=(",", ":")) + "\n"


FOREIGN = {
    "of other requests": (held(chat("other")), "holds a result for 'other', which"),
    "of another body": (held(chat("a", "bye")), "holds a result for 'a' with another url or body"),
    "twice": (held(chat("a")) * 2, "holds two results for 'a' (line 2)"),
    "of another model": (held(chat("a"), "huge"), "holds answers of huge, not of tiny"),
    "a text": ("Dear diary,\ntoday", "holds no results (line 1)"),
    "a line": ("a text without an end", "holds no results (line 1)"),
    "requests": (json.dumps(chat("a")) + "\n", "holds no results (line 1)"),
}


@pytest.mark.parametrize("which", FOREIGN)
def test_an_output_of_something_else_is_left_alone(
    batch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    content, words = FOREIGN[which]
    source, output = files(tmp_path)
    write(source, [chat("a"), chat("b")])
    output.write_text(content)
    assert batch() == 1
    assert words in capsys.readouterr().err
    assert output.read_text() == content


def test_wrong_files(
    batch: Callable[..., int], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    assert batch() == 1
    assert "No such file" in capsys.readouterr().err
    source, output = files(tmp_path)
    source.write_text("")
    assert main(["batch", str(source), str(source), *model_flags(model)]) == 2
    assert "is the input" in capsys.readouterr().err
    assert batch("--workers", "2") == 2
    with output.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert batch() == 1
    assert "another run writes" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_requests_is_said(
    batch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    source, output = files(tmp_path)
    source.write_text(content)
    assert batch("-m", "/nowhere") == 1
    assert f"{source} holds no requests; give some, one a line" in capsys.readouterr().err
    assert output.read_bytes() == b""


def test_from_stdin_to_stdout(model: Path, tmp_path: Path) -> None:
    requests = write(tmp_path / "in.jsonl", [chat("a"), text("b")])
    command = [sys.executable, "-m", "yakvrt", "batch", "-", "-", *model_flags(model)]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, input=requests.read_bytes(), env=environ, capture_output=True, timeout=60, check=True
    )
    assert {json.loads(line)["custom_id"] for line in done.stdout.splitlines()} == {"a", "b"}


def test_a_failed_model_ends_the_run_and_no_request_is_blamed(
    batch: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from yakvrt import step_loop

    decode, n_calls = step_loop.decode_together, []

    def failing(*args: Any) -> Any:
        n_calls.append(1)
        if len(n_calls) > 30:
            raise RuntimeError("the device is gone")
        return decode(*args)

    monkeypatch.setattr(step_loop, "decode_together", failing)
    source, output = files(tmp_path)
    write(source, [text(f"r{i}") for i in range(20)])
    assert batch() == 1
    error = capsys.readouterr().err
    assert "the same command goes on" in error
    assert "the model has failed: the device is gone" in error
    n_before = len(read(output))
    assert 0 < n_before < 20
    monkeypatch.undo()
    assert batch() == 0
    assert {each["response"]["status_code"] for each in read(output).values()} == {200}


def test_input_is_read_only_as_far_as_it_is_needed() -> None:
    taken: list[int] = []

    def requests() -> Any:
        for i in range(100):
            taken.append(i)
            yield BatchRequest(str(i), "/v1/completions", b"{}")

    backlog = Backlog(requests())
    for _ in range(3):
        backlog.take(0)
    assert len(taken) == 3


def test_a_request_that_takes_workers_away_is_alone_before_it_is_given_up() -> None:
    backlog = Backlog(iter([BatchRequest(name, "/v1/completions", b"{}") for name in "abc"]))
    first = backlog.take(0)
    assert isinstance(first, Task)
    for _ in range(MAX_LOSSES - 1):
        assert backlog.lost(first)
        if not first.must_be_alone:
            assert backlog.take(5) is first
    assert [task.request.custom_id for task in (backlog.take(0), backlog.take(0)) if task] == ["b", "c"]
    assert backlog.take(1) is None
    assert not backlog.is_empty
    assert backlog.take(0) is first
    assert not backlog.lost(first)
    assert backlog.is_empty


def test_workers_fit_the_cluster(tmp_path: Path) -> None:
    def placed(device: str | None, workers: int | None, *machines: dict[str, float]) -> Placement:
        return place(Namespace(device=device, workers=workers), machines)

    small, big, gpus = {"CPU": 4.0}, {"CPU": 16.0}, {"CPU": 8.0, "GPU": 2.0}
    assert placed(None, None, small, big) == Placement(2, 8, 0)
    assert placed(None, None, big, big) == Placement(2, 16, 0)
    assert placed("cpu", 3, small, gpus) == Placement(3, 4, 0)
    assert placed(None, None, small, gpus, gpus) == Placement(4, 1, 1)
    assert placed("cuda", 1, gpus) == Placement(1, 1, 1)
    for wrong in (
        ("cuda", None, small),
        ("cuda", 3, gpus),
        ("cpu", 5, small),
        ("cuda:1", None, gpus),
        (None, None),
    ):
        with pytest.raises(UsageError):
            placed(*wrong)  # type: ignore[arg-type]
    given = Namespace(model=os.path.relpath(tmp_path), chat_template_file=None, cubins=None)
    found = worker_args(given, Placement(2, 8, 0))
    assert (found.model, found.device) == (str(tmp_path), "cpu")
    assert given.model != str(tmp_path)
