"""Fencing of a run directory that several servers open, one after the other.

The coordinator of a fleet has a lease with a number that grows with each holder (``fleet.database``). It opens a run
with that number. Every commit checks, in its own transaction, that no higher number has opened the run since. So a
server that stood still while another took over commits nothing more: E-LEASE. What such a server writes into files
afterwards has a name of its own (journals), or is checked before (the beacon).
"""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy as sa

from edgewise.core.errors import StoreError
from edgewise.drivers.storage.dialects import upsert
from edgewise.drivers.storage.files import copy_durably, discard, sync_folder
from edgewise.drivers.storage.schema import FENCES

GRACE_S = 3600.0  # blobs of this age can be swept; another server may be about to name a younger one
_ROUND = re.compile(r"round-(\d+)(?:\.(\d+))?\.log")
_ROW = 0


def fence_run(engine: sa.Engine, journals: Path, number: int) -> None:
    """Open a run with the number of a lease; 0 changes nothing.

    Raises:
        StoreError: E-LEASE where a higher number has opened it. E-DISK.
    """
    if not number:
        return
    with engine.begin() as c:
        row = upsert(c, FENCES).values(id=_ROW, number=number)
        lower = FENCES.c.number <= number
        c.execute(row.on_conflict_do_update(index_elements=["id"], set_={"number": number}, where=lower))
        check_fence(c, number)
    _take_journals(journals, number)


def check_fence(c: sa.Connection, number: int) -> None:
    """Refuse the transaction where another server has opened the run since. It excludes other writers until its end.

    Raises StoreError(E-LEASE). ``number`` 0: there is no lease to check.
    """
    if not number:
        return
    own = FENCES.update().where(FENCES.c.id == _ROW, FENCES.c.number == number).values(number=number)
    if not c.execute(own).rowcount:
        what = "another server has taken over this run."
        raise StoreError("E-LEASE", what, "stop this server. The other one continues.")


def journal_name(round: int, number: int = 0) -> str:
    """Return the file name of a round's journal; ``number``: of the lease, 0 without one."""
    return f"round-{max(0, round):06d}{f'.{number}' if number else ''}.log"


def journal_of(name: str) -> tuple[int, int] | None:
    """Return the round and the lease's number in the name of a journal. None: it is another file."""
    found = _ROUND.fullmatch(name)
    return (int(found[1]), int(found[2] or 0)) if found else None


def _take_journals(folder: Path, number: int) -> None:
    """Copy the journals of earlier servers to names of this one's, and remove theirs.

    A server that stood still may have its journal open. It goes on writing a file that nobody reads.

    Raises:
        StoreError: E-DISK.
    """
    newest: dict[int, tuple[int, Path]] = {}
    found = [(known, path) for path in folder.iterdir() if (known := journal_of(path.name))]
    for (round, by), path in found:
        if round not in newest or newest[round][0] < by:
            newest[round] = by, path
    try:
        for round, (by, path) in newest.items():
            if by != number:
                own = folder / journal_name(round, number)
                copy_durably(path, own)
        sync_folder(folder)
    except OSError as e:
        raise StoreError("E-DISK", f"cannot copy the journals in {folder}: {e.strerror}.", "make room.") from None
    for (_, by), path in found:
        if by != number:
            discard(path)
