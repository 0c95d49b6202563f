"""A plan as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yakvrt import terminal


def plan_text(record: Mapping[str, Any]) -> str:
    """Its lines."""
    n_tokens, n_slots = record["n_tokens"], record["n_slots"]
    sequences = terminal.counted(n_slots, "slot")
    title = f"{record['model']} with --kv {record['kv']}: {sequences} of {n_tokens} tokens"

    def line(what: str, n_bytes: float, remark: str = "") -> str:
        return f"  {what:<48}{n_bytes / 1e6:>12.1f} MB{remark}"

    lines = [
        title,
        line("weights", record["weight_bytes"]),
        line("steps, program", record["workspace_bytes"]),
    ]
    for place in ("device", "host"):
        for what, n_bytes in record[f"slot_{place}_bytes"].items():
            remark = f"  {n_bytes / n_tokens:.0f} bytes a token"
            lines.append(line(f"{place}: {what}", n_slots * n_bytes, remark))
    lines += [line(f"while a prompt is read: {what}", n) for what, n in record["prompt_bytes"].items()]
    if record["step_scratch_bytes"]:
        lines.append(line("steps, what they choose by and bring together", record["step_scratch_bytes"]))
    lines.append(line("in every step: read of device pools", n_slots * record["step_device_bytes"]))
    lines.append(line("in every step: rows from the host", n_slots * record["step_host_bytes"]))
    for place in record["places"]:
        remark = f"  of {place['available_bytes'] / 1e6:.1f} MB free"
        lines.append(line(f"total of {place['name']}", place["total_bytes"], remark))
    largest = f"the largest context that fits is {record['largest_context']} tokens"
    trained = f"the model was trained for {record['model_context']}"
    lines.append(f"{'fits' if record['fits'] else 'DOES NOT FIT'}; {largest}, {trained}")
    most = terminal.counted(record["largest_slots"], "slot")
    lines.append(f"of {n_tokens} tokens {most} would fit" if record["largest_slots"] else "no slot would fit")
    lines.append(_expected(record["prediction"]))
    return "\n".join(lines)


def _expected(prediction: Mapping[str, Any] | None) -> str:
    """How long a step takes and where that is known from, in a line."""
    if prediction is None:
        return "how long a step takes is not known here: --calibrate times some layers of this model"
    speed = "a step takes {step_ms:.2f} ms, {tokens_per_s:.1f} tokens/s".format(**prediction)
    if prediction["how"] == "timed":
        layers = terminal.counted(prediction["n_timed_layers"], "layer")
        return f"{speed}: from {layers} timed on {prediction['date']} ({prediction['tuning_file']})"
    sides = "{device_ms:.2f} ms on the device, {link_ms:.2f} ms over the link".format(**prediction)
    return f"{speed}: modelled, {sides} at the rates of {prediction['tuning_file']}; --calibrate times it"
