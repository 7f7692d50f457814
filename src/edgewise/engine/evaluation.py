"""What the held-out losses of a run decide: which of its models counts, and when the run ends (``round.keep``,
``round.patience``)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from edgewise.core import events
from edgewise.core.errors import REGISTRY
from edgewise.plan.plan import Evaluations

BASE, FEDERATED = "base", "federated"  # the models that evaluations of a run measure


class Kept(NamedTuple):
    """Which model of a run counts.

    Attributes:
        played: the model after so many rounds; 0: the base.
        waited: evaluations since the one with the lowest loss.
        stopped: ``round.patience`` has ended the run.
    """

    played: int
    waited: int
    stopped: bool


def kept(asked: Evaluations, told: Iterable[events.Evaluated], played: int) -> Kept:
    """What a run's evaluations decide, those of the base and of the federated model; of ``played`` rounds the last one
    counts where ``round.keep`` is "last".

    The loss of an evaluation is sum(nll) / sum(tokens). One is better than another where its loss over the devices of
    both is lower, and where no device failed at it that the other measured: a model that some devices cannot measure
    any more has not improved. A device that did not answer in time says nothing of the model.

    Guarantees: a function of its arguments, so that a resumed run decides as the run would have.
    """
    best: events.Evaluated | None = None
    waited = 0
    for e in sorted((e for e in told if e.model in (BASE, FEDERATED)), key=lambda e: e.round):
        if best is None or _better(e, best):
            best, waited = e, 0
        else:
            waited += 1
    stopped = bool(asked.patience) and waited >= asked.patience
    lowest = best.round + 1 if best is not None else played
    return Kept(lowest if asked.keep == "best" else played, waited, stopped)


def _better(new: events.Evaluated, old: events.Evaluated) -> bool:
    both = old.nll.keys() & new.nll.keys()
    failed = any(new.missing.get(device) in REGISTRY for device in old.nll.keys() - both)
    return bool(both) and not failed and _loss(new, both) < _loss(old, both)


def _loss(e: events.Evaluated, devices: Iterable[str]) -> float:
    at = sorted(devices)
    return math.fsum(e.nll[d] for d in at) / sum(e.tokens[d] for d in at)
