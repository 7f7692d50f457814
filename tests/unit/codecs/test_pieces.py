"""Contributions that are added while they are decoded: the same bits and refusals as those decoded first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.quantize.wrap import wrap
from edgewise.codecs.select.random_k import random_k
from edgewise.codecs.select.top_k import top_k
from edgewise.codecs.weigh import weigh
from edgewise.core.errors import DecodeError
from edgewise.core.keys import Turn, root
from edgewise.core.payload import Payload
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Stage
from edgewise.merges.plain import plain_sum
from edgewise.privacy.clip import clamp, clip

DIM = 1003
START = Space(DIM, Quorum(1, 8), head=("loss",), head_l2=20.0)
TURN = Turn(3, root(1), root(2))
CHAINS: list[list[Stage]] = [
    [],
    [clip(1.0), weigh(10.0)],
    [quantize(8, block=64)],
    [weigh(10.0), quantize(4, block=100)],
    [clip(3.0), clamp(0.5), quantize(6, "shared"), wrap(16)],
    [weigh(10.0), feedback([clip(2.0), quantize(3)])],
]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.core.pipeline.PIECE", 256)


def _both(stages: list[Stage]) -> tuple[Pipeline, Pipeline]:
    merge = plain_sum()
    return pipeline(START, stages, merge), pipeline(START, stages, replace(merge, stream=None))


@pytest.mark.quick(sample=6)
@pytest.mark.parametrize("stages", CHAINS, ids=lambda s: " > ".join(x.name for x in s))
@pytest.mark.parametrize("scale", [1e-9, 1.0, 3e5])
def test_same_bits_as_decoding_first(stages: list[Stage], scale: float) -> None:
    totals = []
    for pipe in _both(stages):
        g, total = np.random.default_rng(0), pipe.start_sum()
        for i in range(3):
            x = (g.uniform(-1, 1, DIM) * scale).astype(np.float32)
            x[i] = scale
            payload, _ = pipe.encode(x, {"loss": 2.0}, 7.0, pipe.init(), Turn(i, root(1), root(2)))
            total = pipe.add(total, payload, TURN)
        totals.append(total)
    assert totals[0].acc.body.tobytes() == totals[1].acc.body.tobytes()
    assert totals[0].acc.head == totals[1].acc.head
    assert totals[0].n == totals[1].n == 3
    assert totals[0].acc.body.any() == (scale > 1e-3 or "shared" not in str([s.name for s in stages]))


@pytest.mark.parametrize(
    ("stages", "bad", "code"),
    [
        ([], 1e6, "E-RANGE"),
        ([], np.nan, "E-PAYLOAD"),
        ([], -np.inf, "E-PAYLOAD"),
        ([clip(20.0)], 19.9, "E-RANGE"),
        ([clamp(1.0)], 1.01, "E-RANGE"),
    ],
)
@pytest.mark.parametrize("where", [0, 300, DIM - 1])
def test_a_refused_piece_takes_the_earlier_ones_with_it(stages: list[Stage], bad: float, code: str, where: int) -> None:
    body = np.full(DIM, 0.1, np.float32)
    for pipe in _both(stages):
        total = pipe.add(pipe.start_sum(), Payload(body, np.ones(1)), TURN)
        before = total.acc.body.copy()
        wrong = body.copy()
        wrong[where] = bad
        with pytest.raises(DecodeError) as caught:
            pipe.add(total, Payload(wrong, np.ones(1)), TURN)
        assert caught.value.code == code
        assert total.acc.body.tobytes() == before.tobytes()
        assert pipe.add(total, Payload(body, np.ones(1)), TURN).acc.n == 2


def test_a_bad_head_is_refused_before_anything_is_added() -> None:
    for pipe in _both([]):
        total = pipe.start_sum()
        with pytest.raises(DecodeError, match="E-RANGE"):
            pipe.add(total, Payload(np.ones(DIM, np.float32), np.array([21.0])), TURN)
        assert not total.acc.body.any()


def test_misuse_is_refused_alike() -> None:
    for pipe in _both([]):
        with pytest.raises(ValueError, match="shape"):
            pipe.add(pipe.start_sum(), Payload(np.ones(3, np.float32), np.ones(1)), TURN)
        total = pipe.start_sum()
        for _ in range(8):
            total = pipe.add(total, Payload(np.ones(DIM, np.float32), np.ones(1)), TURN)
        with pytest.raises(ValueError, match="limit"):
            pipe.add(total, Payload(np.ones(DIM, np.float32), np.ones(1)), TURN)


def test_the_sum_rounds_half_to_even_at_every_size() -> None:
    """Both conversions from float to fixed point agree with Python's integers."""
    g = np.random.default_rng(1)
    for top in (2.0**-30, 1.0, 1000.0, 2000.0, 2.0**19):
        x = (g.uniform(-top, top, DIM)).astype(np.float32)
        x[:4] = [top / 2, -(2.0**-41), 3 * 2.0**-41, 5 * 2.0**-42]
        total = _both([])[0]
        acc = total.add(total.start_sum(), Payload(x, np.ones(1)), TURN).acc
        assert acc.body.tolist() == [round(float(v) * 2**40) for v in x]


def test_which_chains_are_decoded_in_pieces() -> None:
    def local(*stages: Stage) -> bool:
        return all(s.pointwise for s in stages)

    assert all(local(*stages) for stages in CHAINS)
    assert not local(random_k(0.5, unbiased=False))
    assert not local(feedback([random_k(0.5, unbiased=False)]))
    assert not local(top_k(0.1))
