"""Choice of the best model of a run and early stopping by its held-out losses (``round.keep``, ``round.patience``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from edgewise.core import events
from edgewise.core.errors import REGISTRY
from edgewise.core.metric import HELD_OUT, HELD_SHARE
from edgewise.plan.evaluations import PlannedEvaluations

COHORT = "cohort"  # name in place of a device, where devices send only their mean loss
BASE, FEDERATED = "base", "federated"  # names of the models that a run evaluates


class ModelThatCounts(NamedTuple):
    """Model of a run that counts.

    Attributes:
        played: number of rounds before the model. 0: the base.
        waited: number of evaluations since the one with the lowest loss.
        stopped: ``round.patience`` has ended the run.
    """

    played: int
    waited: int
    stopped: bool


def kept(rule: PlannedEvaluations, measured: Iterable[events.Evaluated], played: int) -> ModelThatCounts:
    """Choose the model that counts, by the evaluations of the base and of the federated model.

    The loss of an evaluation is sum(nll) / sum(tokens). One evaluation is better than another where its loss over the
    devices of both is lower, and where no device failed at it that the other measured. A model that some devices cannot
    measure any more has not improved. A device that did not answer in time says nothing of the model.
    Where ``round.keep`` is "last", the model after ``played`` rounds counts.
    Guarantees: a function of its arguments, so that a resumed run decides as the run would have.
    """
    best: events.Evaluated | None = None
    waited = 0
    for e in sorted((e for e in measured if e.model in (BASE, FEDERATED)), key=lambda e: e.round):
        if best is None or _has_lower_loss(e, best):
            best, waited = e, 0
        else:
            waited += 1
    stopped = bool(rule.patience) and waited >= rule.patience
    lowest = best.round + 1 if best is not None else played
    return ModelThatCounts(lowest if rule.keep == "best" else played, waited, stopped)


def _has_lower_loss(new: events.Evaluated, old: events.Evaluated) -> bool:
    """Tell whether a model has the lower held-out loss on the devices that measured both."""
    both = old.nll.keys() & new.nll.keys()
    failed = any(new.missing.get(device) in REGISTRY for device in old.nll.keys() - both)
    return bool(both) and not failed and _loss_per_token(new, both) < _loss_per_token(old, both)


def _loss_per_token(e: events.Evaluated, devices: Iterable[str]) -> float:
    """Compute the mean loss per token over devices."""
    names = sorted(devices)
    return math.fsum(e.nll[d] for d in names) / sum(e.tokens[d] for d in names)


def told_by_cohort(played: int, head: Mapping[str, float]) -> events.Evaluated | None:
    """Make the evaluation that a round's sum contains: of the model after ``played`` rounds, from which it trained.

    Its loss is mean(held_out) / mean(held_share), the mean over the devices that have held-out text, weighted as their
    updates are. None where no device measured.
    """
    share = head.get(HELD_SHARE, 0.0)
    if share <= 0.0:
        return None
    loss = head[HELD_OUT] / share
    name = FEDERATED if played else BASE
    return events.Evaluated(round=played - 1, model=name, nll={COHORT: loss}, tokens={COHORT: 1}, seconds=0.0)
