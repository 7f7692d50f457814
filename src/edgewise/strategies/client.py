"""The client half of a strategy: what a device adds to its gradients, what it sends with its update, what it keeps.

    shift = correct(memory, given, work)            every local step: g += pull (w - w_0) + shift
    finished = finish(x, memory, given, work)       after training, x = w - w_0

    memory     what the device keeps between rounds, by name: float32[d] each, zeros at first
    given      what the server sends beside the model: slots of ``State``, float32[d] each
    finished   the update that travels, what travels beside it, and the memory that holds once the server has used both

The functions are pure. The engine runs them, so every trainer, codec, driver and way of hiding serves every strategy:
what travels beside the update is more coordinates of the same vector (``plan.layout``), which stages clip, quantize and
mask as they do the rest, and memory is pending until the server has used the contribution (``engine.device``).

A correction is affine in w, and its shift stays the same all round, so a step costs two passes and no new vector.
FedProx, SCAFFOLD and FedDyn need no other. A term that looks inside the model, as MOON's does, belongs to the loss.

Example, error that comes back (``docs/howto/own-algorithm.md`` has one that runs):

    def finish(x, memory, given, work):
        whole = x + memory["left"]
        sent = np.round(whole, 2)
        return ClientUpdate(sent, memory={"left": whole - sent})

    Client(finish=finish, memory=("left",))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from edgewise.core.safe_repr import outline
from edgewise.core.training import Correction
from edgewise.core.vector import Vector

Vectors = Mapping[str, Vector]


class LocalWork(NamedTuple):
    """A device's training in one round.

    Attributes:
        steps: K_i, the optimizer steps that the device took; for ``Client.shift``, which comes before them, K.
        most: K, the most that any device takes.
        lr: eta of the round. base_lr: eta before the schedule, the same in all rounds.
        momentum: of plain SGD; 0 for other optimizers.
    """

    steps: int
    most: int
    lr: float
    base_lr: float
    momentum: float

    @property
    def unit(self) -> float:
        """K eta, the same for all devices and rounds: a gradient times this is about as long as an update, so that both
        can share clips and grids."""
        return self.most * self.base_lr


@dataclass(frozen=True)
class ClientUpdate:
    """What a device does with a trained update.

    Attributes:
        x: float32[d], what travels as the update.
        beside: what travels beside it, the names of ``Client.sends``, float32[d] each.
        head: scalars that travel exactly, the names of ``Client.head``, in [0, 1].
        memory: all names of ``Client.memory``, float32[d] each.
    """

    x: Vector
    beside: Vectors = field(default_factory=dict)
    head: Mapping[str, float] = field(default_factory=dict)
    memory: Vectors = field(default_factory=dict)

    __repr__ = outline


@dataclass(frozen=True)
class Client:
    """A client half; the default one adds, sends and keeps nothing, and costs nothing.

    Attributes:
        pull: mu in mu (w - w_0).
        shift: (memory, given, work) -> what every gradient gets besides, float32[d], new. None: nothing.
        finish: (x, memory, given, work) -> ``ClientUpdate``. None: x travels as it is.
        memory: names of what a device keeps. given: names of the slots of ``State`` that it is sent.
        sends: names of what travels beside the update; the server has their means as ``Aggregate.beside``.
        head: names of scalars that travel, whose means are in ``Aggregate.head``.
        plain_sgd: why the equations need SGD without momentum; None: they do not.
        uneven: why devices must take different numbers of steps; None: they need not.

    With memory, further vectors or scalars the server's mean must be one of all contributions and of all coordinates,
    and noise on it must not add up: ``plan.client_rules`` refuses the rest.
    """

    pull: float = 0.0
    shift: Callable[[Vectors, Vectors, LocalWork], Vector] | None = None
    finish: Callable[[Vector, Vectors, Vectors, LocalWork], ClientUpdate] | None = None
    memory: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    sends: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    plain_sgd: str | None = None
    uneven: str | None = None

    def correction(self, memory: Vectors, given: Vectors, work: LocalWork) -> Correction:
        """What is added to the gradients of one round."""
        return Correction(self.pull, None if self.shift is None else self.shift(memory, given, work))

    def finished(self, x: Vector, memory: Vectors, given: Vectors, work: LocalWork) -> ClientUpdate:
        """What a device does with a trained update."""
        return ClientUpdate(x) if self.finish is None else self.finish(x, memory, given, work)
