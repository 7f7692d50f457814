"""Frame counters: the last frame of each device, as its server remembers it. Functions of a connection; see
``database``.

A device numbers its frames, and counts each here before any byte of it leaves. A number of which the server remembers
another frame, and a lower one, are refused. So of two copies of a device's folder, the second one that counts a frame
is refused, and so is a folder that was put back to an older copy (``drivers.http.frame_counter``).

A device may be ahead by more than one, because this database may itself have been put back to an older copy. It is
believed: a device that says a higher number than its own harms itself alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import sqlalchemy as sa

from edgewise.core.errors import TransportError
from edgewise.drivers.fleet.tables import COUNTERS
from edgewise.drivers.storage.dialects import upsert

MOST = 2**53  # the largest number of a frame


@dataclass(frozen=True, slots=True)
class LastFrame:
    """The last frame of a device.

    Attributes:
        number: of the frame, from 1. 0: no frame has left.
        digest: its SHA-256. None for number 0.
    """

    number: int
    digest: bytes | None = field(repr=False)


NOTHING = LastFrame(0, None)


def find(c: sa.Connection, device: str) -> LastFrame:
    """Return the last frame that a device has counted."""
    row = c.execute(sa.select(COUNTERS).where(COUNTERS.c.device == device)).first()
    return LastFrame(int(row.number), bytes(row.digest)) if row else NOTHING


def count(c: sa.Connection, device: str, last: LastFrame) -> LastFrame:
    """Count a frame. Return the last frame of the device that the server remembers now.

    It is ``last``, unless the device's folder is older than what the server remembers. The same frame again is counted
    once, because its first answer may have been lost.
    """
    known = find(c, device)
    if last.number <= known.number:
        return known
    row = {"number": last.number, "digest": last.digest}
    c.execute(upsert(c, COUNTERS).values(device=device, **row).on_conflict_do_update(["device"], set_=row))
    return last


def check(c: sa.Connection, device: str, digest: bytes) -> None:
    """Refuse a frame that is not the last one that its device has counted. Raises TransportError(E-COUNTER)."""
    if find(c, device).digest != digest:
        what = "the device has not counted this frame (`POST /v1/counter`)."
        raise TransportError("E-COUNTER", what, "update edgewise on the device.")
