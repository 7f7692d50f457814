"""The runs that a server plays with its devices, and their states. Functions of a connection; see ``database``.

    running ◄──resume── paused          running ──► finished, or failed with the error
       └──────pause───────►▲            any but the last two ──cancel──► cancelled

A failed run can be resumed. It continues from its last commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from edgewise.core.errors import TransportError
from edgewise.drivers.fleet.tables import PUBLICATIONS, ROUNDS, SERVED
from edgewise.plan.facts import parse

RUNNING, PAUSED, CANCELLED, FINISHED, FAILED = "running", "paused", "cancelled", "finished", "failed"
_FROM = {
    RUNNING: (PAUSED, FAILED, RUNNING),
    PAUSED: (RUNNING, PAUSED, FAILED),
    CANCELLED: (RUNNING, PAUSED, FAILED, CANCELLED),
}


@dataclass(frozen=True, slots=True)
class ServedRun:
    """A run of this server.

    Attributes:
        run: its id.
        rounds: number of its rounds.
        facts, signature: in the form that devices get (``plan.facts``).
        why: the error of a failed run, or the reason why a running one waits. None otherwise.
        kept: digest -> bytes of the blobs that devices need in all rounds.
    """

    run: str
    name: str
    state: str
    why: str | None
    rounds: int
    facts: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    kept: Mapping[str, int] = field(repr=False)
    made_by: str
    made_s: float


def add(c: sa.Connection, new: ServedRun) -> None:
    """Register a run that the fleet's server serves."""
    values = {name: getattr(new, name) for name in ServedRun.__slots__}
    c.execute(SERVED.insert().values(**{**values, "kept": json.dumps(dict(new.kept))}))


def find(c: sa.Connection, run: str) -> ServedRun:
    """Find a run that the fleet's server serves.

    Raises:
        TransportError: E-UNKNOWN-ID.
    """
    row = c.execute(sa.select(SERVED).where(SERVED.c.run == run)).first()
    if row is None:
        raise TransportError("E-UNKNOWN-ID", f"there is no run {run:.64}.", "`edgewise run ls` lists them.")
    return _run(row)


def listed(c: sa.Connection, state: str | None = None) -> list[ServedRun]:
    """List all runs, or those in a state, the oldest first."""
    query = sa.select(SERVED).order_by(SERVED.c.made_s, SERVED.c.run)
    return [_run(row) for row in c.execute(query.where(SERVED.c.state == state) if state is not None else query)]


def unwithdrawn(c: sa.Connection) -> set[str]:
    """List the cancelled runs that still have an open round, with its key, or published blobs."""
    left = sa.union(sa.select(ROUNDS.c.run), sa.select(PUBLICATIONS.c.run))
    return {
        str(row.run)
        for row in c.execute(sa.select(SERVED.c.run).where(SERVED.c.state == CANCELLED, SERVED.c.run.in_(left)))
    }


def ask(c: sa.Connection, run: str, state: str) -> ServedRun:
    """Bring a run into a state that a person asks for: running, paused, cancelled.

    Raises:
        TransportError: E-UNKNOWN-ID. E-CONFLICT where the run cannot enter that state any more.
    """
    known = find(c, run)
    if known.state not in _FROM[state]:
        what = f"run {run:.12} is {known.state}, and cannot be {state} any more."
        raise TransportError("E-CONFLICT", what, "submit the recipe again for another run.")
    return _set(c, known, state, None)


def explain(c: sa.Connection, run: str, why: str | None) -> None:
    """Note why a running run waits. None: it does not wait."""
    c.execute(SERVED.update().where(SERVED.c.run == run, SERVED.c.state == RUNNING).values(why=why))


def ended(c: sa.Connection, run: str, state: str, why: str | None = None) -> ServedRun:
    """Note that a run finished or failed. A run that was cancelled in the meantime stays cancelled."""
    known = find(c, run)
    return known if known.state == CANCELLED else _set(c, known, state, why)


def outdated(c: sa.Connection, run: str, round: int) -> bool:
    """Tell whether contributions to a round of an asynchronous run lag too far behind its newest round."""
    newest = c.execute(sa.select(sa.func.max(ROUNDS.c.round)).where(ROUNDS.c.run == run)).scalar()
    raw = c.execute(sa.select(SERVED.c.facts).where(SERVED.c.run == run)).scalar()
    if newest is None or raw is None or (most := parse(raw).max_staleness) is None:
        return False
    return bool(newest - round > most)


def _set(c: sa.Connection, known: ServedRun, state: str, why: str | None) -> ServedRun:
    c.execute(SERVED.update().where(SERVED.c.run == known.run).values(state=state, why=why))
    return find(c, known.run)


def _run(row: Any) -> ServedRun:
    return ServedRun(**{**row._asdict(), "kept": json.loads(row.kept)})
