"""Reading of tokenizer.json, tokenizer_config.json and chat template files, none of them trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

MAX_TOKENIZER_BYTES = 64 << 20
MAX_CONFIG_BYTES = 16 << 20


def read_text(path: Path, limit: int) -> str:
    try:
        if path.stat().st_size > limit:
            raise ValueError(f"{path} is larger than {limit >> 20} MB; download the model's own file again")
        return path.read_bytes()[: limit + 1].decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); download the model again") from None


def backend_from_json(path: Path) -> Backend:
    from tokenizers import Tokenizer as Backend

    text = read_text(path, MAX_TOKENIZER_BYTES)
    try:
        backend = Backend.from_str(text)
    except BaseException as error:
        # A panic of the extension is a BaseException without a public class.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"{path} is not a usable tokenizer.json ({error}); download the model again"
        ) from None
    # Files saved during training cut or pad every text to a fixed length.
    backend.no_truncation()
    backend.no_padding()
    return backend


def json_object(source: Mapping[str, Any] | Path | None) -> Mapping[str, Any]:
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    try:
        value = json.loads(read_text(path, MAX_CONFIG_BYTES))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download the model again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a JSON object; download the model again")
    return value


def token_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) and text else None


def decoding_rules(backend: Backend, path: Path) -> tuple[bool, bool]:
    """Tell from the decoder whether pieces are SentencePiece text and whether a leading space is dropped."""
    state = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
    steps = {step.get("type"): step for step in state.get("decoders", [state])}
    if "ByteLevel" in steps:
        return False, False
    if "Metaspace" in steps:
        return True, steps["Metaspace"].get("prepend_scheme", "always") != "never"
    if "ByteFallback" in steps:
        return True, "Strip" in steps
    raise ValueError(
        f"{path} is neither byte-level BPE nor SentencePiece; use a llama, mistral or qwen model"
    )


def template_sources(configured: Any, chat_template: str | Path | None) -> dict[str, str]:
    if isinstance(chat_template, Path):
        if chat_template.suffix == ".json":
            configured = json_object(chat_template).get("chat_template")
        else:
            configured = read_text(chat_template, MAX_CONFIG_BYTES)
    elif chat_template is not None:
        configured = chat_template
    if isinstance(configured, str):
        return {"default": configured}
    if not isinstance(configured, list):
        return {}
    entries = [entry for entry in configured if isinstance(entry, Mapping)]
    return {
        str(entry.get("name")): entry["template"]
        for entry in entries
        if isinstance(entry.get("template"), str)
    }
