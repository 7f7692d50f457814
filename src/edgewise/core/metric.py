"""Numbers of devices that travel with an update, each within bounds that are known before: losses, and a recipe's own.

    wire = bound (min(max(v, lower), upper) - lower) / (upper - lower)        on the device, in [0, bound]
    mean = lower + (upper - lower) mean(wire) / bound                         on the server

    metrics = Metrics((Metric("accuracy", 0.0, 1.0),))
    sent = metrics.encoded({"accuracy": 0.75})        # {"accuracy": 15.0}
    metrics.decoded(sent)                             # {"accuracy": 0.75}

They are scalars of the head, so every merge sums them with the update, hidden where the update is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from edgewise.core.space import HEAD_BOUND

LOSSES = ("loss_first", "loss_last")  # mean train loss of the first and of the last steps, nats per token
HELD_OUT, HELD_SHARE = "held_out", "held_share"  # mean held-out loss of a device, and 1; both 0 where it has none


class Metric(NamedTuple):
    """One number of a device. A value outside of ``lower`` to ``upper`` counts as the nearest of them."""

    name: str
    lower: float
    upper: float


LOSS_METRICS = tuple(Metric(name, 0.0, HEAD_BOUND) for name in LOSSES)
HELD_METRICS = (Metric(HELD_OUT, 0.0, HEAD_BOUND), Metric(HELD_SHARE, 0.0, 1.0))
BUILT_IN = frozenset(metric.name for metric in (*LOSS_METRICS, *HELD_METRICS))


@dataclass(frozen=True)
class Metrics:
    """The metrics of a run, in the order in which they travel.

    Attributes:
        each: all of them. bound: of each on its way.
    """

    each: tuple[Metric, ...] = ()
    bound: float = HEAD_BOUND

    def __iter__(self) -> Iterator[Metric]:
        return iter(self.each)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all."""
        return tuple(metric.name for metric in self.each)

    @property
    def own(self) -> tuple[Metric, ...]:
        """Those that a recipe declares."""
        return tuple(metric for metric in self.each if metric.name not in BUILT_IN)

    def factor(self, metric: Metric) -> float:
        """What one unit of it is on its way."""
        return self.bound / (metric.upper - metric.lower)

    def encoded(self, head: Mapping[str, float]) -> dict[str, float]:
        """A head with its metrics as they travel, but for the cut to the bounds (``core.pipeline``); NaN stays NaN."""
        given = {m.name: (head[m.name] - m.lower) * self.factor(m) for m in self.each if m.name in head}
        return {**head, **given}

    def decoded(self, head: Mapping[str, float], share: float = 1.0) -> dict[str, float]:
        """The inverse, of means. ``share``: what a mean was divided by, over the number of contributions in it."""
        given = {m.name: m.lower + head[m.name] * share / self.factor(m) for m in self.each if m.name in head}
        return {**head, **given}
