"""Client half of a strategy: additions to the gradients, vectors sent beside the update, and memory of the device.

    shift = correct(memory, given, work)            every local step: g += pull (w - w_0) + shift
    finished = finish(x, memory, given, work)       after training, x = w - w_0

    memory     arrays that the device keeps between rounds, by name: float32[d] each, zeros at first
    given      vectors that the server sends beside the model: slots of ``State``, float32[d] each
    finished   the update that travels, the vectors beside it, and the memory that holds once the server has used both

The functions are pure. The engine runs them, so every trainer, codec, driver and mode of secure aggregation serves
every strategy. Vectors beside the update are more coordinates of the same vector (``plan.layout``). Stages clip,
quantize and mask them like the rest. Memory is pending until the server has used the contribution (``engine.device``).

A correction is affine in w, and its shift stays the same all round, so a step costs two passes and no new vector.
FedProx, SCAFFOLD and FedDyn need no other. A term that looks inside the model, as MOON's does, belongs to the loss:
``contrast`` describes it, and the trainer computes it (port ``engine.trainer.ContrastsModels``).

Example of error feedback (``docs/howto/own-algorithm.md`` has one that runs):

    def finish(x, memory, given, work):
        whole = x + memory["error"]
        sent = np.round(whole, 2)
        return ClientUpdate(sent, memory={"error": whole - sent})

    Client(finish=finish, memory=("error",))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from edgewise.core.safe_repr import outline
from edgewise.core.training import Contrast, Correction
from edgewise.core.vector import Vector

Vectors = Mapping[str, Vector]
PREVIOUS = "previous"  # name of the memory that holds the device's last model, for a contrast


class LocalWork(NamedTuple):
    """A device's training in one round.

    Attributes:
        steps: K_i, the optimizer steps that the device took. ``Client.shift`` runs before them and gets K.
        most: K, the largest number of steps of any device.
        lr: eta of the round.
        base_lr: eta before the schedule, the same in all rounds.
        momentum: momentum of plain SGD. 0 for other optimizers.
        rank: number of columns of each adapter that the device trains. 0 where there are none, or where all train all.
        blocks: number of last blocks that the device trains. 0 where all devices train the same.
    """

    steps: int
    most: int
    lr: float
    base_lr: float
    momentum: float
    rank: int = 0
    blocks: int = 0

    @property
    def unit(self) -> float:
        """K eta, the same for all devices and rounds.

        A gradient times K eta is about as long as an update, so that both can share clips and grids.
        """
        return self.most * self.base_lr


@dataclass(frozen=True)
class ClientUpdate:
    """A trained update after the client half.

    Attributes:
        x: float32[d], the vector that travels as the update.
        beside: vectors that travel beside it, the names of ``Client.sends``, float32[d] each.
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
    """A client half. The default one adds, sends and keeps nothing, and costs nothing.

    Attributes:
        pull: mu in mu (w - w_0).
        shift: (memory, given, work) -> a new vector, float32[d], which is added to every gradient. None: nothing is
            added.
        finish: (x, memory, given, work) -> ``ClientUpdate``. None: x travels unchanged.
        memory: names of the arrays that a device keeps.
        given: names of the slots of ``State`` that the device receives.
        sends: names of the vectors that travel beside the update. The server gets their means as ``Aggregate.beside``.
        head: names of scalars that travel. Their means are in ``Aggregate.head``.
        plain_sgd: the reason why the equations need SGD without momentum. None if they do not.
        uneven: the reason why devices must take different numbers of steps. None if they need not.
        contrast: term of the loss that contrasts representations. ``memory`` is then ``(PREVIOUS,)`` and ``finish`` is
            None: the engine keeps the trained model, and gives it to the next training. The first has no such term.
        compared: True if the vector that travels may be merged by a rule in place of a mean.

    With memory, further vectors or scalars, the server's mean must be a mean of all contributions (unless
    ``compared``) and of all coordinates, and noise on it must not add up. ``plan.client_rules`` refuses other plans.
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
    contrast: Contrast | None = None
    compared: bool = False

    def correction(self, memory: Vectors, given: Vectors, work: LocalWork) -> Correction:
        """Compute the correction of the gradients of one round."""
        return Correction(self.pull, None if self.shift is None else self.shift(memory, given, work))

    def finished(self, x: Vector, memory: Vectors, given: Vectors, work: LocalWork) -> ClientUpdate:
        """Apply the client half to a trained update."""
        return ClientUpdate(x) if self.finish is None else self.finish(x, memory, given, work)
