"""Strategies: the step from a round's aggregate to the next model, and the client half (``strategies.client``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from edgewise.core.stage import Aggregate
from edgewise.core.vector import Segment, Spec, Vector
from edgewise.strategies.client import Client


@dataclass(frozen=True)
class State:
    """State of a strategy between rounds.

    Attributes:
        params: float32[d], the current model.
        slots: optimizer state by name (``"m"``, ``"v"``), float32[d] each. Empty for plain averaging.
        round: number of rounds applied so far.
    """

    params: Vector
    slots: Mapping[str, Vector] = field(default_factory=dict)
    round: int = 0


@dataclass(frozen=True)
class Directions:
    """Training along ``count`` seeded directions only. The coefficients of these directions travel and are summed.

    ``eps`` is half the distance between the two models that a step compares.
    """

    count: int
    eps: float

    @property
    def spec(self) -> Spec:
        """Layout of the engine's vector in such a run: one coefficient per direction."""
        return Spec.of([("directions", (self.count,), "float32")])


class Strategy(NamedTuple):
    """A server half, ``init`` and ``apply``, both pure, and a client half.

    Attributes:
        says: one sentence for ``check``, the report and the model card: the server's use of the mean update, and the
            devices' work beside training.
        init: params -> the state before the first round.
        apply: (state, aggregate) -> the next state. ``aggregate.mean`` is the mean of ``trained - start``, an ascent
            direction, so the server *adds* it.
        client: the devices' work beside training.
        directions: meaning of the vector, if it holds coefficients instead of parameters.
    """

    name: str
    says: str
    init: Callable[[Vector], State]
    apply: Callable[[State, Aggregate], State]
    client: Client = Client()
    directions: Directions | None = None


def hold_frozen_segments(before: State, after: State, frozen: Sequence[Segment]) -> State:
    """Restore the parameters and the optimizer state of ``frozen`` segments in ``after`` from ``before``.

    Segments that did not travel are not a zero update. Otherwise a server's momentum would go on moving them.
    """
    if not frozen:
        return after

    def restored(old: Vector, new: Vector) -> Vector:
        out = new.copy()
        for s in frozen:
            out[s.start : s.stop] = old[s.start : s.stop]
        return out

    slots = {name: restored(before.slots.get(name, new), new) for name, new in after.slots.items()}
    return replace(after, params=restored(before.params, after.params), slots=slots)
