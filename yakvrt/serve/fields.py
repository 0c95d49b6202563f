"""Fields of requests that have no effect here, those that are refused, and those with a second name."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from yakvrt.serve.errors import ApiError

# They never change an answer: who asks, what is billed, what is cached.
WITHOUT_EFFECT = frozenset(
    (
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "service_tier",
        "cache_prompt",
        "timings_per_token",
        "return_progress",
    )
)
# They would, unless they have one of these values, which some clients always send.
ONLY: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "functions": ([],),
    "function_call": ("none",),
    "id_slot": (-1,),
    "n_probs": (0,),
    "n_keep": (0,),
    "min_keep": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "typical_p": (1,),
    "typ_p": (1,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "top_n_sigma": (-1,),
    "samplers": ([],),
    "lora": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "reasoning_format": ("none",),
    "add_generation_prompt": (True,),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "return_tokens": (False,),
    "truncation": ("disabled",),
}
# Parameters of what is off.
IDLE = frozenset(
    (
        "mirostat_tau",
        "mirostat_eta",
        "xtc_threshold",
        "dry_base",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "dynatemp_exponent",
    )
)
SAME = {
    "max_completion_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "repetition_penalty": "repeat_penalty",
    "stop_token_ids": "stop_ids",
}


def supported(value: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The known fields that are not null, by their first names.

    Raises: ApiError naming another field, unless it changes nothing; or two names with different values.
    """
    given: dict[str, Any] = {}
    told: dict[str, str] = {}  # the names by which they came
    for name, one in value.items():
        target = SAME.get(name, name)
        if one is None or (name in WITHOUT_EFFECT and target not in known):
            continue
        if target in known:
            if target in given and given[target] != one:
                raise ApiError(
                    f"{told[target]} and {name} are the same parameter with different values; leave one out",
                    param=name,
                )
            given[target], told[target] = one, name
        elif name in ONLY:
            if not any(
                one == allowed and isinstance(one, bool) is isinstance(allowed, bool)
                for allowed in ONLY[name]
            ):
                raise ApiError(
                    f"{name} is not supported; leave it out", code="unsupported_parameter", param=name
                )
        elif name not in IDLE:
            near = get_close_matches(name[:100], known, 1, 0.6)
            hint = f"did you mean {near[0]}?" if near else "leave it out"
            raise ApiError(
                f"there is no parameter {name[:100]!r}; {hint}", code="unknown_parameter", param=name[:100]
            )
    return given
