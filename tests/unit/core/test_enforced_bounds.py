"""Bounds that a plan claims for one device are enforced if the server sees single updates. Honest devices pass them."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.weigh import weigh
from edgewise.core.errors import DecodeError
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.metric import LOSSES
from edgewise.core.payload import Payload
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Quorum, Space
from edgewise.merges.plain import plain_sum
from edgewise.privacy.clip import clamp, clip

DIM = 64
TURN = Turn(0, bytes(32), bytes(32))
START = Space(DIM, Quorum(1, 4), head=LOSSES, head_l2=20 * 2**0.5)


def chain(*stages):
    return pipeline(START, [*stages, weigh(10.0)], plain_sum())


def lie(pipe, body, head=(1.0, 1.0, 1.0)):
    return pipe.add(pipe.start_sum(), Payload(np.asarray(body, np.float32), np.array(head, np.float64)), TURN)


def test_a_longer_update_than_the_clip_allows_is_refused():
    pipe = chain(clip(1.0))
    lie(pipe, np.full(DIM, 1 / 8))
    with pytest.raises(DecodeError, match="E-RANGE"):
        lie(pipe, np.full(DIM, 1 / 7))


def test_a_coordinate_above_the_clamp_is_refused():
    pipe = chain(clamp(0.5))
    lie(pipe, np.full(DIM, 0.5))
    with pytest.raises(DecodeError, match="E-RANGE"):
        lie(pipe, np.full(DIM, 0.51))


@pytest.mark.parametrize("head", [(-1.0, 1.0, 1.0), (1.0, 15.0, 0.5), (1.0, 1.0, 1.5), (1.0, 1.0, -0.5)])
def test_metrics_and_weights_that_no_honest_device_sends_are_refused(head):
    with pytest.raises(DecodeError, match="E-RANGE"):
        lie(chain(), np.zeros(DIM), head)


@pytest.mark.parametrize("stages", [(clip(1.0),), (clip(0.3), quantize(4)), (clip(2.0), quantize(4, "shared"))])
def test_honest_encoders_stay_inside(stages):
    pipe = pipeline(START, [weigh(10.0), *stages], plain_sum())
    rng = np.random.default_rng(0)
    total = pipe.start_sum()
    for scale in (1e-6, 1.0, 1e4):
        x = (rng.normal(size=DIM) * scale).astype(np.float32)
        payload, _ = pipe.encode(x, {"loss_first": 3.0, "loss_last": 30.0}, 7.0, Memory(), TURN)
        total = pipe.add(total, payload, TURN)
    assert total.n == 3


def test_a_refused_contribution_leaves_the_total_alone():
    pipe = chain(clip(1.0))
    total = lie(pipe, np.full(DIM, 0.1))
    before = total.acc.body.copy()
    with pytest.raises(DecodeError):
        pipe.add(total, Payload(np.full(DIM, 9, np.float32), np.array([1.0, 1.0, 1.0])), TURN)
    np.testing.assert_array_equal(total.acc.body, before)
