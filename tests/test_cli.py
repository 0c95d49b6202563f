"""The command line: flags, variables, exit codes and error lines; then the verbs with the real model."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yakvrt import chat, generate, perplexity, terminal, tokenize
from yakvrt.__main__ import VERBS
from yakvrt.__main__ import main as yakvrt_main
from yakvrt.cli_arguments import cache_type, sampling_overrides
from yakvrt.cli_parsing import parse
from yakvrt.prompt_text import decode_text, unescape

TIMINGS = ("prompt", "predicted")
DATA = Path(__file__).parent / "data" / "golden"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("YAKVRT_") and "CACHE" not in name]:
        monkeypatch.delenv(name)


def flags(*argv: str) -> argparse.Namespace:
    return parse(generate.build_parser(), argv)


def python(*args: str | bytes, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    kwargs = {"capture_output": True, "text": True, "timeout": 120, **kwargs}
    return subprocess.run([sys.executable, *args], **kwargs)


# ---- without a model


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_is_instant(verb: str) -> None:
    best = 9.0
    for _ in range(3):
        started = time.perf_counter()
        shown = python("-X", "importtime", "-m", "yakvrt", verb, "--help")
        best = min(best, time.perf_counter() - started)
    assert shown.returncode == 0
    assert shown.stdout.startswith("usage: ")
    slow = ("numpy", "numba", "rich", "tokenizers", "huggingface_hub", "jinja2")
    loaded = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert not loaded.intersection(slow)
    assert best < 0.3


def test_main_lists_verbs_and_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    assert yakvrt_main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {verb} " in listed for verb in VERBS)
    assert yakvrt_main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("yakvrt ")
    assert yakvrt_main(["generat"]) == 2
    assert "did you mean 'generate'?" in capsys.readouterr().err
    assert yakvrt_main(["zzz"]) == 2
    assert "the verbs are generate, chat" in capsys.readouterr().err
    assert yakvrt_main([]) == 2


def test_flags_have_llama_cpps_names() -> None:
    argv = "-n 5 -s 7 --temp 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --repeat-penalty 1.1 --repeat-last-n 9 "
    argv += (
        "--presence-penalty 0.2 --frequency-penalty 0.3 -l 5+1 -l 6-2.5 -l 7-inf --ignore-eos -r A --stop B "
    )
    argv += "--stop-id 3 --stop-id 4,5 --json --logprobs 2 -p x"
    assert sampling_overrides(flags(*argv.split())) == {
        "max_tokens": 5,
        "seed": 7,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "repeat_last_n": 9,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "logit_bias": {5: 1.0, 6: -2.5, 7: -float("inf")},
        "ignore_eos": True,
        "stop": ["A", "B"],
        "stop_ids": {3, 4, 5},
        "logprobs": 2,
    }
    assert sampling_overrides(flags("-p", "x")) == {}
    for name in ("-n", "--predict", "--n-predict", "--max-tokens"):
        assert flags(name, "-1").max_tokens == -1
    assert sampling_overrides(flags("-n", "-2")) == {"max_tokens": -1}
    args = flags(
        "-ub", "64", "-b", "32", "-t", "2", "-c", "99", "-ctk", "bf16", "-no-cnv", "-sys", "S", "-m", "M"
    )
    assert (args.ubatch_size, args.batch_size, args.threads, args.ctx_size) == (64, 32, 2, 99)
    assert (args.raw, args.system_prompt, args.model, cache_type(args)) == (True, "S", "M", "bf16")
    assert flags("--prompt-ids", "[1, 2,3]").prompt_ids == [1, 2, 3]


def test_variables_stand_in_for_flags_and_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"CTX_SIZE": "77", "TEMP": "0.25", "RAW": "1", "OFFLINE": "off", "STOP": "END", "TOP_K": ""}
    for name, value in {**variables, "MAX_TOKENS": "6", "CACHE_TYPE_K": "f32", "PROMPT": "hello"}.items():
        monkeypatch.setenv(f"YAKVRT_{name}", value)
    args = flags()
    assert (args.ctx_size, args.temperature, args.raw, args.offline) == (77, 0.25, True, False)
    assert (args.stop, args.max_tokens, args.cache_type_k, args.prompt) == (["END"], 6, "f32", "hello")
    assert args.top_k is None
    args = flags("-c", "5", "--stop", "X", "-f", "file")
    assert (args.ctx_size, args.stop, args.prompt, args.file) == (5, ["X"], None, "file")


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("CTX_SIZE", "many", "YAKVRT_CTX_SIZE: 'many'"),
        ("CACHE_TYPE_K", "q2", "none of f32, f16, bf16"),
        ("RAW", "perhaps", "neither 1 nor 0"),
        ("FILE", "f", "both file and prompt"),
    ],
)
def test_bad_variables_are_named(
    name: str, value: str, complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("YAKVRT_PROMPT", "p")
    monkeypatch.setenv(f"YAKVRT_{name}", value)
    with pytest.raises(SystemExit, match="2"):
        flags()
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


USAGE = [
    (generate, "", "no prompt"),
    (generate, "-p a -f b", "not allowed with"),
    (generate, "-p a --prompt-ids 1", "not allowed with"),
    (generate, "--prompt-ids 1,x", "token ids like 1,2,3"),
    (generate, "--prompt-ids -4", "token ids like 1,2,3"),
    (generate, "--prompt-ids 1 -sys x", "bypasses"),
    (generate, "-p a --raw --chat-template-kwargs {}", "bypasses"),
    (generate, "-p a --chat-template-kwargs [1]", "not a JSON object"),
    (generate, "-p a -ctk f16 -ctv f32", "same type"),
    (generate, "-p a --display-prompt --no-display-prompt", "not allowed with"),
    (generate, "-p a --logprobs 2", "--json"),
    (generate, "-p a --temp -1", "temperature is -1"),
    (generate, "-p a --temp warm", "not a number"),
    (generate, "-p a --top-p 1.5", "top_p is 1.5"),
    (generate, "-p a -s -7", "seed is -7"),
    (generate, "-p a -l 5", "bias like"),
    (generate, "-p a -l 5+inf", "bias like"),
    (generate, "-p a -c -1", "at least 0"),
    (generate, "-p a --stop=", "stop string"),
    (generate, "-p a --kv nothing", "invalid choice"),
    (generate, "-p a --tempe 1", "unrecognized"),
    (generate, "-p a --dtype q3", "invalid choice"),
    (chat, "-ctk f16 -ctv f32", "same type"),
    (perplexity, "", "no text"),
    (perplexity, "-p a --kl-divergence", "--kl-divergence-base"),
    (perplexity, "-p a --kl-divergence --kl-divergence-base f", "leave -p"),
    (perplexity, "-p a --chunks 0", "--chunks 0"),
    (perplexity, "-p a -c 3", "at least 4"),
    (perplexity, "-p a --ppl-stride 5", "invalid choice"),
    (tokenize, "", "nothing to do"),
    (tokenize, "-p a --ids 1", "not allowed with"),
    (tokenize, "--ids 1 --chat", "--chat takes a text"),
    (tokenize, "-p a -sys x", "need --chat"),
]


@pytest.mark.parametrize(("verb", "argv", "complaint"), USAGE)
def test_contradictions_end_with_2_and_one_sentence(
    verb: Any, argv: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = verb.main(argv.split())
    except SystemExit as end:
        code = end.code
    shown = capsys.readouterr()
    assert code == 2
    assert shown.err.startswith("yakvrt: error: ")
    assert complaint in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_bad_prompts_end_with_1_before_any_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin1").write_bytes(b"caf\xe9")
    (tmp_path / "empty").write_bytes(b"\n")
    for argv, complaint in (
        (["-p", ""], "prompt is empty"),
        (["-f", str(tmp_path / "empty")], "prompt is empty"),
        (["-f", str(tmp_path / "latin1")], "not UTF-8 text (byte 3)"),
        (["-f", str(tmp_path / "none")], "No such file or directory"),
        (["-f", str(tmp_path)], "Is a directory"),
    ):
        assert generate.main(argv) == 1
        error = capsys.readouterr().err
        assert error.startswith("yakvrt: error: ")
        assert complaint in error
        assert error.count("\n") == 1


def test_text_is_taken_as_it_is_less_one_newline() -> None:
    assert decode_text(b"a\r\nb\n\n", "f") == "a\r\nb\n"
    assert unescape(r"a\nb\t\\n\x41\q\"") == 'a\nb\t\\nA\\q"'


def test_escapes_are_bytes_as_llama_cpps_are() -> None:
    assert unescape(r"\xe6\xbc\xa2") == "漢"
    assert unescape(r"漢\xe5\xad\x97\n") == "漢字\n"
    assert unescape(r"\x4") == r"\x4"
    assert unescape("\ud800") == "\ud800"
    for text, byte in ((r"\xe6 a", "xe6"), (r"漢\xa2", "xa2"), (r"\xe6漢", "xe6"), (r"\n\xff", "xff")):
        with pytest.raises(ValueError, match=rf"^an escape \\{byte} begins no UTF-8 character; --no-escape"):
            unescape(text)


def test_escapes_that_are_no_text_end_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, code in ((["-p", r"\xff"], 1), (["-p", "x", "-r", r"\xff"], 2)):
        assert generate.main(argv) == code
        error = capsys.readouterr().err
        assert "begins no UTF-8 character" in error
        assert error.count("\n") == 1


def fail(error: BaseException) -> Callable[[], int]:
    def verb() -> int:
        raise error

    return verb


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("two\n lines"), 1, "error: two lines"),
        (terminal.UsageError("no"), 2, "error: no"),
        (FileNotFoundError(2, "No such file", "f"), 1, "error: No such file: f"),
        (MemoryError(), 1, "error: out of memory; lower --ctx-size or take a smaller model"),
        (
            KeyError("x"),
            1,
            "error: internal error (KeyError: 'x'); set YAKVRT_DEBUG=1 to see where it comes from",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_whatever_stops_a_verb_becomes_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert terminal.run(fail(error)) == code
    assert capsys.readouterr().err == f"yakvrt: {line}\n"


def test_public_names_are_listed() -> None:
    shown = python("-c", "import yakvrt; print(set(yakvrt.__all__) <= set(dir(yakvrt)))")
    assert shown.stdout == "True\n"


def test_one_thing_is_no_plural() -> None:
    assert [terminal.counted(n, "token") for n in (0, 1, 2)] == ["0 tokens", "1 token", "2 tokens"]


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YAKVRT_DEBUG", "1")
    with pytest.raises(KeyError):
        terminal.run(fail(KeyError("x")))


def test_footer_is_plain_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    timings = {"cache_n": 2, "prompt_n": 10, "prompt_per_second": 100.0, "predicted_n": 5}
    timings |= {"predicted_per_second": 20.0, "ttft_ms": 130.0}
    terminal.footer(timings, {"method": "full"})
    line = capsys.readouterr().err
    assert line.startswith(
        "prompt: 10 tokens, 100.0 tokens/s (2 more from the cache) | generation: 5 tokens, "
    )
    assert re.search(r"first token: 0\.13 s \| peak memory: \d+\.\d\d GB$", line)
    assert "\033" not in line
    counts = {"steps": 4, "gross_bytes": 8e6, "moved_bytes": 2e6, "hit_rate": 0.75}
    held = {"device_bytes_per_token": 1800.0, "host_bytes_per_token": 6120.0}
    terminal.footer(timings, {"method": "yakv", **counts, **held})
    assert capsys.readouterr().err.splitlines()[1] == (
        "kv yakv: 1800 device and 6120 host bytes per token held | "
        "per token 2.00 MB gross, 0.50 MB moved, hit rate 75%"
    )


# ---- with the real model


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> tuple[str, ...]:
    return ("-m", str(smollm2_path), "--offline")


def answer(model: tuple[str, ...], *args: str, **kwargs: Any) -> Any:
    argv = ("-m", "yakvrt.generate", *model, "--temp", "0", "--json", "-c", "256", *args)
    shown = python(*argv, **kwargs)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("\n") == 1
    return json.loads(shown.stdout)


def test_json_holds_everything(model: tuple[str, ...]) -> None:
    golden = json.loads((DATA / "smollm2_hf_float32.json").read_text())["prompts"][0]
    found = answer(
        model, "--raw", "-p", golden["text"], "-n", "8", "--logprobs", "3", "--dtype", "f32", "-ctk", "f32"
    )
    assert found["prompt_ids"] == golden["prompt_ids"]
    assert found["ids"] == golden["greedy_ids"][:8]
    assert found["finish_reason"] == "length"
    assert [entry["id"] for entry in found["logprobs"]] == found["ids"]
    assert all(len(entry["top"]) == 3 and entry["top"][0]["id"] == entry["id"] for entry in found["logprobs"])
    assert "".join(entry["token"] for entry in found["logprobs"]) == found["text"]
    for part in TIMINGS:
        for name in ("n", "ms", "per_token_ms", "per_second"):
            assert found["timings"][f"{part}_{name}"] > 0
    assert found["timings"]["prompt_n"] == len(found["prompt_ids"])
    assert found["kv"]["method"] == "full"
    assert found["model"] == model[1]
    by_ids = answer(model, "--prompt-ids", ",".join(map(str, golden["prompt_ids"])), "-n", "8")
    assert by_ids["prompt_ids"] == golden["prompt_ids"]


def test_the_ways_to_give_a_prompt_agree(model: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_text("Say hello.\n")
    texts = [
        answer(model, "-n", "12", "-p", "Say hello."),
        answer(model, "-n", "12", "-p", "-", input="Say hello.\n"),
        answer(model, "-n", "12", "-f", str(file)),
    ]
    assert len({(tuple(t["prompt_ids"]), t["text"]) for t in texts}) == 1
    shown = python("-m", "yakvrt.tokenize", *model, "--chat", "-p", "Say hello.")
    assert json.loads(shown.stdout) == texts[0]["prompt_ids"]
    streamed = python(
        "-m", "yakvrt", "generate", *model, "--temp", "0", "-n", "12", "-p", "Say hello.", "-c", "256"
    )
    assert streamed.stdout == texts[0]["text"] + "\n"
    assert streamed.stderr.startswith("prompt: ")
    system = answer(model, "-n", "1", "-p", "Say hello.", "-sys", "You are a cat.")
    assert system["prompt_ids"] != texts[0]["prompt_ids"]


def test_arguments_are_utf8_in_any_locale(model: tuple[str, ...]) -> None:
    golden = python("-m", "yakvrt.tokenize", *model, "--chat", "-p", "漢字", "-sys", "犬")
    assert golden.returncode == 0, golden.stderr
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = python("-m", "yakvrt.tokenize", *model, "--chat", "-p", "漢字", "-sys", "犬", env=plain)
    assert (shown.returncode, shown.stdout) == (0, golden.stdout)
    for env in (plain, None):
        shown = python("-m", "yakvrt.tokenize", *model, "-p", b"\xe6", env=env)
        assert shown.returncode == 1
        assert "not valid Unicode" in shown.stderr


def test_tokenize_refuses_ids_that_are_none(model: tuple[str, ...]) -> None:
    assert python("-m", "yakvrt.tokenize", *model, "--ids", "49151").returncode == 0
    shown = python("-m", "yakvrt.tokenize", *model, "--ids", "5,49152")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == (
        "yakvrt: error: token id 49152 is outside the vocabulary; ids run from 0 to 49151\n"
    )


def test_stops_and_seeds(model: tuple[str, ...]) -> None:
    free = answer(model, "--raw", "-p", "One, two, three,", "-n", "20")
    word = free["text"].split()[2]
    stopped = answer(model, "--raw", "-p", "One, two, three,", "-n", "20", "-r", word)
    assert stopped["text"] == free["text"][: free["text"].index(word)]
    assert stopped["finish_reason"] == "stop"
    by_id = answer(model, "--raw", "-p", "One, two, three,", "-n", "20", "--stop-id", str(free["ids"][3]))
    assert by_id["ids"] == free["ids"][: free["ids"].index(free["ids"][3]) + 1]
    warm = ("--raw", "-p", "One day", "-n", "10", "--temp", "1.5")
    first, again, other = (answer(model, *warm, "-s", seed) for seed in ("1", "1", "2"))
    assert first["ids"] == again["ids"] != other["ids"]
    assert first["seed"] == 1
    unseeded = answer(model, *warm)
    assert answer(model, *warm, "-s", str(unseeded["seed"]))["ids"] == unseeded["ids"]


def test_bad_input_is_one_line(model: tuple[str, ...], tmp_path: Path) -> None:
    for args in (
        ("-p", "word " * 300, "-c", "64"),
        ("--prompt-ids", "99999999"),
        ("-p", "x", "-l", "99999999+1"),
        ("-p", "x", "--chat-template-file", str(tmp_path / "none")),
    ):
        shown = python("-m", "yakvrt.generate", *model, *args)
        assert shown.returncode == 1
        assert shown.stderr.startswith("yakvrt: error: ")
        assert shown.stderr.count("\n") == 1
        assert shown.stdout == ""
    unknown = python("-m", "yakvrt.generate", "-m", "smollm-135m", "--offline", "-p", "x")
    assert unknown.returncode == 1
    assert "smollm2-135m" in unknown.stderr
    assert unknown.stderr.count("\n") == 1


def test_ctrl_c_keeps_the_text(model: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "yakvrt.generate", *model, "--raw", "-p", "A story:", "--ignore-eos"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        head = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        rest, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (head + rest).endswith(b"\n")
    assert error.startswith(b"prompt: ")


def test_ctrl_c_while_the_prompt_is_read(
    model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("yakvrt.prompt_cache.PromptCache.keep_prompt", interrupted)
    assert generate.main([*model, "-p", "A story:"]) == 130
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "yakvrt: interrupted while reading the prompt\n")


def test_a_reader_that_leaves_is_no_error(model: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "yakvrt.generate", *model, "--raw", "-p", "A story:", "--ignore-eos"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


def test_chat_keeps_the_conversation(model: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "note").write_text("The code word is heron.")
    lines = f"Say hello.\n/regen\n/read {tmp_path / 'note'}\nAnd now?\n/help\n/clear\nSay hello.\n/exit\nno\n"
    shown = python(
        "-m", "yakvrt.chat", *model, "--temp", "0", "-n", "8", "-c", "512", "--ignore-eos", input=lines
    )
    assert shown.returncode == 0, shown.stderr
    alone = answer(model, "-p", "Say hello.", "-n", "8", "--ignore-eos")["text"]
    assert shown.stdout.startswith(f"{alone}\n{alone}\n")
    assert shown.stdout.endswith(f"{alone}\n")
    assert "read 23 characters" in shown.stderr
    assert "/regen" in shown.stderr


def test_chat_refuses_what_is_no_command(model: tuple[str, ...], tmp_path: Path) -> None:
    lines = f"/read\n/read {tmp_path}\n/quit now\n"
    shown = python("-m", "yakvrt.chat", *model, "-c", "256", input=lines)
    assert (shown.returncode, shown.stdout) == (0, "")
    assert [line.removeprefix("yakvrt: error: ") for line in shown.stderr.splitlines()] == [
        "/read names no file; write /read FILE",
        f"{tmp_path} cannot be read (Is a directory); give a readable text file",
        "unknown command /quit; the commands are /exit, /clear, /regen, /read, /help",
    ]


def test_piped_messages_that_are_all_refused_end_with_1(model: tuple[str, ...]) -> None:
    long = "word " * 300
    for lines, code in ((f"{long}\n{long}\n", 1), (f"{long}\nhi\n", 0), ("/help\n", 0)):
        shown = python("-m", "yakvrt.chat", *model, "-n", "2", "-c", "128", input=lines)
        assert shown.returncode == code, shown.stderr
        assert shown.stderr.count("; /clear starts over") == lines.count(long)


def test_tokenize_goes_both_ways(model: tuple[str, ...]) -> None:
    ids = python("-m", "yakvrt.tokenize", *model, "-p", "Hello world")
    assert json.loads(ids.stdout) == [19556, 905]
    text = python("-m", "yakvrt", "tokenize", *model, "--ids", "19556,905")
    assert text.stdout == "Hello world\n"
