"""Streams that are closed and Ctrl-C at the start: one line or none, and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_bad_input_cli import IDS, sentence, yakvrt
from tiny_files import tiny_copy

from yakvrt.__main__ import MODULES, VERBS


def close(*numbers: int) -> Callable[[], None]:
    def before() -> None:
        for number in numbers:
            os.close(number)

    return before


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("generate", ("-p", "x")),
        ("chat", ()),
        ("tokenize", ("-p", "x")),
        ("bench", ()),
        ("transfer", ()),
        ("perplexity", ("-p", "x")),
        ("models", ()),
        ("pull", ("smollm2-135m",)),
    ],
)
def test_closed_stdout(verb: str, args: tuple[str, ...]) -> None:
    assert "stdout is closed" in sentence(yakvrt(*args, verb=verb, before=close(1)), 1)
    assert yakvrt(*args, verb=verb, before=close(0, 1, 2)) == (1, b"", "")


def test_closed_stderr_and_stdin(tmp_path: Path) -> None:
    model = str(tiny_copy("qwen3", tmp_path / "model"))
    code, _, err = yakvrt("-m", model, *IDS, before=lambda: None)  # compiles outside the memory limit
    assert code == 0, err
    for numbers in ((2,), (0,), (0, 2)):
        code, out, err = yakvrt("-m", model, *IDS, before=close(*numbers))
        assert (code, out[:1], err) == (0, b"{", "")
    assert "stdin is closed" in sentence(yakvrt("-m", model, verb="chat", before=close(0)), 1)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("verb", list(VERBS))
def test_a_reader_that_has_left_ends_any_help(verb: str, unbuffered: str) -> None:
    module = MODULES.get(verb, verb).removesuffix(".verb")
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as stdout:
        shown = yakvrt("--help", verb=module, stdout=stdout, env={"PYTHONUNBUFFERED": unbuffered})
    assert shown == (141, b"", "")


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", [("yakvrt", "models"), ("yakvrt.models",)])
def test_ctrl_c_while_importing_leaves_no_traceback(command: tuple[str, ...]) -> None:
    # The program gets its signal from itself, when the first module after the package is looked for.
    script = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'yakvrt.terminal': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv[0] = '-m'\n"
        f"sys.orig_argv.append({command[0]!r})\n"
        f"runpy.run_module({command[0]!r}, run_name='__main__')\n"
    )
    shown = python(script)
    assert (shown.returncode, shown.stdout, shown.stderr) == (-signal.SIGINT, "", "")


def test_importing_the_package_leaves_signals_alone() -> None:
    script = "import signal, yakvrt; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert python(script).stdout == "True\n"


def test_an_import_in_c_that_was_interrupted_is_an_interruption() -> None:
    script = (
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "from yakvrt import terminal\n"
        "def verb():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt: raise ImportError('PyCapsule') from None\n"
        "raise SystemExit(terminal.run(verb))\n"
    )
    shown = python(script)
    assert (shown.returncode, shown.stderr) == (130, "yakvrt: interrupted\n")
