"""Metrics that travel with an update, each within bounds known beforehand: losses, and a recipe's own.

    wire = bound (min(max(v, lower), upper) - lower) / (upper - lower)        on the device, in [0, bound]
    mean = lower + (upper - lower) mean(wire) / bound                         on the server

>>> metrics = Metrics((Metric("accuracy", 0.0, 1.0),))
>>> sent = metrics.encoded({"accuracy": 0.75})
>>> sent, metrics.decoded(sent)
({'accuracy': 15.0}, {'accuracy': 0.75})

They are scalars of the head. Every merge sums them with the update, and hides them if it hides the update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from edgewise.core.space import HEAD_BOUND

LOSSES = ("loss_first", "loss_last")  # mean train loss of the first and of the last steps, nats per token
# The mean held-out loss of a device, and 1. Both are 0 on a device without held-out data.
HELD_OUT, HELD_SHARE = "held_out", "held_share"
IN_ALARM = "in_alarm"  # 1 where a device's text drifts (``drift.alarm``), else 0. A recipe declares it as [[metric]].


class Metric(NamedTuple):
    """One number that a device reports. A value below ``lower`` or above ``upper`` counts as the nearer bound."""

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
        each: all metrics.
        bound: largest value of a metric on the wire.
    """

    each: tuple[Metric, ...] = ()
    bound: float = HEAD_BOUND

    def __iter__(self) -> Iterator[Metric]:
        return iter(self.each)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all metrics."""
        return tuple(metric.name for metric in self.each)

    @property
    def own(self) -> tuple[Metric, ...]:
        """Metrics that a recipe declares."""
        return tuple(metric for metric in self.each if metric.name not in BUILT_IN)

    def factor(self, metric: Metric) -> float:
        """Wire units per unit of the metric."""
        return self.bound / (metric.upper - metric.lower)

    def encoded(self, head: Mapping[str, float]) -> dict[str, float]:
        """Scale the metrics of a head to wire units. NaN stays NaN.

        ``core.pipeline`` then cuts them to [0, bound].
        """
        scaled = {m.name: (head[m.name] - m.lower) * self.factor(m) for m in self.each if m.name in head}
        return {**head, **scaled}

    def decoded(self, head: Mapping[str, float], share: float = 1.0) -> dict[str, float]:
        """Scale means of a head from wire units back to metrics. Inverse of ``encoded``.

        ``share`` is the number that the means were divided by, over the number of contributions in them.
        """
        scaled = {m.name: m.lower + head[m.name] * share / self.factor(m) for m in self.each if m.name in head}
        return {**head, **scaled}
