"""yakvrt.eval.server against a real server on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from test_eval_records import Copying
from tiny_files import byte_copy

import yakvrt.eval.tasks as tasks_module
from yakvrt.__main__ import main
from yakvrt.eval.evaluation import Skipped
from yakvrt.eval.method_specs import MethodSpec
from yakvrt.eval.records import NAME, read_records
from yakvrt.eval.report import write_report
from yakvrt.eval.sample import Sample
from yakvrt.eval.server import Server, ServerError
from yakvrt.eval.tasks.entry import TaskEntry

SAMPLE = Sample("s1", "say hello", "hello", 16)
SPEC = MethodSpec("server", None)


class Answers(ThreadingHTTPServer):
    """Gives the answers in order, status and body, and keeps what it was sent."""

    answers: list[tuple[int, bytes]]
    requests: list[tuple[str, str | None, Any]]


class _Handler(BaseHTTPRequestHandler):
    server: Answers

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers.get("Authorization"), body))
        status, answer = self.server.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def http() -> Iterator[Answers]:
    server = Answers(("127.0.0.1", 0), _Handler)
    server.answers, server.requests = [], []
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def side(http: Answers, ctx_size: int = 0, path: str = "") -> Server:
    url = f"http://127.0.0.1:{http.server_port}{path}"
    return Server(url, "m", "key", len, None, ctx_size, pause_s=0.001)


def read(server: Server, sample: Sample = SAMPLE) -> dict[str, Any]:
    ((spec, found),) = server.readings(sample, [SPEC], lambda what, share: None)
    assert spec is SPEC
    return found


def completion(text: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}).encode()


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_an_answer_once_the_server_is_ready(http: Answers, path: str) -> None:
    http.answers = [(503, b"loading"), (200, completion("hello"))]
    found = read(side(http, path=path))
    assert (found["text"], found["prompt_tokens"], found["generated_tokens"]) == ("hello", 5, 2)
    address, key, body = http.requests[-1]
    assert (address, key) == ("/v1/chat/completions", "Bearer key")
    assert body["messages"] == [{"role": "user", "content": "say hello"}]
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 16, "m")


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (400, b'{"error": "the prompt is too long"}', "refused sample s1 with HTTP 400 .*too long.*-c"),
        (401, b"", "HTTP 401 .*--api-key"),
        (200, b"<html>", "with no JSON"),
        (200, b"[]", "something else than a chat completion"),
        (200, completion(7), "something else than a chat completion"),
        (200, b'{"choices": []}', "something else than a chat completion"),
        (200, b'{"choices": [{"message": {"content": ""}}], "usage": [5]}', "something else than a chat"),
    ],
)
def test_what_is_no_answer(http: Answers, status: int, answer: bytes, message: str) -> None:
    http.answers = [(status, answer)]
    with pytest.raises(ServerError, match=message):
        read(side(http))


def test_a_server_that_stays_busy_or_is_not_there(http: Answers) -> None:
    http.answers = [(503, b"loading")] * 6
    with pytest.raises(ServerError, match="HTTP 503"):
        read(side(http))
    assert not http.answers
    with pytest.raises(ServerError, match=r"cannot be reached .* start the server"):
        read(Server("http://127.0.0.1:1", "m", None, len, None, 0))
    with pytest.raises(ValueError, match="is no address"):
        Server("localhost:8080", "m", None, len, None, 0)


def test_the_verb_asks_a_server(http: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = TaskEntry("copying", "", "low", (), lambda options, data: Copying(n=2))
    monkeypatch.setitem(tasks_module.TASKS, "copying", entry)
    model = byte_copy("qwen2", tmp_path / "model")
    http.answers = [(200, completion("hello")), (200, completion("bye"))]
    flags = ["--server", f"http://127.0.0.1:{http.server_port}", "--label", "other", "--server-model", "m"]
    assert main(["eval", *flags, "-m", str(model), "--task", "copying", "-o", str(tmp_path)]) == 0
    _, records = read_records(tmp_path / NAME)
    assert [(r["method"], r["score"]["score"]) for r in records] == [("other", 100), ("other", 0)]
    assert write_report([tmp_path], tmp_path / "report")[0].read_text().count("| other | 2 | 50.0") == 1


def test_samples_kept_from_the_server(http: Answers) -> None:
    with pytest.raises(Skipped, match="25 tokens with the answer, the context holds 24"):
        read(side(http, ctx_size=24))
    with pytest.raises(Skipped, match="asks for no answer"):
        read(side(http), Sample("s2", "text", "more", 0))
    assert http.requests == []
