"""What the server refuses, and how: hostile bodies, slow and leaving clients, strangers, too many."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from served import CTX_SIZE, MAX_BODY, MAX_WAITING, N_SLOTS, Served
from starlette.testclient import TestClient

from yakvrt.constraint import MAX_CHECKS
from yakvrt.serve import connection
from yakvrt.serve.app import make_app
from yakvrt.serve.body_budget import BodyBudget
from yakvrt.serve.errors import ApiError
from yakvrt.serve.fields import IDLE, ONLY, WITHOUT_EFFECT
from yakvrt.serve.service import Service
from yakvrt.serve.settings import TEXT_THREADS
from yakvrt.tokenizer import Tokenizer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
LONG: dict[str, Any] = {"prompt": "x", "ignore_eos": True, "max_tokens": 400, "temperature": 0}


def other(served: Served, **settings: Any) -> TestClient:
    """The same model behind other settings."""
    service = Service(replace(served.settings, **settings))
    service.provide(served.model)
    return TestClient(make_app(service), base_url="http://localhost", raise_server_exceptions=False)


def request_bytes(served: Served, path: str, body: dict[str, Any], headers: str = "") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    return head.encode() + data


def read_all(sock: socket.socket) -> bytes:
    parts = []
    try:
        while part := sock.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@contextmanager
def busy(served: Served, n: int, step_s: float = 0.02) -> Iterator[list[socket.socket]]:
    """n answers under way or waiting, each with its client; they leave at the end."""
    clients: list[socket.socket] = []
    scheduler = served.model.scheduler
    with served.pace.of(step_s):
        try:
            for i in range(n):
                clients.append(served.raw())
                clients[-1].sendall(request_bytes(served, COMPLETIONS, LONG | {"prompt": f"{i} x"}))
                until = time.monotonic() + 10
                while scheduler.n_running < min(i + 1, N_SLOTS) or scheduler.n_waiting < i + 1 - N_SLOTS:
                    assert time.monotonic() < until
                    time.sleep(0.002)
            yield clients
        finally:
            for client in clients:
                client.close()
            served.wait_idle()


BODIES = [
    (b"", "no JSON"),
    (b"{", "no JSON"),
    (b"[1]", "must be a JSON object"),
    (b'{"prompt": NaN}', "no JSON"),
    (b'{"prompt": "x", "temperature": 1e999}', "no JSON"),
    (b'{"prompt": "\xff"}', "no JSON"),
    (b'{"prompt": "\\ud800"}', "no JSON"),
    (b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested"),
    (b'{"prompt": "x", "metadata": ' + b"[" * 70 + b"]" * 70 + b"}", "nested"),
    (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", ""),
    (b'{"prompt": "x", "max_tokens": 1.5}', "$.max_tokens"),
    (b'{"prompt": "x", "max_tokens": true}', "$.max_tokens"),
    (b'{"prompt": "x", "n": "2"}', "$.n"),
    (b'{"prompt": {}}', "$.prompt"),
    (b"{}", "prompt"),
]


@pytest.mark.parametrize(("body", "words"), BODIES, ids=[str(i) for i in range(len(BODIES))])
def test_bodies_that_are_none(served: Served, body: bytes, words: str) -> None:
    response = served.http.post(COMPLETIONS, content=body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


MANY = [
    (b'{"messages": [], "chat_template_kwargs": {"a": [' + b"{}," * 200_000 + b"{}]}}", "lists and objects"),
    (b'{"x": ["\\\\", ' + b"[]," * 200_000 + b'"]"]}', "lists and objects"),
    (b'{"logit_bias": {' + b'"":1,' * 200_000 + b'"":1}}', "names"),
    (b'{"prompt": [' + b"1," * 1_100_001 + b"1]}", "values"),
    (b'{"prompt": "' + b'[]{}:,\\"[' * 200_000 + b'"}', "there is no model"),
]


@pytest.mark.parametrize(("body", "words"), MANY, ids=range(len(MANY)))
def test_a_body_of_too_many_values(
    served: Served, monkeypatch: pytest.MonkeyPatch, body: bytes, words: str
) -> None:
    """Reading them would stop everything for seconds, and take many times their length; text may hold all."""

    def decode(*_: Any, **__: Any) -> None:
        raise ApiError("there is no model")

    monkeypatch.setattr("msgspec.json.decode", decode)
    response = other(served, max_body_bytes=16 << 20).post(COMPLETIONS, content=body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {"temperature": -1}, "temperature", "temperature is -1"),
    (CHAT, {"top_p": 2}, "top_p", "top_p is 2"),
    (CHAT, {"seed": 1 << 70}, "seed", ""),
    (CHAT, {"max_tokens": -5}, "max_tokens", "max_tokens is -5"),
    (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "max_tokens and max_c"),
    (CHAT, {"n_predict": 3, "max_tokens": 4}, "max_tokens", "n_predict and max_tokens are the same"),
    (CHAT, {"n": 0}, "n", "n is 0"),
    (CHAT, {"n": 129}, "n", "1 to 128"),
    (CHAT, {"stop": [""]}, "stop", "1 to 1000"),
    (CHAT, {"stop": ["x"] * 65}, "stop", "at most 64"),
    (CHAT, {"logit_bias": {"512": 1}}, "logit_bias", "0 to 511"),
    (CHAT, {"logit_bias": {"x": 1}}, "logit_bias", "'x'"),
    (CHAT, {"logit_bias": {"1": 1e308}}, "logit_bias", "1e+308"),
    (CHAT, {"stop_token_ids": [-1]}, "stop_ids", "stop_ids entry is -1"),
    (CHAT, {"logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias", "at most 1024"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "0 to 20"),
    (CHAT, {"temprature": 1}, "temprature", "did you mean temperature"),
    (CHAT, {"whatever": 1}, "whatever", "no parameter"),
    (CHAT, {"stream_options": {"x": 1}}, "stream_options", "unknown field `x`"),
    (CHAT, {"messages": []}, "messages", "1 to 10000"),
    (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role", "role"),
    (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "wizard"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "text"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood", "mood"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "image_url",
    ),
    (CHAT, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "messages"),
    (COMPLETIONS, {"prompt": [1, "x"]}, "prompt", "mixes"),
    (COMPLETIONS, {"prompt": ["x"] * 129}, "prompt", "1 to 128"),
    (COMPLETIONS, {"prompt": ["x"] * 65, "n": 2}, "n", "n is 2 for 65 prompts"),
    (COMPLETIONS, {"prompt": []}, "prompt", "prompt is an empty list"),
    (COMPLETIONS, {"prompt": ""}, "prompt", "empty"),
    (COMPLETIONS, {"prompt": [600]}, None, "outside the vocabulary"),
    (COMPLETIONS, {"prompt": "x", "echo": True}, "echo", "echo is not supported"),
    (COMPLETIONS, {"prompt": "x", "logprobs": 21}, "logprobs", "0 to 20"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "words"), WRONG, ids=lambda v: str(v)[:40])
def test_what_is_wrong_is_named(
    served: Served, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    error = served.refused(path, **({"messages": USER} if path == CHAT else {}) | body)
    assert error["param"] == param
    assert words in error["message"]


def test_fields_that_change_nothing_are_taken_and_others_refused(served: Served) -> None:
    harmless: dict[str, Any] = dict.fromkeys([*WITHOUT_EFFECT, *IDLE], "x")
    harmless |= {name: values[0] if values else None for name, values in ONLY.items()}
    assert served.chat("x", **harmless).status_code == 200
    for name, values in ONLY.items():
        given = 3 if not values or values[0] != 3 else 4
        error = served.refused(CHAT, messages=USER, **{name: given})
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")


def test_a_prompt_longer_than_the_context(served: Served) -> None:
    error = served.refused(CHAT, messages=[{"role": "user", "content": "y" * CTX_SIZE}])
    assert error["code"] == "context_length_exceeded"
    assert error["n_prompt_tokens"] > error["n_ctx"] == CTX_SIZE


def test_of_a_prompt_far_too_long_little_is_read(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding 16 MB takes half a minute."""
    monkeypatch.setattr("yakvrt.serve.prompts.BEGINNING", 4)
    read, encode = [], Tokenizer.encode

    def noted(self: Tokenizer, text: str, **more: Any) -> list[int]:
        read.append(len(text))
        return encode(self, text, **more)

    monkeypatch.setattr(Tokenizer, "encode", noted)
    most = served.model.tokenizer.max_token_chars
    for n, n_read in ((50_000, 0), (most * CTX_SIZE, 4 * CTX_SIZE)):
        for path, body in (
            (CHAT, {"messages": [{"role": "user", "content": "y" * (n - 100)}]}),
            (COMPLETIONS, {"prompt": "y" * n}),
        ):
            read.clear()
            error = served.refused(path, **body)
            assert (error["code"], error["n_ctx"]) == ("context_length_exceeded", CTX_SIZE)
            assert f"more than {CTX_SIZE} tokens" in error["message"]
            assert max(read, default=0) == n_read


def test_texts_and_ids_beyond_limits(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yakvrt.serve.info.MAX_TEXT_CHARS", 9)
    monkeypatch.setattr("yakvrt.serve.info.MAX_TOKENS", 9)
    assert served.post("/tokenize", content="y" * 9).is_success
    assert served.refused("/tokenize", 413, content="y" * 10)["param"] == "content"
    assert served.post("/detokenize", tokens=[5] * 9).is_success
    assert served.refused("/detokenize", tokens=[5] * 10)["param"] == "tokens"


def test_slow_grammars_texts_and_files_hold_up_no_answer(served: Served) -> None:
    client = other(served, max_waiting=1)
    known = {"prompt": "x", "max_tokens": 2, "grammar": 'root ::= "known"'}
    assert client.post(COMPLETIONS, json=known).is_success
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    go = threading.Event()
    kinds = ((service.grammars, MAX_CHECKS), (service.texts, TEXT_THREADS), (service.files, 1))
    with ThreadPoolExecutor(MAX_CHECKS + TEXT_THREADS + 4) as clients:
        for workers, n in kinds:
            for _ in range(n + 1):
                clients.submit(lambda each: asyncio.run(each.run(go.wait, 30)), workers)
        try:
            until = time.monotonic() + 10
            while any(workers._n_held <= n for workers, n in kinds):
                assert time.monotonic() < until
                time.sleep(0.005)
            body = {"prompt": "x", "max_tokens": 2}
            assert client.post(COMPLETIONS, json=body).is_success
            assert client.post(COMPLETIONS, json=known).is_success
            for path, more in (
                (COMPLETIONS, body | {"grammar": 'root ::= "new"'}),
                ("/tokenize", {"content": "x"}),
                ("/slots/0?action=save", {"filename": "x"}),
            ):
                response = client.post(path, json=more)
                assert response.status_code == 503
                assert response.json()["error"]["code"] == "overloaded"
        finally:
            go.set()
    service.prompts.close()
    assert client.post(COMPLETIONS, json=body).json()["error"]["code"] == "shutting_down"


def test_bodies_that_are_too_long(served: Served) -> None:
    told = served.http.post(COMPLETIONS, content=b"x" * (MAX_BODY + 1))
    untold = served.http.post(COMPLETIONS, content=iter([b"x" * 4096] * (MAX_BODY // 4096 + 1)))
    for response in (told, untold):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
    with served.raw() as sock:  # refused before it comes
        head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n"
        sock.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 413")


def test_bodies_have_a_budget_together() -> None:
    """Clients that send slowly, or wait for their answer, would hold it otherwise."""

    async def read() -> bool:
        answered = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            for _ in range(2):
                await receive()
            await answered.wait()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"x" * 30}

        budget = BodyBudget(app, 100)
        first, second = (asyncio.ensure_future(budget({}, receive, None)) for _ in range(2))  # type: ignore[arg-type]
        with pytest.raises(ApiError, match="too many long requests"):
            await second
        is_held = not first.done()
        answered.set()
        await first
        await budget({}, receive, None)  # type: ignore[arg-type]
        return is_held

    assert asyncio.run(read())


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
    ],
    ids=["bytes", "version", "length", "head"],
)
def test_what_is_no_http(served: Served, data: bytes) -> None:
    with served.raw() as sock:
        sock.sendall(data)
        assert read_all(sock)[:12] in (b"HTTP/1.1 400", b"")  # a reset may take the answer along
    assert served.http.get("/health").status_code == 200


def test_chats_that_the_template_cannot_render(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    error = served.refused(CHAT, messages=[{"role": "user", "content": "unspeakable"}])
    assert error["message"].endswith("(never); change them")
    assert (
        served.refused(CHAT, messages=USER, chat_template_kwargs={"self": 1})["param"]
        == "chat_template_kwargs"
    )
    monkeypatch.setattr(Tokenizer, "has_chat_template", False)
    assert served.refused(CHAT, messages=USER)["code"] == "no_chat_template"


def test_a_head_that_is_too_long_and_comes_at_once(served: Served) -> None:
    with served.raw() as sock:
        sock.sendall(
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            + b"X: yyyyyy\r\n" * 10_000
            + b"\r\n"
        )
        assert read_all(sock)[:12] in (b"HTTP/1.1 400", b"")
    client = other(served)
    assert client.get("/health", headers={"x": "y" * 65_000}).is_success
    assert client.get("/health", headers={"x": "y" * 66_000}).status_code == 400


def test_an_old_client(served: Served) -> None:
    with served.raw() as sock:
        sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 200")


def test_errors_of_paths(served: Served) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", CHAT, 405),
        ("POST", "/v1/embeddings", 501),
        ("POST", f"/slots/{'9' * 5000}?action=erase", 404),
    ):
        response = served.http.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["type"]
    assert served.http.options(CHAT).status_code == 405  # CORS is off


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_within_a_step(served: Served, stream: bool) -> None:
    with served.pace.of(0.05), served.raw() as sock:
        sock.sendall(request_bytes(served, COMPLETIONS, LONG | {"stream": stream}))
        while served.model.scheduler.n_running == 0:
            time.sleep(0.005)
        if stream:
            sock.recv(10)
        sock.close()
        left = time.monotonic()
        served.wait_idle()
        assert time.monotonic() - left < 3  # not the 20 s of 400 steps, also on a busy machine


def test_when_too_many_wait(served: Served) -> None:
    with busy(served, N_SLOTS + MAX_WAITING):
        response = served.post(COMPLETIONS, prompt="x", n=2)
        assert served.refused(COMPLETIONS, prompt="x", n=MAX_WAITING + 1)["param"] == "n"
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "overloaded"
        assert served.http.get("/health").status_code == 200
        assert served.model.scheduler.n_waiting == MAX_WAITING


def test_choices_are_submitted_all_or_none(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when a bug stops them half way."""
    submit, made = served.model.scheduler.submit, []

    def fail_second(*args: Any, **more: Any) -> Any:
        if made:
            raise KeyError("bug")
        made.append(submit(*args, **more))
        return made[0]

    monkeypatch.setattr(served.model.scheduler, "submit", fail_second)
    with served.pace.of(0.02):
        assert other(served).post(COMPLETIONS, json=LONG | {"n": 2}).status_code == 500
        made[0].result(10)
    assert made[0].finish_reason == "abort"


def test_streams_that_wait_are_kept_alive(served: Served) -> None:
    """And an answer that fails says so, whole or streamed."""
    with busy(served, N_SLOTS), served.raw() as sock:
        sock.sendall(request_bytes(served, CHAT, {"messages": USER, "stream": True}))
        data = b""
        while b": ping\n\n" not in data:
            data += sock.recv(65536)
    served.wait_idle()
    nothing = {str(i): -1e39 for i in range(512)}
    error = served.refused(CHAT, 500, messages=USER, logit_bias=nothing)
    assert (error["type"], error["code"]) == ("server_error", "generation_failed")
    lines = served.chat("x", logit_bias=nothing, stream=True).text.split("\n\n")
    assert json.loads(lines[-3].removeprefix("data: ")) == {"error": error}
    assert lines[-2:] == ["data: [DONE]", ""]


def test_time_limits(served: Served) -> None:
    client = other(served, timeout_s=1.0)
    with busy(served, 1):
        made = client.post(COMPLETIONS, json=LONG).json()
        assert made["choices"][0]["finish_reason"] == "length"
        assert 0 < made["usage"]["completion_tokens"] < 100
    with busy(served, N_SLOTS):
        response = client.post(COMPLETIONS, json=LONG)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "timeout")


def test_clients_that_do_not_read_or_send(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UNREAD_S", 0.3)
    monkeypatch.setattr(connection, "REQUEST_S", 0.3)
    listening = served.server._socket
    before = listening.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    try:
        with socket.socket() as reader, served.pace.of(0.002):
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(("127.0.0.1", served.server.port))
            body = {
                "messages": USER,
                "stream": True,
                "ignore_eos": True,
                "logprobs": True,
                "top_logprobs": 20,
            }
            reader.sendall(request_bytes(served, CHAT, body))
            started = time.monotonic()
            while served.model.scheduler.n_running == 0:
                time.sleep(0.005)
            served.wait_idle()
            assert time.monotonic() - started < 8
            reader.settimeout(5)
            assert b"[DONE]" not in read_all(reader)
    finally:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, before // 2)
    for data in (
        b"",
        b"POST /tok",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
    ):
        with served.raw() as sock:
            sock.sendall(data)
            assert read_all(sock) == b""


def test_too_many_connections(served: Served) -> None:
    held = [served.raw() for _ in range(45)]
    held[-1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"too_many_connections" in read_all(held[-1])
    held[0].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert held[0].recv(100).startswith(b"HTTP/1.1 200")
    for each in held:
        each.close()


def test_keys(served: Served) -> None:
    client = other(served, api_keys=("right", "also"))
    assert client.get("/health").status_code == 200
    assert client.get("/").status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}, {"X-Api-Key": "\xff"}):
        for path in ("/v1/models", "/metrics", "/slots", "/props"):
            response = client.get(path, headers={k: v.encode("latin-1") for k, v in headers.items()})
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
    for headers in ({"Authorization": "Bearer also"}, {"X-Api-Key": "right"}):
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_other_hosts_and_origins(served: Served) -> None:
    client = other(served)
    for host, status in (
        ("localhost:8080", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8080", 200),
        ("evil.example", 403),
        ("localhost.evil.example:8080", 403),
        ("", 403),
        ("[", 403),
    ):
        assert client.get("/health", headers={"Host": host}).status_code == status, host
    assert (
        other(served, allowed_hosts=("ai.example",)).get("/health", headers={"Host": "ai.example"}).is_success
    )
    named = other(served, host="0.0.0.0", allowed_hosts=("ai.example",))
    assert named.get("/health", headers={"Host": "localhost:8080"}).is_success
    assert named.get("/health", headers={"Host": "other.example"}).status_code == 403
    assert other(served, host="0.0.0.0").get("/health", headers={"Host": "any.example"}).is_success
    body = {"content": "x"}
    for origin, status in (("http://localhost", 200), ("https://evil.example", 403), ("null", 403)):
        response = client.post("/tokenize", json=body, headers={"Origin": origin})
        assert response.status_code == status
        assert "access-control-allow-origin" not in response.headers


def test_cors_where_it_is_asked_for(served: Served) -> None:
    client = other(served, cors_origins=("https://app.example",), api_keys=("k",))
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,content-type"
    response = client.options(CHAT, headers=asked)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    for origin, status in (("https://app.example", 200), ("https://evil.example", 403)):
        headers = {"Origin": origin, "Authorization": "Bearer k"}
        made = client.post("/tokenize", json={"content": "x"}, headers=headers)
        assert made.status_code == status
        assert ("access-control-allow-origin" in made.headers) is (status == 200)


def test_before_there_is_a_model_and_after(served: Served) -> None:
    service = Service(served.settings)
    client = TestClient(make_app(service), base_url="http://localhost")
    for path in ("/health", "/v1/models"):
        response = client.get(path)
        assert response.status_code == 503
        loading = {"message": "Loading model", "type": "unavailable_error", "param": None, "code": 503}
        assert response.json() == {"error": loading}
    assert client.post(CHAT, json={}).status_code == 503
    assert "yakvrt:ready 0" in client.get("/metrics").text
    failed = SimpleNamespace(scheduler=SimpleNamespace(failure=MemoryError("no more")))
    service.provide(failed)  # type: ignore[arg-type]
    assert client.get("/health").json()["error"]["code"] == "model_failed"
    service = Service(served.settings)
    client = TestClient(make_app(service), base_url="http://localhost")
    service.failure = ValueError("no such file")
    assert "no such file" in client.get("/health").json()["error"]["message"]
    service.drain()
    assert client.get("/health").json()["error"]["code"] == "shutting_down"


def test_what_is_switched_off_is_not_there(served: Served) -> None:
    client = other(served, has_metrics=False, has_slots=False, has_page=False)
    assert [client.get(path).status_code for path in ("/metrics", "/slots", "/")] == [404] * 3
    unsaved = other(served, slot_save_path=None).post("/slots/0?action=save", json={"filename": "x"})
    assert unsaved.status_code == 501
    assert "--slot-save-path" in unsaved.json()["error"]["message"]
