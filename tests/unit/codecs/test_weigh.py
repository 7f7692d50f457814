"""Weights: capped, sent as one exact scalar, counted in the sensitivity."""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
import pytest

from edgewise.codecs.weigh import weigh
from edgewise.core.keys import Turn, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Quorum, Space

SPACE = Space(3, Quorum(1, 4), head=("loss",), l2=2.0, linf=1.0, head_l2=4.0)
X = np.array([1.0, -0.5, 0.25], np.float32)


@pytest.mark.parametrize(("count", "w"), [(0, 0.0), (25, 0.25), (100, 1.0), (10_000, 1.0), (inf, 1.0), (1e-3, 1e-5)])
def test_weights(count: float, w: float) -> None:
    payload, _ = weigh(100.0).encode(
        Payload(X, np.array([2.0]), count=count), Memory(), SPACE, Turn(0, root(1), root(2))
    )
    np.testing.assert_allclose(payload.body, X * w, rtol=1e-6)
    np.testing.assert_allclose(payload.head, [2.0 * w, w], rtol=1e-15)
    assert payload.body.dtype == np.float32
    assert (np.abs(payload.body) <= np.abs(X)).all()


def test_space() -> None:
    out = weigh(100.0).infer(SPACE)
    assert out.head == ("loss", "weight")
    assert (out.l2, out.linf) == (2.0, 1.0)
    assert out.head_l2 == sqrt(17.0)
    assert out.sensitivity == pytest.approx(sqrt(4.0 + 17.0))
    assert out.unbiased
    assert out.summable


@pytest.mark.parametrize("count", [-1.0, float("nan")])
def test_impossible_counts(count: float) -> None:
    with pytest.raises(ValueError, match="count"):
        weigh(1.0).encode(Payload(X, np.array([2.0]), count=count), Memory(), SPACE, Turn(0, root(1), root(2)))
