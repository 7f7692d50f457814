"""Chain of released models: one record per round, each linked to the record before, and the replay of a record.

    chain = start(run, instance)
    for record in records:
        chain = link(chain, record)                         # equals the digest that is stored with the line
        state = replayed(plan, state, record, total)        # its parameters have the digest ``record.model``

A record names the total of its round, the model that the server made of it, and the length of the privacy ledger then.
A total is the value that left the privacy boundary: decoded, noised and divided. With the totals, the models can be
made again without any device, data or secret.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from edgewise.core.stage import Aggregate
from edgewise.core.vector import Vector
from edgewise.plan import pruning
from edgewise.plan.plan import Plan
from edgewise.strategies.base import State, hold_frozen_segments

DISTILLED = "distilled"  # name of a re-distilled model among the vectors beside a total
BASE = -1  # number of the record of the model before the first round


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """Record of a committed round. All digests are SHA-256, hexadecimal.

    Attributes:
        round: its number. ``BASE``: the model before the first round.
        n: number of contributions to its total. weight: their summed weight. head: weighted means beside the update.
        total: digest of the total's mean. None where the round released none, and the model stayed.
        beside: name -> digest of a vector that the strategy sends beside the update.
        model: digest of the parameters after the round. slots: name -> digest of the optimizer's state.
        step: number of rounds that the strategy has applied.
        charges: number of charges in the privacy ledger then. ledger: digest of the last one.
    """

    round: int
    model: str
    slots: Mapping[str, str]
    step: int
    charges: int
    ledger: str
    n: int = 0
    weight: float = 0.0
    head: Mapping[str, float] = field(default_factory=dict)
    total: str | None = None
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def released(self) -> bool:
        """Tell whether the server made a model of the round."""
        return self.total is not None


def start(run: str, instance: str) -> str:
    """Compute the digest before the first record, of one run in one place only."""
    return hashlib.sha256(json.dumps(["edgewise rounds", run, instance]).encode()).hexdigest()


def link(before: str, record: RoundRecord) -> str:
    """Compute the digest of a record. ``before``: the digest of the record before it.

    A record that is changed, removed, swapped or taken from another run breaks all links after it.
    """
    fields = {**asdict(record), "total": record.total or ""}
    return hashlib.sha256(json.dumps([before, fields], sort_keys=True).encode()).hexdigest()


def replayed(plan: Plan, before: State, record: RoundRecord, mean: Vector, beside: Mapping[str, Vector]) -> State:
    """Apply the strategy of ``plan`` to a round's total. ``mean`` and each of ``beside``: float32[d].

    A model that the server distilled again after the round is recorded beside the total, and takes the place of the
    stepped one.
    Guarantees: the same bytes as in the run itself, on the same kind of processor and versions of libraries.
    """
    sent = {name: x for name, x in beside.items() if name != DISTILLED}
    after = stepped(plan, before, record.round, Aggregate(mean, record.head, record.n, record.weight, sent))
    return replace(after, params=beside[DISTILLED]) if DISTILLED in beside else after


def stepped(plan: Plan, before: State, round: int, aggregate: Aggregate) -> State:
    """Apply the server's step of a round: the strategy's step, with frozen segments held, then the pruning."""
    after = hold_frozen_segments(before, plan.strategy.apply(before, aggregate), plan.frozen(round))
    return replace(after, params=pruning.pruned_by_plan(plan, round, before.params, after.params))
