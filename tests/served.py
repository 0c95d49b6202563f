"""A server over a tiny model that can write, in a thread; and a tokenizer for it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_files import tiny_copy
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import yakvrt
from yakvrt.draw import Next
from yakvrt.serve.server import Server
from yakvrt.serve.service import Model, Service
from yakvrt.serve.settings import Settings
from yakvrt.session import decode_together

SPECIAL = ("<|pad|>", "<|begin|>", "<|im_end|>", "<|im_start|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% if m.content == 'unspeakable' %}{{ raise_exception('never') }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }} are called as <tool_call>{...}</tool_call>\n{% endif %}"
    "{% if greeting %}{{ greeting }}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CTX_SIZE, N_SLOTS, MAX_WAITING, MAX_BODY = 512, 2, 12, 1 << 16


def write_tokenizer(directory: Path, vocab_size: int = 512) -> None:
    """A token for each byte, and for the other ids a word that encoding never makes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*SPECIAL, *alphabet]
    names += [f"Ġw{i}" for i in range(len(names), vocab_size)]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"eos_token": SPECIAL[2], "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


class Pace:
    """How long a step of all streams takes at least."""

    step_s = 0.0

    def decode(self, *given: Any) -> Sequence[Next]:
        time.sleep(self.step_s)
        return decode_together(*given)

    @contextmanager
    def of(self, step_s: float) -> Iterator[None]:
        self.step_s = step_s
        try:
            yield
        finally:
            self.step_s = 0.0


class Served:
    """The running server and its model."""

    def __init__(self, server: Server, model: Model, settings: Settings, pace: Pace) -> None:
        self.server, self.model, self.settings, self.pace = server, model, settings, pace
        self.url = server.url
        self.http = httpx.Client(base_url=server.url, timeout=30)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def chat(self, text: str, **more: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8}
        return self.post("/v1/chat/completions", **(body | more))

    def refused(self, path: str, status: int = 400, **body: Any) -> dict[str, Any]:
        """The error object."""
        response = self.post(path, **body)
        assert response.status_code == status, response.text
        error: dict[str, Any] = response.json()["error"]
        assert error["message"]
        assert {"type", "param", "code"} < error.keys()
        return error

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=10)

    def wait_idle(self, within_s: float = 10.0) -> None:
        """Until no slot is in use and nobody waits."""
        scheduler = self.model.scheduler
        until = time.monotonic() + within_s
        while scheduler.n_running or scheduler.n_waiting:
            assert time.monotonic() < until
            time.sleep(0.005)


@contextmanager
def serving(directory: Path) -> Iterator[Served]:
    """Serves a tiny model; files go to the directory."""
    write_tokenizer(tiny_copy("qwen3", directory / "tiny"))
    (directory / "slots").mkdir()
    settings = Settings(
        port=0,
        name="tiny",
        max_body_bytes=MAX_BODY,
        max_connections=40,
        max_waiting=MAX_WAITING,
        ping_s=0.2,
        slot_save_path=directory / "slots",
    )
    with pytest.MonkeyPatch.context() as patch:
        pace = Pace()
        patch.setattr("yakvrt.step_loop.decode_together", pace.decode)
        service = Service(settings)
        server = Server(service)
        model = Model(yakvrt.load(str(directory / "tiny"), ctx_size=CTX_SIZE, n_slots=N_SLOTS), settings)
        service.provide(model)
        thread = threading.Thread(target=server.answer)
        thread.start()
        served = Served(server, model, settings, pace)
        try:
            yield served
        finally:
            served.http.close()
            server.stop()
            thread.join(30)
        assert not thread.is_alive()
