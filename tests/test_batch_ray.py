"""A batch over a real Ray cluster, one of whose two workers is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_batch import (
    ROOT,
    body,
    files,
    model_flags,
    read,
    text,
    tiny_text_model,
    wait_for_lines,
    write,
)

pytest.importorskip("ray", reason="the extra ray is not installed")


def test_a_killed_worker_costs_no_request_and_doubles_none(tmp_path: Path) -> None:
    source, output = files(tmp_path)
    requests = [text(f"r{i}", f"once {i}", max_tokens=400) for i in range(60)]
    write(source, [*requests, text("bad", n=0)])
    flags = [*model_flags(tiny_text_model(tmp_path / "tiny")), "--ray", "local", "--workers", "2"]
    command = [sys.executable, "-m", "yakvrt", "batch", str(source), str(output), *flags]
    said = tmp_path / "stderr"
    with said.open("w") as stderr:
        running = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=stderr
        )
    try:
        wait_for_lines(output, 4)
        until = time.monotonic() + 60
        while not (pids := re.findall(r"a worker is ready on \S+ \(pid (\d+)\)", said.read_text())):
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(int(pids[0]), signal.SIGKILL)
        shown, _ = running.communicate(timeout=90)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0, said.read_text()
    assert shown == b""
    assert re.search(r"lost a worker with [1-6] requests? under way", said.read_text())
    assert "60 requests done, 1 failed" in said.read_text()
    results = read(output)
    assert set(results) == {each["custom_id"] for each in requests} | {"bad"}
    assert all(each["error"] is None for each in results.values())
    assert results.pop("bad")["response"]["status_code"] == 400
    assert all(body(each)["usage"]["completion_tokens"] == 400 for each in results.values())
