"""What a decode step is expected to take: from timed layers of the model, else modelled for a GPU's link."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from yakvrt.calibration import Setting, find
from yakvrt.modelled_step import modelled_step, weight_reads
from yakvrt.tuning import LinkRates, TuningError, load, tuning_path

if TYPE_CHECKING:
    from yakvrt.kvcache.contract import StepBytes
    from yakvrt.model_source import ModelSource


def predict(
    setting: Setting,
    source: ModelSource,
    dtype: str,
    read: StepBytes,
    n_tokens: int,
    n_slots: int,
    *,
    on_gpu: bool,
    host_rows: bool,
) -> dict[str, Any] | None:
    """step_ms and tokens_per_s of n_slots slots of n_tokens tokens, and how they were found:

    "timed": steps of n_timed_layers layers of this model, on this device; they hold whatever crosses a link.
    "modelled": max(device_ms, link_ms) from rates of the device, no row found in a cache. None: neither.
    """
    sections = load(setting.device_name)
    if not sections:
        return None
    path, found = tuning_path(setting.device_name), find(setting, sections)
    step_ms = found[0].step_ms(source.config.n_layers, n_tokens, n_slots) if found else None
    how: dict[str, Any]
    if found and step_ms:
        times, date = found
        how = {"how": "timed", "date": date, "n_timed_layers": times.n_layers, "n_threads": setting.n_threads}
        how |= {"deepest_timed": times.n_tokens[-1], "spread": times.spread}
    elif on_gpu and (rates := _link_rates(sections, str(path))):
        weights = weight_reads(source.config, source.tensors, dtype)
        link_gbps = rates.gather_gbps if host_rows else 0.0
        step = modelled_step(weights, read, n_slots, rates.memory_gbps, link_gbps)
        step_ms = step.step_ms
        how = {"how": "modelled", "device_ms": round(step.device_ms, 4), "link_ms": round(step.link_ms, 4)}
    else:
        return None
    speed = {"step_ms": round(step_ms, 4), "tokens_per_s": round(n_slots * 1e3 / step_ms, 2)}
    return {**speed, **how, "tuning_file": str(path)}


def _link_rates(sections: dict[str, Any], path: str) -> LinkRates | None:
    try:
        rates = LinkRates.read(sections)
    except TuningError as error:
        print(f"yakvrt: rates in {path} are ignored: {error}", file=sys.stderr)
        return None
    return rates if rates and rates.gather_gbps and rates.memory_gbps else None
