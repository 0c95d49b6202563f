"""What `pip install -e` leaves finds the package wherever Python is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from yakvrt import __version__


def test_a_directory_of_that_name_does_not_hide_the_package(tmp_path: Path) -> None:
    """As one does in which a checkout lies."""
    (tmp_path / "yakvrt").mkdir()
    command = [sys.executable, "-m", "yakvrt", "--version"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert shown.stdout == f"yakvrt {__version__}\n", shown.stderr
