"""How far a method's attention is from full attention's under the same inputs, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from attention_truth import AttentionTruth, output_error
from decode_replay import Replay, StepInputs
from prompt_capture import PromptRows, feed
from rows_read import reading
from value_marks import ValueMarks

from yakvrt.kvcache import open_method
from yakvrt.kvcache.contract import KvSetting

Progress = Callable[[float], None]  # the share done


@dataclass(frozen=True, slots=True)
class Study:
    """One prompt and the decode steps behind it, as full attention took them.

    Shapes: outputs [L, steps, Hq * D], full attention's over marked values.
    """

    setting: KvSetting
    prompt: PromptRows
    inputs: StepInputs
    outputs: np.ndarray
    truth: AttentionTruth

    @classmethod
    def of(cls, setting: KvSetting, prompt: PromptRows, inputs: StepInputs) -> Study:
        outputs = np.empty_like(inputs.arrays["q"])
        module, parameters = open_method("full", {})
        method, mark = module.build(setting, parameters), ValueMarks(setting).mark
        slot = method.open(setting.ctx_size)
        feed(setting, method, slot, prompt, mark)
        replay = Replay(setting, method, slot, inputs, mark)
        for step in range(inputs.n_steps):
            for layer in range(setting.config.n_layers):
                outputs[layer, step] = replay.run(step, layer)
        return cls(setting, prompt, inputs, outputs, AttentionTruth(setting, prompt, inputs))

    def scores(self, name: str, args: Mapping[str, str], k: int, progress: Progress) -> dict[str, Any]:
        """attention_error, mass_covered and recall at k of a method, means over layers, heads and steps.

        The last two are None for a method whose rows cannot be read.
        """
        setting, mark = self.setting, ValueMarks(self.setting).mark
        n_layers, n_steps = setting.config.n_layers, self.inputs.n_steps
        module, parameters = open_method(name, args)
        if getattr(parameters, "split_budget", False):  # shared out among the query heads that choose
            k = max(1, k * setting.config.n_kv_heads // setting.config.n_heads)
        method = module.build(setting, parameters)
        slot = method.open(setting.ctx_size)
        feed(setting, method, slot, self.prompt, mark)
        replay = Replay(setting, method, slot, self.inputs, mark)
        errors = np.empty((n_steps, n_layers))
        covered, recalled = np.full((2, n_steps, n_layers), np.nan)
        with reading(setting, module, method, parameters, replay) as rows:
            for step in range(n_steps):
                for layer in range(n_layers):
                    out = replay.run(step, layer)
                    exact = self.outputs[layer, step]
                    errors[step, layer] = output_error(out, exact, setting.config.n_kv_heads)
                    read = rows(layer, self.inputs.first + step)
                    if read is not None:
                        covered[step, layer] = self.truth.mass_covered(layer, step, read)
                        recalled[step, layer] = self.truth.recall(layer, step, read, k)
                progress((step + 1) / n_steps)
        return {
            "attention_error": float(errors.mean()),
            "attention_error_by_layer": [round(float(error), 5) for error in errors.mean(axis=0)],
            "mass_covered": None if np.isnan(covered).any() else float(covered.mean()),
            "recall": None if np.isnan(recalled).any() else float(recalled.mean()),
        }
