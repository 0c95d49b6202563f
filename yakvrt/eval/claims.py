"""What the YAKV paper claims, judged by the records at hand: confirmed, refuted or undecided.

A verdict is about a 95 % interval: of an advantage that is claimed to be there, or of one that is claimed to
be small. It is of the model and the samples measured; less than MIN_SAMPLES of a task decide nothing, and
neither do scores of a task that full attention itself fails.

Source: arXiv 2604.08426.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from yakvrt.terminal import counted

from .bootstrap import Interval, Strata, difference_of, mean_of
from .findings import FULL, Findings, Method, title

PAPER_BUDGET = 0.03125
MIN_SAMPLES = 5
CLOSE = {"score": 2.0, "kl_mean": 0.02}  # points, nats: what counts as no difference
UNITS = {"score": "points", "kl_mean": "nats"}
NAMES = {"score": "score", "kl_mean": "KL"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim by one reading, "score" or "kl_mean"."""

    claim: str
    reading: str
    word: str
    numbers: str


def sentences(found: Iterable[Verdict]) -> list[str]:
    """One for each claim, with the verdicts of all readings."""
    by_claim: dict[str, list[str]] = {}
    for one in found:
        verdict = f"by {NAMES[one.reading]} **{one.word}** ({one.numbers})"
        by_claim.setdefault(one.claim, []).append(verdict)
    return [f"{claim}: {'; '.join(words)}." for claim, words in by_claim.items()]


def judged(interval: Interval, strata: Iterable[Strata], *, close: float | None = None) -> str:
    """Whether an advantage is positive; with `close`, whether it is within so much of zero.

    strata: the samples behind it.
    """
    low, high = interval.low, interval.high
    fewest = min((len(values) for one in strata for values in one.values()), default=0)
    if fewest < MIN_SAMPLES or not np.isfinite(low):
        return "undecided"
    if close is None:
        return "confirmed" if low > 0 else "refuted" if high < 0 else "undecided"
    if -close <= low and high <= close:
        return "confirmed"
    return "refuted" if low > close or high < -close else "undecided"


def verdicts(findings: Findings) -> Iterator[Verdict]:
    """All claims that the records have something of, by score and by KL divergence from full attention."""
    for name in ("score", "kl_mean"):
        yield from _needles_hide_the_loss(findings, name)
        yield from _ranks(findings, name)
        yield from _residual_selector(findings, name)
        yield from _needles_do_not_rank(findings, name)
    yield from _not_lossless(findings)


def at_budget(findings: Findings, *labels: str) -> Method | None:
    """The first of the labels that was measured, at the budget nearest to the paper's."""
    for label in labels:
        found = [method for method in findings.methods if method[0] == label]
        if found:
            return min(found, key=lambda method: abs((method[1] or PAPER_BUDGET) - PAPER_BUDGET))
    return None


def _gain(findings: Findings, name: str, a: Method, b: Method, intensity: str | None) -> Strata:
    """How much better a is than b, sample by sample."""
    pair = (a, b) if name == "score" else (b, a)
    return _telling(findings, name, findings.differences(name, *pair, intensity))


def _telling(findings: Findings, name: str, strata: Strata) -> Strata:
    """Without the scores of tasks that full attention fails."""
    if name != "score":
        return strata
    return {task: values for task, values in strata.items() if task not in findings.failed}


def _numbers(name: str, interval: Interval, what: str = "advantage") -> str:
    digits = 1 if name == "score" else 3
    return f"{what} {interval.shown(digits)} {UNITS[name]}, {counted(interval.n, 'sample')}"


def _needles_hide_the_loss(findings: Findings, name: str) -> Iterator[Verdict]:
    """The paper's point."""
    near = [
        method
        for method in findings.methods
        if method[0] in findings.offloading and method == at_budget(findings, method[0])
    ]
    loss = {intensity: _mean_loss(findings, name, near, intensity) for intensity in ("low", "high")}
    if loss["low"] and loss["high"]:
        found = difference_of(loss["high"], loss["low"])
        digits = 1 if name == "score" else 3
        both = ", ".join(f"{i} {mean_of(loss[i]).shown(digits)}" for i in ("low", "high"))
        yield Verdict(
            f"Context-intensive tasks lose more than needle-like ones, mean of {len(near)} methods",
            name,
            judged(found, loss.values()),
            f"loss {both}; {_numbers(name, found, 'difference')}",
        )


def _mean_loss(findings: Findings, name: str, methods: list[Method], intensity: str) -> Strata:
    """Of samples that all the methods have."""
    losses: dict[str, dict[str, list[float]]] = {}
    full = findings.values(name, FULL, intensity)
    sign = 1 if name == "score" else -1
    for method in methods:
        for task, values in findings.values(name, method, intensity).items():
            for sample, value in values.items():
                if sample in full.get(task, {}):
                    loss = sign * (full[task][sample] - value)
                    losses.setdefault(task, {}).setdefault(sample, []).append(loss)
    whole = {
        task: [float(np.mean(found)) for found in by_sample.values() if len(found) == len(methods)]
        for task, by_sample in sorted(losses.items())
    }
    found = {task: np.array(values) for task, values in whole.items() if values}
    return _telling(findings, name, found)


def _ranks(findings: Findings, name: str) -> Iterator[Verdict]:
    """At equal bytes, on context-intensive tasks."""
    paper, ours = at_budget(findings, "yakv-paper"), at_budget(findings, "yakv")
    rivals = [
        ("ShadowKV", at_budget(findings, "shadowkv-equal", "shadowkv")),
        ("LRQK", at_budget(findings, "lrqk-equal", "lrqk")),
        ("ArkVale", at_budget(findings, "arkvale-equal", "arkvale")),
    ]
    pairs = [("the paper's YAKV", paper, rival, method) for rival, method in rivals]
    pairs.append(("yakvrt's YAKV", ours, "the paper's", paper))
    for who, method, rival, other in pairs:
        if method and other:
            gain = _gain(findings, name, method, other, "high")
            if gain:
                claim = f"At equal bytes {who} is better than {rival} on context-intensive tasks"
                found = mean_of(gain)
                yield Verdict(claim, name, judged(found, [gain]), f"{title(method)}, {_numbers(name, found)}")


def _residual_selector(findings: Findings, name: str) -> Iterator[Verdict]:
    two, less = at_budget(findings, "yakv"), at_budget(findings, "yakv-1.5bit")
    if two and less:
        gain = _gain(findings, name, two, less, None)
        yield from _level("A selector of 1.5 bits is as good as one of 2 bits", name, gain)


def _level(claim: str, name: str, gain: Strata) -> Iterator[Verdict]:
    """Whether what is gained is no more than CLOSE."""
    if gain:
        found = mean_of(gain)
        numbers = f"within {CLOSE[name]:g} {UNITS[name]}; {_numbers(name, found)}"
        yield Verdict(claim, name, judged(found, [gain], close=CLOSE[name]), numbers)


def _needles_do_not_rank(findings: Findings, name: str) -> Iterator[Verdict]:
    paper, lrqk = at_budget(findings, "yakv-paper"), at_budget(findings, "lrqk-equal", "lrqk")
    if paper and lrqk:
        gain = _gain(findings, name, paper, lrqk, "low")
        yield from _level("On needle-like tasks LRQK and the paper's YAKV are level", name, gain)


def _not_lossless(findings: Findings) -> Iterator[Verdict]:
    """Scores alone: a divergence is never negative."""
    measured = [
        ("The paper's YAKV", at_budget(findings, "yakv-paper")),
        ("Selection by the true scores", at_budget(findings, "oracle-equal", "oracle")),
    ]
    for who, method in measured:
        gain = _gain(findings, "score", FULL, method, "high") if method else {}
        if method and gain:
            found = mean_of(gain)
            kl = findings.mean("kl_mean", method, intensity="high")
            yield Verdict(
                f"{who} at the paper's budget loses against full attention on context-intensive tasks",
                "score",
                judged(found, [gain]),
                f"{title(method)}, {_numbers('score', found, 'loss')}, KL {kl.shown(3)} nats",
            )
