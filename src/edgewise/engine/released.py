"""The record of released models: one line a round, each chained to the line before, and the replay of a line.

    chain = start(run, instance)
    for record in records:
        chain = link(chain, record)                         # equals the digest that is stored with the line
        state = replayed(plan, state, record, total)        # its parameters have the digest ``record.model``

A line names the total of its round, the model that the server made of it, and how far the privacy ledger was then. A
total is what left the privacy boundary: decoded, noised and divided. Who has the totals needs no device, no data and no
secret to make the models again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from edgewise.core.stage import Aggregate
from edgewise.core.vector import Vector
from edgewise.plan.plan import Plan
from edgewise.strategies.base import State, hold

BASE = -1  # the line of the model before the first round


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What is written of a round when it is committed; all digests are SHA-256, hexadecimal.

    Attributes:
        round: its number; ``BASE``: the model before the first round.
        n: contributions to its total. weight: their summed weight. head: weighted means that came with the update.
        total: digest of the total's mean; empty where the round released none, and the model stayed.
        beside: name -> digest of what the strategy sends beside the update.
        model: digest of the parameters after the round. slots: name -> digest of the optimizer's state.
        step: rounds that the strategy has applied.
        charges: lines of the privacy ledger then. ledger: digest of the last one.
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
    total: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def released(self) -> bool:
        """Whether the server made a model of the round."""
        return bool(self.total)


def start(run: str, instance: str) -> str:
    """The digest before the first line: of one run in one place only."""
    return hashlib.sha256(json.dumps(["edgewise rounds", run, instance]).encode()).hexdigest()


def link(before: str, record: RoundRecord) -> str:
    """The digest of a line; ``before``: that of the line before it. A line that is changed, removed, swapped or taken
    from another run breaks all links after it."""
    return hashlib.sha256(json.dumps([before, asdict(record)], sort_keys=True).encode()).hexdigest()


def replayed(plan: Plan, before: State, record: RoundRecord, mean: Vector, beside: Mapping[str, Vector]) -> State:
    """The state that the strategy of ``plan`` makes of a round's total; ``mean`` and each of ``beside``: float32[d].

    Guarantees: the bytes of the run itself on the same kind of processor and versions of libraries.
    """
    return stepped(plan, before, record.round, Aggregate(mean, record.head, record.n, record.weight, beside))


def stepped(plan: Plan, before: State, round: int, aggregate: Aggregate) -> State:
    """The server's step of a round: the strategy's, and what neither trains nor moves stays."""
    return hold(before, plan.strategy.apply(before, aggregate), plan.frozen(round))
