"""What the server's flags ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

# Not flags: nobody should need others.
REQUEST_S = 60.0  # for a request to arrive whole
UNREAD_S = 60.0  # for a client to read some of what was sent
PROMPT_THREADS, TEXT_THREADS = 4, 2
MAX_TEXT_CHARS = 1 << 20  # of /tokenize: up to some seconds of work
MAX_TOKENS = 1 << 20  # of /detokenize
KEEP_ALIVE_S = 5  # for an idle connection
MAX_HEAD_BYTES = 64 << 10
MAX_CHOICES = 128  # of all prompts of a request together
MAX_DEPTH = 64  # of JSON
MAX_NODES = 200_000  # lists and objects of JSON, in memory some 24 times as long as their text; names
MAX_VALUES = 1_100_000  # of JSON in all
MAX_MESSAGES = 10_000
MAX_TOOLS = 128
MAX_STOPS, MAX_STOP_CHARS = 64, 1000
MAX_BIASES = 1024
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of the server and who may use it. The defaults are those of the flags."""

    host: str = "127.0.0.1"
    port: int = 8080
    name: str = ""  # of the model, as clients see it
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = 16 << 20
    max_connections: int = 512
    max_waiting: int = 64
    timeout_s: float = 3600.0  # 0: none
    drain_s: float = 30.0
    ping_s: float = 30.0  # 0: none
    stall_ms: float = 50.0
    cache_bytes: int = 0
    slot_save_path: Path | None = None
    slot_save_bytes: int = 16 << 30  # of all files there
    has_page: bool = True
    has_metrics: bool = True
    has_slots: bool = True
