"""Two notes in the folder of servers with a shared database: which database it is, and the highest lease.

    FOLDER/database-elsewhere       the fleet's id, which the database has too
    FOLDER/highest-lease            a number that no later lease may have

A folder and a database that do not belong together are refused. A database that was restored from an older copy counts
its leases on from the folder's number, since the runs in the folder refuse lower ones (``storage.fencing``).
"""

from __future__ import annotations

import secrets
from pathlib import Path

import sqlalchemy as sa

from edgewise.core.errors import StoreError
from edgewise.drivers.fleet.tables import LEASES
from edgewise.drivers.storage.files import FOLDER, write_durably

ELSEWHERE = "database-elsewhere"
HIGHEST = "highest-lease"
_FLEET = "fleet"  # the row of LEASES whose holder is the fleet's id; nobody takes it


def join_shared_folder(folder: Path, c: sa.Connection) -> None:
    """Bind a folder to the database of ``c``, or check that it is bound to this one.

    Raises:
        StoreError: E-DATABASE for the folder of another fleet. E-DISK.
    """
    row = c.execute(sa.select(LEASES.c.holder).where(LEASES.c.name == _FLEET)).first()
    fleet = secrets.token_hex(16) if row is None else str(row.holder)
    if row is None:
        c.execute(LEASES.insert().values(name=_FLEET, holder=fleet, number=0, until_s=0.0))
    folder.mkdir(FOLDER, parents=True, exist_ok=True)
    known = _text(folder / ELSEWHERE)
    if known and known != fleet:
        what = f"{folder} belongs to servers with another database than this one."
        raise StoreError("E-DATABASE", what, "name the database of this folder, or another folder.")
    if not known:
        write_durably(folder / ELSEWHERE, fleet.encode("ascii"), owner_only=True)


def next_lease_number(folder: Path, last: int) -> int:
    """Choose the number of a new lease, above all earlier ones, and note it. ``last``: that of the database.

    Raises:
        StoreError: E-DISK.
    """
    noted = _text(folder / HIGHEST)
    number = max(last, int(noted) if noted.isdecimal() else 0) + 1
    write_durably(folder / HIGHEST, str(number).encode("ascii"), owner_only=True)
    return number


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip() if path.exists() else ""
