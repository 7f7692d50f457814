"""What the held-out losses of a run decide: which of its models counts, and when the run ends (``round.keep``,
``round.patience``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from edgewise.core import events
from edgewise.core.errors import REGISTRY
from edgewise.core.metric import HELD_OUT, HELD_SHARE
from edgewise.plan.plan import Evaluations

COHORT = "cohort"  # who measured a model, where its devices told no more than their mean
BASE, FEDERATED = "base", "federated"  # the models that evaluations of a run measure


class ModelThatCounts(NamedTuple):
    """Which model of a run counts.

    Attributes:
        played: the model after so many rounds; 0: the base.
        waited: evaluations since the one with the lowest loss.
        stopped: ``round.patience`` has ended the run.
    """

    played: int
    waited: int
    stopped: bool


def kept(asked: Evaluations, told: Iterable[events.Evaluated], played: int) -> ModelThatCounts:
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
    return ModelThatCounts(lowest if asked.keep == "best" else played, waited, stopped)


def _better(new: events.Evaluated, old: events.Evaluated) -> bool:
    both = old.nll.keys() & new.nll.keys()
    failed = any(new.missing.get(device) in REGISTRY for device in old.nll.keys() - both)
    return bool(both) and not failed and _loss(new, both) < _loss(old, both)


def _loss(e: events.Evaluated, devices: Iterable[str]) -> float:
    at = sorted(devices)
    return math.fsum(e.nll[d] for d in at) / sum(e.tokens[d] for d in at)


def told_by_cohort(played: int, head: Mapping[str, float]) -> events.Evaluated | None:
    """The evaluation that came with a round's sum: of the model after ``played`` rounds, from which the round trained.

    Its loss is mean(held_out) / mean(held_share), the mean over the devices that have held-out text, weighted as their
    updates are. None where nobody measured.
    """
    share = head.get(HELD_SHARE, 0.0)
    if share <= 0.0:
        return None
    loss = head[HELD_OUT] / share
    name = FEDERATED if played else BASE
    return events.Evaluated(round=played - 1, model=name, nll={COHORT: loss}, tokens={COHORT: 1}, seconds=0.0)
