"""A second record of a database's progress: ``witness.json`` beside ``run.db``.

A database can go back in time without damage. Somebody restores it from a backup or copies it without its log, or
SQLite drops the damaged end of the log. Device memory, journal and privacy ledger would then belong to a future that
the database does not know. The witness is replaced after every commit and every charge, so it is never ahead of an
honest database.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgewise.core.errors import StoreError
from edgewise.drivers.storage.device_store import RESTORE
from edgewise.drivers.storage.files import write_durably

NAME = "witness.json"


class Witness(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The progress of a database.

    Attributes:
        instance: identity of the run directory.
        next_round, checkpoint: the round and the digest of the newest checkpoint.
        charges, ledger: the number of rows of the privacy ledger, and the digest of the last one.
    """

    instance: str
    next_round: int
    checkpoint: str
    charges: int
    ledger: str


def write_witness(out: Path, witness: Witness) -> None:
    """Replace the witness of a run directory.

    Raises:
        StoreError: E-DISK.
    """
    write_durably(out / NAME, msgspec.json.encode(witness), owner_only=True)


def read_witness(out: Path) -> Witness:
    """Read the witness of a run directory.

    Raises:
        StoreError: E-CHECKPOINT.
    """
    path = out / NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Witness)
    except OSError as e:
        raise StoreError("E-CHECKPOINT", f"cannot read {path}: {e.strerror}.", RESTORE) from None
    except (msgspec.DecodeError, ValueError):
        raise StoreError("E-CHECKPOINT", f"{path} is damaged.", RESTORE) from None


def check(out: Path, seen: Witness, now: Witness, ledger: Sequence[str]) -> None:
    """Compare a witness with the database.

    Args:
        seen: the witness on the disk.
        now: the progress of the database.
        ledger: the digests of the ledger's chain, beginning with its start.
    Raises:
        StoreError: E-CHECKPOINT where the database is older than the witness or of another run directory.
    """
    path = out / NAME
    if seen.instance != now.instance:
        raise StoreError("E-CHECKPOINT", f"{out / 'run.db'} is of another run directory than {path}.", RESTORE)
    back = (now.next_round, now.charges) < (seen.next_round, 0) or now.charges < seen.charges
    same = now.next_round > seen.next_round or now.checkpoint == seen.checkpoint
    if back or not same or ledger[seen.charges] != seen.ledger:
        what = (
            f"{out / 'run.db'} is not the newest: it has reached round {now.next_round} and {now.charges} privacy "
            f"charges, but round {seen.next_round} and {seen.charges} charges were reached before."
        )
        raise StoreError("E-CHECKPOINT", what, RESTORE)
