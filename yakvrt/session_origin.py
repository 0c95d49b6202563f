"""What the keys and values of a session depend on, as text: who may go on from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from yakvrt import __version__

if TYPE_CHECKING:
    from .backend import Backend
    from .config import ModelConfig
    from .kvcache.contract import KvSetting
    from .weights import Weights


def session_origin(model: str, method: str, parameters: Any, setting: KvSetting) -> dict[str, str]:
    """Sessions of equal origin may take over each other's slots; model_name is there to be shown."""
    turned = hashlib.sha256(setting.inv_freq.tobytes() + repr(setting.rope_scale).encode()).hexdigest()
    return {
        "yakvrt_version": __version__,
        "model_name": model,
        "model": fingerprint(setting.backend, setting.config, setting.weights),
        "rope": f"base {setting.config.rope_theta:g}, frequencies {turned[:16]}",
        "kv": method,
        "kv_args": ",".join(
            f"{f.name}={_text(getattr(parameters, f.name), f.type)}" for f in fields(parameters)
        ),
        "cache_type": setting.kind,
    }


def _text(value: Any, type_name: Any) -> str:
    """A value as --kv-args takes it, the same however it was given."""
    if type_name == "bool":
        return "on" if value else "off"
    return repr(float(value)).removesuffix(".0") if type_name == "float" else str(value)


def fingerprint(backend: Backend, config: ModelConfig, weights: Weights) -> str:
    """Tells models apart by what they compute with, wherever their files lie: the configuration, all vectors
    and pieces of every matrix as it rests in memory.
    """
    digest = hashlib.sha256(repr(config).encode())
    for part in _parts(weights):
        if part is not None:
            digest.update(backend.sample(part))
    return digest.hexdigest()


def _parts(weights: Weights) -> Iterator[Any]:
    yield weights.token_embd
    for layer in weights.layers:
        for name in layer.__slots__:
            yield getattr(layer, name)
    yield weights.output_norm
    yield weights.output
