"""What a trace shows of a request that has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .request import Request
    from .trace_log import Trace


def note_request(trace: Trace, request: Request) -> None:
    """When it waited, and its prompt and answer in its slot; `request` in all of them is its name."""
    timings, reason = request.timings, request.finish_reason or "error"
    told: dict[str, dict[str, int | str]] = {
        "waiting": {"prompt_tokens": len(request.prompt_ids)},
        "prompt": {"tokens": int(timings["prompt_n"]), "cached": int(timings["cache_n"])},
        "answer": {"tokens": len(request.ids), "finish_reason": reason},
    }
    for name, (began_s, ended_s) in request.phases.items():
        slot = None if name == "waiting" else request.slot
        trace.past(slot, name, began_s, ended_s, {"request": request.name, **told[name]})
