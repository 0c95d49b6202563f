"""yakvrt: a llama.cpp-style LLM runtime in Python, without PyTorch.

>>> import yakvrt
>>> llm = yakvrt.load("smollm2-135m")
>>> for piece in llm.generate("What is the capital of France?"):
...     print(piece, end="")
"""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"] and any(each.partition(".")[0] == "yakvrt" for each in sys.orig_argv):
    # `python -m yakvrt...` is looking for the module to run: until its main() can say it in one line, Ctrl-C
    # ends the process without a traceback.
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cpu.affinity import Affinity
    from .engine import Engine, load
    from .grammar import Grammar
    from .request import Request
    from .sampler import SamplingParams
    from .scheduler import Scheduler
    from .sequence import Sequence
    from .session import Session

__version__ = "0.1.0"
__all__ = [
    "Affinity",
    "Engine",
    "Grammar",
    "Request",
    "SamplingParams",
    "Scheduler",
    "Sequence",
    "Session",
    "load",
]

_HOME = {
    "Affinity": "cpu.affinity",
    "Engine": "engine",
    "Grammar": "grammar",
    "Request": "request",
    "SamplingParams": "sampler",
    "Scheduler": "scheduler",
    "Sequence": "sequence",
    "Session": "session",
    "load": "engine",
}


def __getattr__(name: str) -> Any:
    """Imports public names when first used, so that `import yakvrt` and --help cost nothing."""
    if name in _HOME:
        return getattr(import_module(f"yakvrt.{_HOME[name]}"), name)
    raise AttributeError(f"module 'yakvrt' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, also those not imported yet."""
    return sorted({*globals(), *__all__})
