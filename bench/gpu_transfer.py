"""`yakvrt transfer --quick` on the GPU that scripts/test-gpu examined, in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from yakvrt.transfer.tuning import link_rates

LEAST_S, GRACE_S = 45, 10  # that are worth a start; to end in after Ctrl-C
RESERVED_S = 70  # of the time for all


def command(cubins: Path, device: int) -> list[str]:
    """It takes numpy, cuda-bindings and the cubins, as everything here."""
    flags = ["--quick", "--device", f"cuda:{device}", "--cubins", str(cubins), "-o", "jsonl"]
    return [sys.executable, "-m", "yakvrt", "transfer", *flags]


def examine_transfers(arguments: list[str], limit_s: float) -> dict[str, Any]:
    """Records, what the runtime would read, the error where it ended early; no records in too little time."""
    if limit_s < LEAST_S + GRACE_S:
        return {"error": f"{limit_s:.0f} s were left, and it takes {LEAST_S + GRACE_S}", "records": []}
    child = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    try:
        out, told = child.communicate(timeout=limit_s - GRACE_S)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)  # it prints what it has
        try:
            out, told = child.communicate(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            out, told = child.communicate()
    whole = [line for line in out.splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]
    records = [json.loads(line) for line in whole]
    error = None if child.returncode == 0 else f"code {child.returncode}: {told.strip()[-500:]}"
    return {"error": error, "records": records, "link": link_rates(records) if records else None}
