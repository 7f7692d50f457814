"""How the server turns a round's aggregate into the next model, and what devices do for it (``strategies.client``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from edgewise.core.stage import Aggregate
from edgewise.core.vector import Segment, Spec, Vector
from edgewise.strategies.client import Client


@dataclass(frozen=True)
class State:
    """What a strategy keeps between rounds.

    Attributes:
        params: float32[d], the current model.
        slots: optimizer state by name (``"m"``, ``"v"``), float32[d] each; empty for plain averaging.
        round: rounds applied so far.
    """

    params: Vector
    slots: Mapping[str, Vector] = field(default_factory=dict)
    round: int = 0


@dataclass(frozen=True)
class Directions:
    """Devices move along ``count`` seeded directions only, and coefficients of these are what travels and is summed.

    ``eps``: half the distance between the two losses that a step compares.
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
        says: what the server does with the mean update, and what devices do for it: one sentence for ``check``, the
            report and the model card.
        init: params -> the state before the first round.
        apply: (state, aggregate) -> the next state. ``aggregate.mean`` is the mean of ``trained - start``: an ascent
            direction, so the server *adds* it.
        client: what devices do beside training.
        directions: what the vector stands for, where it holds coefficients instead of parameters.
    """

    name: str
    says: str
    init: Callable[[Vector], State]
    apply: Callable[[State, Aggregate], State]
    client: Client = Client()
    directions: Directions | None = None


def hold(before: State, after: State, frozen: Sequence[Segment]) -> State:
    """``after``, with the parameters and the optimizer state of ``frozen`` as they were ``before``.

    Segments that did not travel are no zero update: without this a server's momentum would go on moving them.
    """
    if not frozen:
        return after

    def held(old: Vector, new: Vector) -> Vector:
        out = new.copy()
        for s in frozen:
            out[s.start : s.stop] = old[s.start : s.stop]
        return out

    slots = {name: held(before.slots.get(name, new), new) for name, new in after.slots.items()}
    return replace(after, params=held(before.params, after.params), slots=slots)
