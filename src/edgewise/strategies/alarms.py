"""A server that steps further while many devices say that their text drifts.

    strategy = of_alarms(strategy, at=0.5, step=2.0)

With w' the step of the inner strategy from w, and a the mean of ``in_alarm`` over the round's contributions,

    w' = w + step (w' - w)      where a >= at

The function reads the release alone. So under differential privacy it costs nothing beyond the noise that covers the
mean, and a round that is played again after a stop steps as before.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgewise.core.metric import IN_ALARM
from edgewise.core.stage import Aggregate
from edgewise.core.vector import Vector
from edgewise.strategies.base import State, Strategy


def of_alarms(inner: Strategy, at: float, step: float) -> Strategy:
    """Let ``inner`` step ``step`` times as far in rounds where the share of devices in alarm is ``at`` or more.

    Edge cases: a round whose head lacks the share steps as ``inner``. The optimizer's state is that of ``inner``.
    """

    def apply(state: State, aggregate: Aggregate) -> State:
        after = inner.apply(state, aggregate)
        if aggregate.head.get(IN_ALARM, -1.0) < at:
            return after
        params: Vector = state.params + np.float32(step) * (after.params - state.params)
        return replace(after, params=params)

    says = f"{inner.says}; the step is {step:g} times as long where {at:g} or more of the devices report drift"
    return inner._replace(name=f"{inner.name} with alarms({at:g}, {step:g})", says=says, apply=apply)
