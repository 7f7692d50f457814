"""Events of a run, and held-out losses of its devices, as rows of ``run.db``. Events are only added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from edgewise.core import events
from edgewise.core.training import DeviceId
from edgewise.drivers.storage.schema import EVENTS, MEASURES


def add_events(c: sa.Connection, new: Sequence[events.AnyEvent], now_s: Callable[[], float]) -> None:
    """Add events, and the losses of evaluations. ``now_s`` stamps those that carry no time yet."""
    if new:
        c.execute(EVENTS.insert(), [_event_row(event, now_s) for event in new])
    for event in new:
        if isinstance(event, events.Evaluated):
            _add_measures(c, event)


def _add_measures(c: sa.Connection, e: events.Evaluated) -> None:
    """Add the losses of an evaluation. A loss that is stored already stays."""
    rows = [{"model": e.model, "round": e.round, "device": d, "nll": e.nll[d], "tokens": e.tokens[d]} for d in e.nll]
    if rows:
        c.execute(upsert(MEASURES).on_conflict_do_nothing(), rows)


def event_bodies(kind: str | None = None, round: int | None = None) -> sa.Select[Any]:
    """Select events of a run's log in their order: all, those of one kind (tag), or those of one kind and round."""
    query = sa.select(EVENTS.c.body).order_by(EVENTS.c.number)
    if kind is not None:
        query = query.where(EVENTS.c.kind == kind)
    return query if round is None else query.where(EVENTS.c.round == round)


def read_events(rows: Sequence[Any]) -> list[events.AnyEvent]:
    """Read rows of ``event_bodies``. Raises whatever parsing raises."""
    return [events.from_json(row.body) for row in rows]


def logged_losses(model: str, round: int | None = None) -> sa.Select[Any]:
    """Select from a run's log the losses of a model by round: all, or those of one round."""
    query = sa.select(MEASURES).where(MEASURES.c.model == model).order_by(MEASURES.c.round)
    return query if round is None else query.where(MEASURES.c.round == round)


def latest_logged_losses(rows: Sequence[Any]) -> dict[DeviceId, tuple[float, int]]:
    """Return device -> (nll, tokens) of the latest round in rows of ``logged_losses``."""
    last = rows[-1].round if rows else 0
    return {row.device: (row.nll, row.tokens) for row in rows if row.round == last}


def _event_row(event: events.AnyEvent, now_s: Callable[[], float]) -> dict[str, Any]:
    """Make the row of an event, stamped with its time."""
    stamped = msgspec.structs.replace(event, at_s=event.at_s or now_s())
    kind = event.__struct_config__.tag
    return {"kind": kind, "round": getattr(event, "round", -1), "body": events.to_json(stamped)}
