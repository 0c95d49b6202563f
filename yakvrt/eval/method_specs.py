"""The KV methods of an evaluation: `--kv full,yakv,lrqk-equal --budget 0.03125,0.0625`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yakvrt.kvcache import open_method
from yakvrt.kvcache.equal_bytes import equal_budget
from yakvrt.kvcache.method_label import name_and_args

if TYPE_CHECKING:
    from yakvrt.config import ModelConfig

DEFAULT_METHODS = (
    "full,yakv,yakv-1.5bit,yakv-paper,shadowkv-equal,arkvale-equal,quest-equal,lrqk-equal,infinigen-equal,"
    "oracle-equal"
)
DEFAULT_BUDGET = 0.03125


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method by its label. `budget`: the share of the tokens whose K and V at 4 bits are as many bytes as
    it may ask of the host in a step; None for a method without one, or with one of its own in the label.
    """

    label: str
    budget: float | None

    @property
    def key(self) -> tuple[str, float | None]:
        return self.label, self.budget

    @property
    def title(self) -> str:
        return self.label if self.budget is None else f"{self.label} at {self.budget:.4g}"

    def parameters(self, config: ModelConfig, kind: str, n_tokens: int) -> dict[str, str]:
        """For a prompt of n_tokens: the label's, and a sparse_budget that buys `budget`'s bytes."""
        name, args = name_and_args(self.label)
        if self.budget is None:
            return args
        return equal_budget(name, args, config, kind, n_tokens, self.budget)

    def open(self, parameters: dict[str, str]) -> tuple[Any, Any]:
        """Module and parameters, as open_method."""
        return open_method(name_and_args(self.label)[0], parameters)


FULL = MethodSpec("full", None)


def method_specs(labels: Sequence[str], budgets: Sequence[float]) -> list[MethodSpec]:
    """Every method at every budget; full attention comes first, asked for or not.

    Raises: ValueError for a method or a parameter that is not known, or a budget out of range.
    """
    for budget in budgets:
        if not 0 < budget <= 1:
            raise ValueError(f"--budget {budget:g} is out of range; give a share of the tokens, up to 1")
    specs = [FULL]
    for label in labels:
        name, args = name_and_args(label)
        _, parameters = open_method(name, args)
        fixed = "sparse_budget" in args or not hasattr(parameters, "sparse_budget")
        specs += [MethodSpec(label, budget) for budget in ([None] if fixed else budgets)]
    return list(dict.fromkeys(specs))
