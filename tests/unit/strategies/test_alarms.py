"""The server's longer step while many devices are in alarm."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.stage import Aggregate
from edgewise.strategies.alarms import of_alarms
from edgewise.strategies.fedopt import fedavg


@pytest.mark.parametrize(("head", "factor"), [({"in_alarm": 0.49}, 1.0), ({"in_alarm": 0.5}, 3.0), ({}, 1.0)])
def test_the_step_is_longer_from_the_share_on(head: dict[str, float], factor: float) -> None:
    inner = fedavg(0.5)
    strategy = of_alarms(inner, at=0.5, step=3.0)
    before = strategy.init(np.float32([1.0, 2.0]))
    mean = np.float32([0.5, -1.0])
    after = strategy.apply(before, Aggregate(mean, head, 4, 4.0))
    np.testing.assert_allclose(after.params, before.params + factor * 0.5 * mean)
    assert after.round == 1
    assert "3 times as long where 0.5 or more" in strategy.says
