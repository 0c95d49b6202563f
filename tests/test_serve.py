"""The server by its clients: openai's package, httpx and curl's bytes. Answers are the engine's own."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import Any

import openai
import pytest
from served import CTX_SIZE, N_SLOTS, Served
from starlette.testclient import TestClient

from yakvrt.constraint import Constraint
from yakvrt.grammar import Grammar, GrammarError
from yakvrt.sampler import SamplingParams
from yakvrt.serve.app import make_app
from yakvrt.serve.service import Service

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def expected(served: Served, text: str, n: int) -> str:
    """What the library answers greedily."""
    engine = served.model.engine
    ids = engine.tokenizer.encode_chat([{"role": "user", "content": text}])
    params = SamplingParams(temperature=0, max_tokens=n)
    return served.model.scheduler.submit(ids, params).result(30)


def test_openai_client(served: Served, client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]
    text = expected(served, "Hello", 12)
    made = client.chat.completions.create(model="any", messages=messages, temperature=0, max_tokens=12)
    assert made.choices[0].message.content == text
    assert made.choices[0].message.role == "assistant"
    assert made.choices[0].finish_reason in ("length", "stop")
    assert made.model == "tiny"
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    assert made.usage.prompt_tokens_details is not None
    assert made.usage.prompt_tokens_details.cached_tokens == made.usage.prompt_tokens - 1
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "yakvrt"
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.models.retrieve("gpt-5")
    with pytest.raises(openai.InternalServerError, match="no embeddings"):
        client.embeddings.create(model="tiny", input="x")


def test_openai_client_streams(served: Served, client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=messages,
            temperature=0,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    told = "".join(each.choices[0].delta.content or "" for each in chunks[:-1])
    assert told == expected(served, "Hello", 12)
    assert [each.choices[0].finish_reason for each in chunks[:-1]][:-1] == [None] * (len(chunks) - 2)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 12
    assert {each.id for each in chunks} == {chunks[0].id}
    timings = chunks[-1].model_dump()["timings"]
    assert timings["predicted_n"] == chunks[-1].usage.completion_tokens
    assert chunks[-1].model_dump()["kv"]["method"] == "full"


def test_openai_client_async(served: Served) -> None:
    """More at a time than there are slots."""

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:

            async def one(i: int) -> str:
                stream = await client.chat.completions.create(
                    model="tiny",
                    messages=[{"role": "user", "content": f"Number {i}"}],
                    temperature=0,
                    max_tokens=10,
                    stream=True,
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, range(N_SLOTS + 3)))

    assert asyncio.run(ask()) == [expected(served, f"Number {i}", 10) for i in range(N_SLOTS + 3)]


def test_curl(served: Served) -> None:
    """The bytes of a stream, as a program without a library sees them."""
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "max_tokens": 3,
        "temperature": 0,
    }
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-sN", "-i", served.url + CHAT, "-d", json.dumps(body)]
    shown = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout.decode()
    head, _, rest = shown.partition("\r\n\r\n")
    assert "content-type: text/event-stream" in head
    *events, last = rest.rstrip("\n").split("\n\n")
    assert last == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event != ": ping"]
    assert "usage" not in chunks[0]
    assert "timings" in chunks[-1]
    assert chunks[-1]["choices"][0]["finish_reason"]


def test_completions(served: Served) -> None:
    ids = served.post("/tokenize", content="ab").json()["tokens"]
    same: dict[str, Any] = {"temperature": 0, "max_tokens": 5}
    by_text = served.post("/v1/completions", prompt="ab", **same).json()
    by_ids = served.post("/v1/completions", prompt=ids, **same).json()
    both = served.post("/v1/completions", prompt=["ab", "cd"], n=2, **same).json()
    assert by_text["object"] == "text_completion"
    assert by_text["choices"] == by_ids["choices"]
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    assert both["choices"][0]["text"] == both["choices"][1]["text"] == by_text["choices"][0]["text"]
    assert both["usage"]["prompt_tokens"] == 4
    assert (
        served.post("/v1/completions", prompt=[ids, ids], **same).json()["choices"][1]["text"]
        == (by_text["choices"][0]["text"])
    )
    with served.http.stream(
        "POST", "/v1/completions", json={"prompt": "ab", "stream": True} | same
    ) as stream:
        chunks = [line[6:] for line in stream.iter_lines() if line.startswith("data: {")]
    assert "".join(json.loads(each)["choices"][0]["text"] for each in chunks) == by_text["choices"][0]["text"]


def test_seeds_and_several_choices(served: Served) -> None:
    def texts(**more: Any) -> list[str]:
        made = served.chat("Tell", temperature=1.5, max_tokens=12, **more).json()
        return [choice["message"]["content"] for choice in made["choices"]]

    four = texts(seed=7, n=4)
    assert four == texts(seed=7, n=4)
    assert len(set(four)) > 1
    assert texts(seed=8) == four[1:2]
    made = served.chat("Tell", n=3, seed=1, temperature=1, stream=True, ignore_eos=True)
    chunks = [json.loads(line[6:]) for line in made.text.splitlines() if line.startswith("data: {")]
    ends = [c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]]
    assert sorted(ends) == [0, 1, 2]
    assert ["timings" in chunk for chunk in chunks].count(True) == 1


def test_stop_bias_penalties(served: Served) -> None:
    plain = served.chat("Go", max_tokens=20, ignore_eos=True).json()["choices"][0]["message"]["content"]
    cut = plain[5:7]
    made = served.chat("Go", max_tokens=20, ignore_eos=True, stop=[cut, "never"]).json()["choices"][0]
    assert made["message"]["content"] == plain[: plain.index(cut)]
    assert made["finish_reason"] == "stop"
    biased = served.chat("Go", logit_bias={"100": 1000}, max_tokens=4).json()["choices"][0]["message"][
        "content"
    ]
    assert len(set(biased)) == 1
    punished = served.chat("Go", logit_bias={"100": 1000}, presence_penalty=2000, max_tokens=4).json()
    assert len(set(punished["choices"][0]["message"]["content"])) > 1
    made = served.chat("Go", logit_bias={"100": 1000}, stop_token_ids=[100]).json()
    assert made["choices"][0]["finish_reason"] == "stop"
    assert made["usage"]["completion_tokens"] == 1


def test_logprobs(served: Served) -> None:
    asked: dict[str, Any] = {"max_tokens": 6, "ignore_eos": True}
    made = served.chat("Go", logprobs=True, top_logprobs=3, **asked).json()["choices"][0]
    entries = made["logprobs"]["content"]
    assert len(entries) == 6
    assert (
        b"".join(bytes(each["bytes"]) for each in entries).decode("utf-8", "replace")
        == (made["message"]["content"])
    )
    for each in entries:
        assert each["logprob"] == each["top_logprobs"][0]["logprob"] <= 0
        assert len(each["top_logprobs"]) == 3
    streamed = served.chat("Go", logprobs=True, stream=True, **asked).text
    chunks = [
        json.loads(line[6:])["choices"][0] for line in streamed.splitlines() if line.startswith("data: {")
    ]
    told = [one for each in chunks if each["logprobs"] for one in each["logprobs"]["content"]]
    assert [one["bytes"] for one in told] == [each["bytes"] for each in entries]
    prompt = served.post("/apply-template", messages=[{"role": "user", "content": "Go"}]).json()["prompt"]
    older = served.post("/v1/completions", prompt=prompt, logprobs=2, temperature=0, **asked).json()
    found = older["choices"][0]["logprobs"]
    assert found["token_logprobs"] == [each["logprob"] for each in entries]
    assert found["text_offset"][:2] == [0, len(found["tokens"][0])]
    assert all(len(best) == 2 for best in found["top_logprobs"])


def test_response_format(served: Served, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    made = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "JSON"}],
        seed=1,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": schema, "strict": True},
        },
    )
    assert json.loads(made.choices[0].message.content or "")["a"] in (1, 2)
    made_too = served.chat("JSON", max_tokens=200, grammar='root ::= "yes" | "no"').json()
    assert made_too["choices"][0]["message"]["content"] in ("yes", "no")
    for wrong, words in (
        ({"response_format": {"type": "xml"}}, "must be text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "schema is missing"),
        ({"response_format": {"type": "json_object", "x": 1}}, "x is not supported"),
        ({"grammar": "root ::= ("}, "does not compile"),
        ({"grammar": 'root ::= "a"', "json_schema": {}}, "exclude each other"),
    ):
        assert words in served.refused(CHAT, messages=[{"role": "user", "content": "x"}], **wrong)["message"]

    large = {"enum": ["x" * 100]}
    monkeypatch.setattr("yakvrt.serve.constraints.MAX_CHARS", 90)
    monkeypatch.setattr(Grammar, "__post_init__", lambda self: pytest.fail("made although it is too long"))
    for wrong in (
        {"json_schema": large},
        {"response_format": {"type": "json_object", "schema": large}},
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": large}}],
            "tool_choice": "required",
        },
    ):
        error = served.refused(CHAT, messages=[{"role": "user", "content": "x"}], **wrong)
        assert "bytes; shorten it to 90" in error["message"]
    monkeypatch.undo()

    def fail(self: Constraint, vocab_size: int) -> None:
        raise GrammarError("the grammar fails (too much work); simplify it")

    monkeypatch.setattr(Constraint, "allowed", fail)  # found only while it is followed
    error = served.refused(CHAT, messages=[{"role": "user", "content": "x"}], grammar='root ::= "a"')
    assert (error["type"], error["code"]) == ("invalid_request_error", "grammar_failed")


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "system", "content": None}])
def test_only_an_assistant_may_say_nothing(served: Served, message: dict[str, Any]) -> None:
    error = served.refused(CHAT, messages=[message])
    assert error["param"] == "messages[0].content"
    assert "content is missing" in error["message"]


SWITCH: Any = {
    "type": "function",
    "function": {
        "name": "switch",
        "description": "Switches the light",
        "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
    },
}
DIM: Any = {"type": "function", "function": {"name": "dim", "parameters": {"type": "object"}}}


def test_tools(served: Served, client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Light!"}]
    chosen: Any = {"type": "function", "function": {"name": "switch"}}
    made = client.chat.completions.create(
        model="tiny", messages=messages, tools=[DIM, SWITCH], tool_choice=chosen, temperature=0
    )
    message = made.choices[0].message
    assert message.content is None
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert call.function.name == "switch"
    assert isinstance(json.loads(call.function.arguments)["on"], bool)
    assert made.choices[0].finish_reason == "tool_calls"
    streamed = client.chat.completions.create(
        model="tiny",
        messages=messages,
        tools=[SWITCH],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        stream=True,
    )
    chunks = [chunk.choices[0] for chunk in streamed]
    (told,) = [one for chunk in chunks for one in chunk.delta.tool_calls or []]
    assert told.index == 0
    assert told.function is not None
    assert told.function.name == "switch"
    assert json.loads(told.function.arguments or "").keys() == {"on"}
    assert chunks[-1].finish_reason == "tool_calls"
    # The answer goes back with what the function returned; a conversation may go on without a call.
    messages += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    body = {"messages": messages, "tools": [SWITCH]}
    prompt = served.post("/apply-template", **body, temperature=0).json()["prompt"]
    assert '<tool_call>{"name": "switch", "arguments": {"on": ' in prompt
    assert "<|im_start|>tool\ndone<|im_end|>" in prompt
    assert '"description": "Switches the light"' in prompt
    for choice in ("none", "auto"):
        again = served.chat("", **body, tool_choice=choice, parallel_tool_calls=choice == "none").json()
        assert again["choices"][0]["message"]["content"]
        assert (again["usage"]["prompt_tokens"] < 200) is (choice == "none")


def test_a_call_that_is_cut(served: Served) -> None:
    """Its beginning is no content, whole or streamed."""
    asked: dict[str, Any] = {"tools": [SWITCH], "tool_choice": "required", "max_tokens": 20}
    made = served.chat("Light!", **asked).json()
    assert made["usage"]["completion_tokens"] == 20
    (choice,) = made["choices"]
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None}
    assert choice["finish_reason"] == "length"
    lines = served.chat("Light!", stream=True, **asked).text.splitlines()
    told = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    assert [each["delta"] for each in told] == [{"role": "assistant", "content": ""}, {}]
    assert told[-1]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "retrieval"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [SWITCH] * 129}, "tools"),
        ({"tools": [SWITCH], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [SWITCH], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [SWITCH], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [SWITCH], "response_format": {"type": "json_object"}}, "tools"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages[0].tool_calls[0]"),
    ],
    ids=lambda v: str(v)[:60],
)
def test_tools_that_are_none(served: Served, body: dict[str, Any], param: str) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
    assert served.refused(CHAT, **(asked | body))["param"] == param


def test_tools_of_a_model_that_knows_none(served: Served) -> None:
    from yakvrt.serve.errors import ApiError
    from yakvrt.serve.schema import ChatRequest
    from yakvrt.serve.tools import asked_tools

    asked = ChatRequest(messages=[], tools=[SWITCH], parallel_tool_calls=False)
    with pytest.raises(ApiError, match="no format of calls"):
        asked_tools(asked, None)
    with pytest.raises(ApiError, match="parallel_tool_calls"):
        asked_tools(asked, "llama")


def test_a_server_without_grammars(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    error = served.refused(
        CHAT, 501, messages=[{"role": "user", "content": "x"}], response_format={"type": "json_object"}
    )
    assert "yakvrt[grammar]" in error["message"]


def test_tokens_and_templates(served: Served) -> None:
    text = "<|im_start|>é"
    ids = served.post("/tokenize", content=text).json()["tokens"]
    assert len(ids) == 3
    assert served.post("/detokenize", tokens=ids).json() == {"content": text}
    plain = served.post("/tokenize", content=text, parse_special=False).json()["tokens"]
    assert len(plain) == len(text.encode())
    pieces = served.post("/tokenize", content=text, with_pieces=True).json()["tokens"]
    assert [each["piece"] for each in pieces] == ["<|im_start|>", [0xC3], [0xA9]]
    prompt = served.post(
        "/apply-template",
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
        ],
        chat_template_kwargs={"greeting": "hey"},
    ).json()["prompt"]
    assert prompt == "<|im_start|>system\na\nb<|im_end|>\nhey<|im_start|>assistant\n"
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
    called, told = {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "x"}
    error = served.refused("/apply-template", messages=[called, told])
    assert (error["param"], "surrogates" in error["message"]) == ("messages", True)


def test_an_assistants_last_message_is_continued(served: Served) -> None:
    """Over HTTP and in the library; the answer is what follows."""
    user, begun = {"role": "user", "content": "Count"}, {"role": "assistant", "content": "1, 2,"}
    messages: Any = [user, begun]
    prompt = served.post("/apply-template", messages=messages).json()["prompt"]
    assert prompt == "<|im_start|>user\nCount<|im_end|>\n<|im_start|>assistant\n1, 2,"
    same: dict[str, Any] = {"temperature": 0, "max_tokens": 6}
    expected = served.post("/v1/completions", prompt=prompt, **same).json()["choices"][0]["text"]
    for more in ({}, {"continue_final_message": True}):
        made = served.post(CHAT, messages=messages, **same, **more).json()
        assert made["choices"][0]["message"]["content"] == expected
    assert served.model.scheduler.submit(messages, **same).result(30) == expected
    calls = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
    for wrong, words in (
        ([user, begun, begun], "both an assistant's"),
        ([user, {"role": "assistant", "tool_calls": calls}], "with tool_calls"),
    ):
        for path in (CHAT, "/apply-template"):
            error = served.refused(path, messages=wrong)
            assert (error["param"], words in error["message"]) == ("messages", True)
    for last, value in ((begun, False), (user, True)):
        error = served.refused(CHAT, messages=[user, last], continue_final_message=value)
        assert error["param"] == "continue_final_message"


def test_props_health_and_metrics(served: Served) -> None:
    assert served.http.get("/health").json() == {"status": "ok"}
    props = served.http.get("/props").json()
    assert props["total_slots"] == N_SLOTS
    assert props["default_generation_settings"]["n_ctx"] == CTX_SIZE
    assert "im_start" in props["chat_template"]
    served.chat("Count")
    text = served.http.get("/metrics").text
    from prometheus_client.parser import text_string_to_metric_families

    found = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    counts = served.model.scheduler.counts
    assert found["yakvrt:tokens_predicted_total"] == counts.predicted_tokens
    assert found["yakvrt:slots"] == N_SLOTS
    assert found["yakvrt:requests_processing"] == 0
    assert found["yakvrt:time_to_first_token_seconds_count"] > 0
    assert found["yakvrt:kv_bytes"] > 0


def check_slot_files(served: Served, number: int, n_bytes: int) -> None:
    """They are counted, may be written anew within the limit, and are deleted by name."""
    service = Service(replace(served.settings, slot_save_bytes=n_bytes * 3 // 2))
    service.provide(served.model)
    client = TestClient(make_app(service), base_url="http://localhost")
    listed = client.get("/slots/files").json()
    assert listed["files"] == [{"filename": "talk.kv", "n_bytes": n_bytes}]
    assert listed["max_bytes"] == n_bytes * 3 // 2
    for name, status in (("talk.kv", 200), ("more.kv", 507)):
        made = client.post(f"/slots/{number}?action=save", json={"filename": name})
        assert made.status_code == status
    assert made.json()["error"]["code"] == "slot_files_full"
    for name, status in (("talk.kv", 200), ("talk.kv", 404), ("%2e%2e%2fx", 404), ("-x", 400)):
        assert client.delete(f"/slots/files/{name}").status_code == status, name
    assert client.get("/slots/files").json()["files"] == []


def test_slots(served: Served) -> None:
    served.wait_idle()
    for number in range(N_SLOTS):
        assert "n_erased" in served.post(f"/slots/{number}?action=erase").json()
    first = served.chat("Remember this", max_tokens=5).json()
    (number,) = (slot["id"] for slot in served.http.get("/slots").json() if slot["n_tokens"])
    saved = served.post(f"/slots/{number}?action=save", filename="talk.kv").json()
    assert saved["n_saved"] == first["usage"]["total_tokens"] - 1
    assert saved["n_written"] > 0
    assert served.post(f"/slots/{number}?action=erase").json() == {
        "id_slot": number,
        "n_erased": saved["n_saved"],
    }
    restored = served.post(f"/slots/{number}?action=restore", filename="talk.kv").json()
    assert restored["n_restored"] == saved["n_saved"]
    again = served.chat("Remember this", max_tokens=5).json()
    assert again["choices"] == first["choices"]
    assert again["timings"]["cache_n"] == first["usage"]["prompt_tokens"] - 1
    for path, body, status, words in (
        ("/slots/0?action=save", {"filename": "../x"}, 400, "letters"),
        ("/slots/0?action=save", {"filename": ".hidden"}, 400, "letters"),
        ("/slots/0?action=restore", {"filename": "none.kv"}, 400, "No such file or directory: none.kv"),
        ("/slots/9?action=erase", {}, 404, "there is no slot 9"),
        ("/slots/0?action=burn", {}, 400, "save, restore or erase"),
    ):
        assert words in served.refused(path, status, **body)["message"]
    check_slot_files(served, number, saved["n_written"])
    with (
        served.pace.of(0.02),
        served.http.stream(
            "POST",
            "/v1/completions",
            json={"prompt": "x", "stream": True, "ignore_eos": True, "max_tokens": 400},
        ) as stream,
    ):
        next(stream.iter_lines())
        (busy,) = (slot["id"] for slot in served.http.get("/slots").json() if slot["is_processing"])
        error = served.refused(f"/slots/{busy}?action=erase", 409)
        assert error["code"] == "slot_busy"
    served.wait_idle()


def test_help_is_fast_and_names_what_is_missing() -> None:
    """Flags are shown without the server's packages; without them the verb says how to get them."""
    code = (
        "import sys; sys.modules['starlette'] = None\n"
        "from yakvrt.serve.verb import main\n"
        "slow = {'numpy', 'uvicorn', 'msgspec', 'prometheus_client'} & set(sys.modules)\n"
        "assert not slow, slow\n"
        "raise SystemExit(main(['--port', '0']))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 1
    assert re.fullmatch(
        r"yakvrt: error: the server needs more packages .*pip install 'yakvrt\[server\]'\n", shown.stderr
    )
