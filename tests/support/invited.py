"""Invitations as an honest server sends them, and what a driver hands to the device machine with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from edgewise.core import frame, vector
from edgewise.core.keys import Key, Secrets, derive, root
from edgewise.engine import device_events
from edgewise.engine.checkpoint import Checkpoint, Standing
from edgewise.engine.ports import Began, Record, Trust
from edgewise.engine.round_facts import RoundFacts, decide
from edgewise.plan.plan import Plan

SECRETS = Secrets.of(bytes(range(32)))


def invitation(plan: Plan, round: int = 0, params: np.ndarray | None = None, **changes: Any) -> frame.Invite:
    """To train ``params`` (zeros where None); ``changes``: fields that are to be otherwise."""
    params = np.zeros(plan.spec.dim, np.float32) if params is None else params
    honest = frame.Invite(
        run=plan.run, round=round, spec=plan.spec.digest(), model=vector.digest(vector.to_bytes(params)),
        public=plan.public(round), accepted=None, deadline_s=plan.sampling.deadline_s, rule=plan.rule(round),
        nonce=None if plan.hides is None else bytes(32),
    )  # fmt: skip
    return msgspec.structs.replace(honest, **changes)


def invited(
    plan: Plan,
    round: int = 0,
    params: np.ndarray | None = None,
    secrets: Secrets = SECRETS,
    support: np.ndarray | None = None,
    **changes: Any,
) -> device_events.Invited:
    """The same with what it names, as a driver gives it to the machine."""
    params = np.zeros(plan.spec.dim, np.float32) if params is None else params
    return device_events.Invited(invitation(plan, round, params, **changes), params, secrets, support)


def decided(
    plan: Plan,
    checkpoint: Checkpoint | None = None,
    standings: Mapping[str, Standing] | None = None,
    trust: Trust | None = None,
    dealing: Key = derive(root(1), "groups"),  # noqa: B008 (immutable)
) -> RoundFacts:
    """A round as a coordinator decides it, with ``standings`` for its cohort; by default the first one, of a model of
    zeros, that nobody is invited to."""
    checkpoint = checkpoint or Checkpoint(0, plan.strategy.init(np.zeros(plan.spec.dim, np.float32)))
    began = Began(0.0, "attempt", None if plan.hides is None else bytes(32), dealing, tuple(standings or ()))
    return decide(plan, checkpoint, began, standings or {}, trust)


class MemoryLog:
    """A round's log in a list. ``synced``: how many of its records survive a power cut."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records, self.synced = list(records), 0

    def replay(self) -> list[Record]:
        return list(self.records)

    def append(self, record: Record) -> None:
        self.records.append(record)

    def sync(self) -> None:
        self.synced = len(self.records)
