"""Standings of devices and the ring of broadcast deltas, as rows of ``run.db`` that change one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from edgewise.core.training import DeviceId
from edgewise.drivers.storage.schema import CONTRIBUTIONS, DELTAS, HELD
from edgewise.engine.checkpoint import Change, Downlink, Standing

_MANY = 1000  # the largest number of names in one SQL statement


def read_standings(c: sa.Connection, devices: Sequence[DeviceId]) -> dict[DeviceId, Standing]:
    """Read the standings of these devices, in their order."""
    accepted: dict[DeviceId, int] = {}
    held: dict[DeviceId, int] = {}
    for part in _device_batches(devices):
        for found, table, column in (
            (accepted, CONTRIBUTIONS, CONTRIBUTIONS.c.last_round),
            (held, HELD, HELD.c.round),
        ):
            found.update(
                (r[0], r[1]) for r in c.execute(sa.select(table.c.device, column).where(_is_one_of(table, part)))
            )
    return {device: Standing(accepted.get(device), held.get(device)) for device in devices}


def write(c: sa.Connection, round: int, change: Change, anchor_round: int | None) -> None:
    """Write the changes that ``round`` made to the standings.

    Args:
        anchor_round: the round of the model that the deltas start from. None where there are no deltas; the devices'
            models are then not recorded.
    """
    if change.accepted:
        row = upsert(CONTRIBUTIONS)
        update = {"last_round": row.excluded.last_round, "times": CONTRIBUTIONS.c.times + 1}
        row = row.on_conflict_do_update(index_elements=["device"], set_=update)
        last = ((device, change.versions.get(device, round)) for device in change.accepted)
        c.execute(row, [{"device": device, "last_round": number, "times": 1} for device, number in last])
    if anchor_round is None:
        return
    for part in _device_batches(change.stale):
        c.execute(HELD.delete().where(_is_one_of(HELD, part)))
    if change.had:
        row = upsert(HELD)
        row = row.on_conflict_do_update(index_elements=["device"], set_={"round": row.excluded.round})
        c.execute(row, [{"device": device, "round": round} for device in change.had])
    c.execute(HELD.delete().where(HELD.c.round < anchor_round))


def _device_batches(devices: Sequence[DeviceId]) -> Iterator[Sequence[DeviceId]]:
    """Split devices into groups that one statement can name."""
    return (devices[i : i + _MANY] for i in range(0, len(devices), _MANY))


def _is_one_of(table: sa.Table, devices: Sequence[DeviceId]) -> sa.ColumnElement[bool]:
    """Condition that a row is of one of these devices."""
    return table.c.device.in_(devices)


def write_delta_ring(c: sa.Connection, down: Downlink) -> None:
    """Add the deltas that are new since the previous checkpoint, and delete those that left the ring."""
    written = {row[0] for row in c.execute(sa.select(DELTAS.c.round))}
    if new := [{"round": d.round, "digest": d.digest, "base": d.base} for d in down.ring if d.round not in written]:
        c.execute(DELTAS.insert(), new)
    c.execute(DELTAS.delete().where(DELTAS.c.round <= down.anchor_round))
