"""The README's library example runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_the_library_example_runs(smollm2_path: Path) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert smollm2_path.is_file()  # fetched, so that the example needs no network
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "The capital of France is" in done.stdout
    assert len(done.stdout.split()) > 8
