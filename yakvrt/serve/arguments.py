"""The flags of serve, under llama-server's names, and the settings that they ask for."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from yakvrt.cli_arguments import (
    add_model_arguments,
    add_sampling_arguments,
    at_least,
)
from yakvrt.cli_parsing import Parser, kind
from yakvrt.prompt_text import read_file
from yakvrt.serve.slot_arguments import add_slot_arguments
from yakvrt.terminal import UsageError

if TYPE_CHECKING:
    from yakvrt.serve.settings import Settings

SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
MAX_KEYS = 1000


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,12})([KMG]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(text)
    return int(match[1]) * SUFFIXES[match[2].upper()]


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1e7:
        raise ValueError(text)
    return value


size = kind("a size like 1048576, 512K or 16M", _size)
seconds = kind("a number of seconds", _seconds)


def build_parser() -> argparse.ArgumentParser:
    """The verb's flags."""
    parser = Parser(
        "serve", "Serve a model over HTTP: OpenAI's API for chats and completions, and a chat page."
    )
    add = parser.add_argument_group("server").add_argument
    add("--host", default="127.0.0.1", metavar="ADDR", help="address to listen on (127.0.0.1)")
    add("--port", type=at_least(0, 65535), default=8080, metavar="N", help="0 takes a free one (8080)")
    add("--api-key", metavar="KEY,...", help="ask for one of these keys (none)")
    add("--api-key-file", metavar="FILE", help="keys, one a line")
    add(
        "--cors-origins", metavar="ORIGIN,...", help="web pages that may use it, * for all (none but its own)"
    )
    add("--allowed-hosts", metavar="NAME,...", help="names of this server in requests, beside localhost")
    add(
        "--warmup",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile what first requests need before /health says ok (on)",
    )
    add("--no-webui", action="store_true", help="no chat page")
    add("--metrics", action=argparse.BooleanOptionalAction, default=True, help="/metrics (on)")
    add("--slots", action=argparse.BooleanOptionalAction, default=True, help="/slots (on)")
    add("--slot-save-path", metavar="DIR", help="where /slots saves to and restores from (nowhere)")
    add_slot_arguments(parser, parallel=4)
    add("--trace", metavar="FILE", help="write the newest million slices of work at the end, for Perfetto")
    limits = parser.add_argument_group("limits").add_argument
    limits("--max-waiting", type=at_least(1, 10**6), default=64, metavar="N", help="answers that wait (64)")
    limits("--max-connections", type=at_least(1, 10**5), default=512, metavar="N", help="connections (512)")
    limits("--max-body-size", type=size, default=16 << 20, metavar="SIZE", help="of a request (16M)")
    limits("--slot-save-limit", type=size, default=16 << 30, metavar="SIZE", help="of all saved slots (16G)")
    limits("-to", "--timeout", type=seconds, default=3600.0, metavar="S", help="of an answer, 0: none (3600)")
    limits("--drain-timeout", type=seconds, default=30.0, metavar="S", help="for answers at the end (30)")
    limits(
        "--sse-ping-interval",
        type=seconds,
        default=30.0,
        metavar="S",
        help="of a silent stream, 0: none (30)",
    )
    limits(
        "--stall-ms",
        type=at_least(0, 60_000),
        default=50,
        metavar="MS",
        help="how long a prompt may stop other streams (50)",
    )
    add_sampling_arguments(parser, logprobs=False)
    add_model_arguments(parser)
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    """Raises: UsageError for flags that make no sense; ValueError or OSError for files."""
    from yakvrt.serve.settings import Settings

    keys = _listed(args.api_key)
    if args.api_key is not None and not keys:
        raise UsageError("--api-key holds no key; leave it out for a server that asks for none")
    if args.api_key_file is not None:
        keys += [line.strip() for line in read_file(Path(args.api_key_file)).splitlines() if line.strip()]
        if not keys:
            raise ValueError(f"{args.api_key_file} holds no key")
    if len(keys) > MAX_KEYS or not all(
        key.isascii() and key.isprintable() and " " not in key for key in keys
    ):
        raise UsageError(f"API keys must be ASCII without spaces, at most {MAX_KEYS} of them")
    directory = None if args.slot_save_path is None else Path(args.slot_save_path)
    if directory is not None and not directory.is_dir():
        raise UsageError(f"--slot-save-path {directory} is no directory; make it first")
    for origin in (origins := _listed(args.cors_origins)):
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise UsageError(f"--cors-origins {origin} is no origin; write https://example.org, or *")
    return Settings(
        host=args.host,
        port=args.port,
        name=args.alias or "",
        api_keys=tuple(keys),
        cors_origins=tuple(origins),
        allowed_hosts=tuple(_listed(args.allowed_hosts)),
        max_body_bytes=args.max_body_size,
        max_connections=args.max_connections,
        max_waiting=args.max_waiting,
        timeout_s=args.timeout,
        drain_s=args.drain_timeout,
        ping_s=args.sse_ping_interval,
        stall_ms=args.stall_ms,
        cache_bytes=args.cache_ram << 20,
        slot_save_path=directory,
        slot_save_bytes=args.slot_save_limit,
        has_page=not args.no_webui,
        has_metrics=args.metrics,
        has_slots=args.slots,
    )


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]
