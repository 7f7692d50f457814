"""What the server knows of each device, and the deltas that they follow, as rows of ``run.db``, changed one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from edgewise.core.training import DeviceId
from edgewise.drivers.storage.schema import CONTRIBUTIONS, DELTAS, HELD
from edgewise.engine.ports import Change, Downlink, Standing

_MANY = 1000  # names in one statement


def read(c: sa.Connection, devices: Sequence[DeviceId]) -> dict[DeviceId, Standing]:
    """Of each of these devices, in their order."""
    accepted: dict[DeviceId, int] = {}
    held: dict[DeviceId, int] = {}
    for part in _parts(devices):
        for found, table, column in (
            (accepted, CONTRIBUTIONS, CONTRIBUTIONS.c.last_round),
            (held, HELD, HELD.c.round),
        ):
            found.update((r[0], r[1]) for r in c.execute(sa.select(table.c.device, column).where(_among(table, part))))
    return {device: Standing(accepted.get(device), held.get(device)) for device in devices}


def write(c: sa.Connection, round: int, change: Change, anchor_round: int | None) -> None:
    """What ``round`` changed. ``anchor_round``: of the model that the deltas start from; None where there are none, so
    that nobody's model is of interest."""
    if change.accepted:
        row = upsert(CONTRIBUTIONS)
        update = {"last_round": row.excluded.last_round, "times": CONTRIBUTIONS.c.times + 1}
        row = row.on_conflict_do_update(index_elements=["device"], set_=update)
        c.execute(row, [{"device": device, "last_round": round, "times": 1} for device in change.accepted])
    if anchor_round is None:
        return
    for part in _parts(change.stale):
        c.execute(HELD.delete().where(_among(HELD, part)))
    if change.had:
        row = upsert(HELD)
        row = row.on_conflict_do_update(index_elements=["device"], set_={"round": row.excluded.round})
        c.execute(row, [{"device": device, "round": round} for device in change.had])
    c.execute(HELD.delete().where(HELD.c.round < anchor_round))


def _parts(devices: Sequence[DeviceId]) -> Iterator[Sequence[DeviceId]]:
    return (devices[i : i + _MANY] for i in range(0, len(devices), _MANY))


def _among(table: sa.Table, devices: Sequence[DeviceId]) -> sa.ColumnElement[bool]:
    return table.c.device.in_(devices)


def write_ring(c: sa.Connection, down: Downlink) -> None:
    """Write the deltas that came to the ring of the checkpoint before, and delete those that left it."""
    written = {row[0] for row in c.execute(sa.select(DELTAS.c.round))}
    if new := [{"round": d.round, "digest": d.digest, "base": d.base} for d in down.ring if d.round not in written]:
        c.execute(DELTAS.insert(), new)
    c.execute(DELTAS.delete().where(DELTAS.c.round <= down.anchor_round))
