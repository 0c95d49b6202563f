"""Tokens drawn on the GPU, on the fake driver: those of the host's sampler, and no logits cross the link."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_driver import Plugged
from fake_gpu import FakeGpu
from tiny_device_model import WIDE_CONFIG

import yakvrt
from yakvrt.draw import Draw, Drawn

SAMPLED: dict[str, Any] = {"temperature": 3, "top_k": 20, "top_p": 0.95, "min_p": 0.02, "seed": 5}
ROW_BYTES = 24  # of what a step finds: the likeliest token, the one that is drawn, the largest logit


class Link(FakeGpu):
    """Notes how many bytes come back."""

    n_bytes = 0

    def cuMemcpyDtoHAsync(self, to: int, source: int, n: int, stream: int) -> None:
        self.n_bytes += n
        super().cuMemcpyDtoHAsync(to, source, n, stream)


@pytest.fixture
def link(gpu: FakeGpu) -> Link:
    Plugged.gpu = found = Link()
    return found


def load(tmp_path: Path, **more: int) -> yakvrt.Engine:
    (tmp_path / "config.json").write_text(json.dumps({**WIDE_CONFIG, **more}))
    how: dict[str, Any] = {"load_format": "dummy", "device": "cuda", "ctx_size": 16, "n_slots": 3}
    return yakvrt.load(str(tmp_path), ubatch_size=2, **how)


@pytest.fixture
def engine(link: Link, compiled_on_demand: None, tmp_path: Path) -> Iterator[yakvrt.Engine]:
    with load(tmp_path) as made:
        yield made
    assert not link.failures
    assert not link.held


def test_answers_are_those_of_the_host(engine: yakvrt.Engine, link: Link) -> None:
    """With log-probabilities logits come, and the host chooses."""
    with engine.session() as session:

        def answer(**how: Any) -> tuple[list[int], int]:
            sequence = engine.generate([5, 6], max_tokens=2, session=session, **how)
            sequence.prefill()
            link.n_bytes = 0
            list(sequence)
            return sequence.ids, link.n_bytes

        found = []
        for how in ({"temperature": 0}, SAMPLED):
            (ids, n_bytes), (truth, all_bytes) = answer(**how), answer(**how, logprobs=0)
            assert ids == truth
            assert (n_bytes, all_bytes) == (ROW_BYTES, 4 * 64)
            found.append(ids)
        assert found[0] != found[1]


def test_rows_of_a_step_may_differ(engine: yakvrt.Engine) -> None:
    """One is greedy, one wants its logits, one draws among two; the fourth holds nothing."""
    draws = [Draw(1, 0, 1, 0, 0), None, Draw(2, 1, 1, 0, 0.999999)]
    found, logits, second = engine.runner.next([0, 1, 2], [0] * 3, [7] * 3, draws)
    assert isinstance(logits, np.ndarray)
    assert found == Drawn(int(logits.argmax()), float(logits.max()))
    assert second == Drawn(int(logits.argsort()[-2]), float(logits.max()))


def test_rows_that_are_not_aligned_come_to_the_host(
    link: Link, compiled_on_demand: None, tmp_path: Path
) -> None:
    with load(tmp_path, vocab_size=63) as engine:
        (logits,) = engine.runner.next([0], [0], [7], [Draw(1, 0, 1, 0, 0)])
        assert isinstance(logits, np.ndarray)
        assert logits.shape == (63,)
