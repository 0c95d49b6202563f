"""Flags that several verbs share, under llama.cpp's names, and what they ask for."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from yakvrt.chunk_size import MAX_CHUNK, default_chunk
from yakvrt.cli_parsing import kind
from yakvrt.device_arguments import add_device_arguments, device_keywords, threads_of
from yakvrt.kvcache import METHODS
from yakvrt.machine_arguments import add_machine_arguments, machine_keywords
from yakvrt.prompt_text import argument_text, unescape
from yakvrt.terminal import Bar, UsageError, counted, note

if TYPE_CHECKING:
    from yakvrt.engine import Engine
    from yakvrt.sampler import SamplingParams

DEFAULT_MODEL = "smollm2-135m"
MODEL_FLAGS = ("-m", "--model", "-hf", "--hf-repo")
MAX_THREADS = 512
MAX_IDS = 1 << 24
MAX_NUMBER = 2**31 - 1
LOGIT_BIAS = re.compile(r"(\d{1,10})([+-])(inf|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)")


def at_least(low: int, high: int = MAX_NUMBER) -> Callable[[str], int]:
    """The reader of whole numbers within limits."""
    limits = f"of at least {low} and at most {high}" if high == MAX_NUMBER else f"from {low} to {high}"

    def read(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return kind(f"a whole number {limits}", read)


def _ids(text: str) -> list[int]:
    ids = [int(part) for part in text.strip().strip("[]").split(",") if part.strip()]
    if not ids or len(ids) > MAX_IDS or not all(0 <= i < 2**31 for i in ids):
        raise ValueError(text)
    return ids


def _bias(text: str) -> tuple[int, float]:
    match = LOGIT_BIAS.fullmatch(text.strip())
    if match is None or match[2] + match[3] == "+inf":
        raise ValueError(text)
    return int(match[1]), float(match[2] + match[3])


def _key_values(text: str) -> dict[str, str]:
    pairs = [part.split("=") for part in text.split(",") if part.strip()]
    if not all(len(pair) == 2 and pair[0].strip() and pair[1].strip() for pair in pairs):
        raise ValueError(text)
    return {name.strip(): value.strip() for name, value in pairs}


def _object(text: str) -> dict[str, Any]:
    value = json.loads(argument_text(text))
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


token_ids = kind("a list of token ids like 1,2,3", _ids)
real = kind("a number", float)
key_values = kind("a list like sparse_budget=0.05,recent=128", _key_values)


def add_model_arguments(parser: argparse.ArgumentParser, *, ctx_size: int = 0) -> None:
    """The flags of loading a model with one KV method."""
    add_weight_arguments(parser, ctx_size=ctx_size)
    add = parser.add_argument_group("KV method").add_argument
    add("--kv", choices=tuple(METHODS), default="full", help="KV cache method (full)")
    add(
        "--kv-args",
        type=key_values,
        default={},
        metavar="K=V,...",
        help="the method's parameters, as in sparse_budget=0.05,recent=128",
    )


def add_weight_arguments(parser: argparse.ArgumentParser, *, ctx_size: int = 0) -> None:
    """The flags of loading a model, whatever its KV method."""
    add = parser.add_argument_group("model").add_argument
    shown = "0: the model's" if ctx_size == 0 else f"{ctx_size}; 0: the model's"
    shown_default = f"name, hub repo, file or directory ({DEFAULT_MODEL})"
    add(*MODEL_FLAGS, default=DEFAULT_MODEL, metavar="NAME", help=shown_default)
    add("-c", "--ctx-size", type=at_least(0), default=ctx_size, metavar="N", help=f"context length ({shown})")
    add("-b", "--batch-size", type=at_least(1), metavar="N", help="upper limit of -ub")
    add(
        "-ub",
        "--ubatch-size",
        type=at_least(1, MAX_CHUNK),
        metavar="N",
        help="prompt tokens computed at once (240; 512 on a CPU with AMX, 2048 on a GPU)",
    )
    add(
        "-t", "--threads", type=at_least(-1, MAX_THREADS), metavar="N", help="threads (0: the physical cores)"
    )
    add(
        "--dtype",
        choices=("auto", "f32", "bf16", "q8_0", "q4_0"),
        default="auto",
        help="type of the weights",
    )
    add(
        "-ctk",
        "--cache-type-k",
        choices=("f32", "f16", "bf16"),
        help="KV cache type, K and V (f16)",
    )
    add(
        "-ctv",
        "--cache-type-v",
        choices=("f32", "f16", "bf16"),
        help="the same; may not differ from -ctk",
    )
    add("--load-format", choices=("auto", "dummy"), default="auto", help="dummy: random weights")
    add("--offline", action="store_true", help="use no network")
    add("-v", "--verbose", action="store_true", help="say on stderr what is used")
    add_device_arguments(parser)
    add_machine_arguments(parser)


def add_prompt_arguments(parser: argparse.ArgumentParser, *, ids_flag: str | None = "--prompt-ids") -> None:
    """The ways to give a text."""
    group = parser.add_argument_group("prompt")
    source = group.add_mutually_exclusive_group()
    source.add_argument("-p", "--prompt", type=argument_text, metavar="TEXT", help="the text; - reads stdin")
    source.add_argument("-f", "--file", metavar="FILE", help="the text from a file")
    if ids_flag:
        source.add_argument(
            ids_flag, dest="prompt_ids", type=token_ids, metavar="1,2,3", help="token ids as they are"
        )
    escape = group.add_mutually_exclusive_group()
    escape.add_argument(
        "-e",
        "--escape",
        action="store_true",
        default=True,
        help=r"read \n \t \" \xHH ... in -p and -r (default)",
    )
    escape.add_argument(
        "--no-escape", action="store_false", dest="escape", help="take -p and -r letter by letter"
    )


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the chat template."""
    add = parser.add_argument_group("chat template").add_argument
    add("-sys", "--system-prompt", type=argument_text, metavar="TEXT", help="the system message")
    add(
        "--chat-template-kwargs",
        type=kind("a JSON object", _object),
        metavar="JSON",
        help='values for the template, as {"enable_thinking": false}',
    )
    add("--chat-template-file", metavar="FILE", help="a jinja template instead of the model's")


def add_sampling_arguments(parser: argparse.ArgumentParser, *, logprobs: bool = True) -> None:
    """The flags of sampling and stopping; unset ones follow the model, else llama.cpp."""
    add = parser.add_argument_group("sampling (defaults: the model's, else these)").add_argument
    n_flags = ("-n", "--predict", "--n-predict", "--max-tokens")
    add(*n_flags, type=at_least(-2), dest="max_tokens", metavar="N", help="-1 fills the context (-1)")
    add("-s", "--seed", type=kind("a whole number", int), metavar="N", help="-1 draws one (-1)")
    add("--temp", "--temperature", type=real, dest="temperature", metavar="T", help="0 is greedy (0.8)")
    add("--top-k", type=at_least(-1), metavar="N", help="0 is off (40)")
    add("--top-p", type=real, metavar="P", help="1 is off (0.95)")
    add("--min-p", type=real, metavar="P", help="0 is off (0.05)")
    add("--repeat-penalty", type=real, metavar="X", help="1 is off (1)")
    add("--repeat-last-n", type=at_least(-1), metavar="N", help="tokens the penalties look at, -1 all (64)")
    add("--presence-penalty", type=real, metavar="X", help="0 is off (0)")
    add("--frequency-penalty", type=real, metavar="X", help="0 is off (0)")
    add(
        "-l",
        "--logit-bias",
        type=kind("a bias like 15043+1, 15043-1.5 or 15043-inf", _bias),
        action="append",
        metavar="ID(+/-)B",
        help="make a token more or less likely; repeatable",
    )
    add("--ignore-eos", action="store_true", default=None, help="go on after an end of text")
    add(
        "-r",
        "--reverse-prompt",
        "--stop",
        type=argument_text,
        action="append",
        dest="stop",
        metavar="TEXT",
        help="stop string",
    )
    add(
        "--stop-id",
        type=token_ids,
        action="append",
        dest="stop_ids",
        metavar="ID",
        help="stop token",
    )
    if logprobs:
        add("--logprobs", type=at_least(0), metavar="N", help="with --json: of the N best tokens")


def cache_type(args: argparse.Namespace) -> str:
    """The one type of K and V.

    Raises: UsageError when two different ones are asked for.
    """
    k, v = args.cache_type_k, args.cache_type_v
    if k and v and k != v:
        raise UsageError(f"-ctk {k} and -ctv {v} differ: K and V must have the same type, give one of them")
    return str(k or v or "f16")


def chunk_of(args: argparse.Namespace) -> int:
    """-ub, or what suits the device; at most -b."""
    chunk = args.ubatch_size or default_chunk(args.device)
    return min(chunk, args.batch_size or chunk)


def load_engine(args: argparse.Namespace, *, n_slots: int = 1, cache_bytes: int = 0) -> Engine:
    """Load the model that the flags ask for."""
    chosen_type = cache_type(args)
    import yakvrt

    with Bar("loading") as bar:
        engine = yakvrt.load(
            args.model,
            ctx_size=args.ctx_size,
            n_slots=n_slots,
            cache_bytes=cache_bytes,
            threads=threads_of(args),
            dtype=args.dtype,
            kv=args.kv,
            kv_args=args.kv_args,
            load_format=args.load_format,
            offline=args.offline,
            progress=bar.loading,
            download_progress=True,
            cache_type=chosen_type,
            ubatch_size=chunk_of(args),
            **device_keywords(args),
            **machine_keywords(args),
        )
    if args.threads and args.threads > engine.n_threads:
        note(f"note: -t {args.threads} is more than the CPUs here; {counted(engine.n_threads, 'thread')} run")
    if args.ctx_size > engine.config.context_len:
        note(
            f"warning: --ctx-size {args.ctx_size} is beyond the {engine.config.context_len} tokens the model "
            "was trained for; expect worse answers there"
        )
    return engine


def sampling_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling parameters that were given, checked.

    Raises: UsageError for one outside its range.
    """
    from dataclasses import fields

    from yakvrt.sampler import SamplingParams

    names = [f.name for f in fields(SamplingParams)]
    given = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    if "max_tokens" in given:
        given["max_tokens"] = max(given["max_tokens"], -1)  # llama.cpp's -2 is "until the context is full"
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    if "stop_ids" in given:
        given["stop_ids"] = frozenset(token for ids in given["stop_ids"] for token in ids)
    try:
        if "stop" in given and getattr(args, "escape", False):
            given["stop"] = [unescape(stop) for stop in given["stop"]]
        SamplingParams(**given)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return given


def sampling_params(engine: Engine, overrides: dict[str, Any]) -> SamplingParams:
    """The model's own parameters with the given ones in their place."""
    from dataclasses import replace

    return replace(engine.sampling_defaults, **overrides)
