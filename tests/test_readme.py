"""The README's library examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("which", "words"), [(0, "The capital of France is"), (1, "'predicted_n': ")])
def test_a_library_example_runs(smollm2_path: Path, which: int, words: str) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[which]
    assert smollm2_path.is_file()  # fetched, so that the example needs no network
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    assert len(done.stdout.split()) > 8
