"""Error feedback step by step, against the equations."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from edgewise.codecs.feedback import feedback
from edgewise.codecs.quantize import quantize
from edgewise.codecs.random_k import random_k
from edgewise.codecs.top_k import top_k
from edgewise.core.keys import Turn, root
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Memory, Payload, Stage
from edgewise.core.vector import Vector
from edgewise.privacy.clip import clip

SPACE = Space(4, Quorum(1, 4), universe=4)


def _turn(round: int) -> Turn:
    return Turn(round, root(1), root(2))


def _send(stage: Stage, x: list[float], memory: Memory, round: int) -> tuple[Vector, Memory]:
    payload, memory = stage.encode(Payload(np.array(x, np.float32), np.zeros(0)), memory, SPACE, _turn(round))
    return stage.decode(payload, SPACE, _turn(round)).dense(SPACE.dim).body, memory


def test_by_hand() -> None:
    stage = feedback([top_k(0.25)])
    memory = stage.init(SPACE)
    assert memory["residual"].tolist() == [0, 0, 0, 0]
    assert memory["last"].tolist() == [-1]
    sent, memory = _send(stage, [5, 3, -4, 1], memory, 0)
    assert sent.tolist() == [5, 0, 0, 0]
    assert memory["residual"].tolist() == [0, 3, -4, 1]
    sent, memory = _send(stage, [1, 2, 0, 0], memory, 1)
    assert sent.tolist() == [0, 5, 0, 0]
    assert memory["residual"].tolist() == [1, 0, -4, 1]
    assert memory["last"].tolist() == [1]


@pytest.mark.parametrize(("absent", "factor"), [(0, 1.0), (1, 0.5), (2, 0.25), (3, 0.0), (9, 0.0)])
def test_the_residual_fades_and_is_forgotten(absent: int, factor: float) -> None:
    stage = feedback([top_k(0.25)], decay=0.5, forget_after=3)
    _, memory = _send(stage, [5, 3, -4, 1], stage.init(SPACE), 10)
    sent, memory = _send(stage, [0, 0, 0, 0.01], memory, 11 + absent)
    residual = np.array([0, 3, -4, 1], np.float32) * np.float32(factor) + np.array([0, 0, 0, 0.01], np.float32)
    np.testing.assert_array_equal(sent + memory["residual"], residual)


def test_a_round_asked_twice_counts_as_no_absence() -> None:
    stage = feedback([top_k(0.25)], decay=0.5)
    _, memory = _send(stage, [5, 3, -4, 1], stage.init(SPACE), 3)
    sent, _ = _send(stage, [0, 0, 0, 0], memory, 3)
    assert sent.tolist() == [0, 0, -4, 0]


def test_algebra() -> None:
    bounded = SPACE.but(l2=1.0, linf=1.0)
    out = feedback([top_k(0.5)]).infer(bounded)
    assert (out.l2, out.linf, out.memory, out.unbiased, out.sparse, out.universe) == (inf, inf, True, False, True, 4)
    out = feedback([clip(2.0), random_k(0.5, unbiased=False)]).infer(bounded)
    assert (out.l2, out.memory, out.summable) == (2.0, True, True)
    assert feedback([quantize(4)]).infer(SPACE).bits == 4.0


def test_it_recovers_what_compression_loses() -> None:
    """A constant update through 1-of-4: feedback delivers all of it, plain top-k never sends three quarters."""
    stage = feedback([top_k(0.25)])
    memory, total = stage.init(SPACE), np.zeros(4)
    for round in range(100):
        sent, memory = _send(stage, [1.0, 0.9, 0.8, 0.7], memory, round)
        total += sent
    np.testing.assert_allclose(total / 100, [1.0, 0.9, 0.8, 0.7], atol=0.05)
