"""yakvrt: a llama.cpp-style LLM runtime in Python, without PyTorch.

>>> import yakvrt
>>> llm = yakvrt.load("smollm2-135m")
>>> for piece in llm.generate("What is the capital of France?"):
...     print(piece, end="")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine, load
    from .sampler import SamplingParams
    from .sequence import Sequence
    from .session import Session

__version__ = "0.1.0"
__all__ = ["Engine", "SamplingParams", "Sequence", "Session", "load"]

_HOME = {
    "Engine": "engine",
    "SamplingParams": "sampler",
    "Sequence": "sequence",
    "Session": "session",
    "load": "engine",
}


def __getattr__(name: str) -> Any:
    """Imports public names when first used, so that `import yakvrt` and --help cost nothing."""
    if name in _HOME:
        return getattr(import_module(f"yakvrt.{_HOME[name]}"), name)
    raise AttributeError(f"module 'yakvrt' has no attribute {name!r}")
