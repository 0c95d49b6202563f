"""Compiles and records, before a server is ready, what its first requests would wait for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from yakvrt.session import decode_together

if TYPE_CHECKING:
    from yakvrt.engine import Engine

PROMPT = 4  # tokens; what only long prompts need is compiled when one comes
TOGETHER = (1, 2, 3, 5)  # slots; larger numbers run the same kernels


def warm_up(engine: Engine) -> None:
    """A short prompt, another behind it, and steps of several slots."""
    n_slots = min(engine.n_slots, max(TOGETHER))
    ids = [0] * min(PROMPT, engine.ctx_size // 4)
    if not ids:
        return
    with ExitStack() as stack:
        sessions = [stack.enter_context(engine.session()) for _ in range(n_slots)]
        for session in (*sessions, sessions[0]):
            session.prefill(ids)
        for n in TOGETHER:
            if n <= n_slots:
                sessions[0].truncate(len(ids))
                decode_together(sessions[:n], [0] * n)
