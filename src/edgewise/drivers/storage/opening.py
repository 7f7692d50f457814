"""Putting the files of a run directory in order when it is opened, and when a run begins in it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from edgewise.core.errors import StoreError
from edgewise.crypto.seal import KEY_BYTES
from edgewise.drivers.storage import round_record
from edgewise.drivers.storage.device_store import SESSIONS
from edgewise.drivers.storage.files import FOLDER, TEMPORARY, discard, for_owner
from edgewise.drivers.storage.schema import DELTAS, MODELS, SCHEMA_VERSION, VECTORS

KEEP_MODELS = 3  # model versions whose vectors stay on disk
BEACON = "beacon"  # beside the journals: the joint randomness of a run's cohorts, or how far it is
RESTORED = "restored.json"  # in the folder of a run that comes from a backup of a server
_EPOCH = re.compile(r"(\d+)-[0-9a-f]{8}")  # of folders for device memory
_CACHING = re.compile(r"\.[0-9a-f]{32,64}(\.[a-z.]+)?\.[a-z0-9_]{8}")  # a file of the cache before it is whole
_ROUND = re.compile(r"round-(\d+)\.log")


def token() -> str:
    """A new name for a run directory: 128 random bits."""
    return secrets.token_hex(16)


def database(out: Path) -> sa.Engine:
    """``run.db``, empty where there is none; SQLite gives its journal and log files the mode of the database."""
    path = out / "run.db"
    if not path.exists():
        with suppress(OSError), open(path, "ab", opener=for_owner):  # SQLite says why it cannot be
            pass
    engine = sa.create_engine(f"sqlite:///{path}")
    sa.event.listen(engine, "connect", _pragmas)
    return engine


def _pragmas(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()


def check_schema(engine: sa.Engine, out: Path) -> None:
    """Raises StoreError(E-CHECKPOINT) for a damaged database, and for one of another version of edgewise."""
    with engine.connect() as c:
        found = [str(row[0]) for row in c.execute(sa.text("PRAGMA quick_check(1)"))]
        if found != ["ok"]:
            raise StoreError("E-CHECKPOINT", f"{out / 'run.db'} is damaged: {found[0]}.", "use another --out.")
        if not sa.inspect(c).has_table("runs"):
            return
        if any(row[0] != SCHEMA_VERSION for row in c.execute(sa.text("SELECT schema_version FROM runs"))):
            what = f"{out} was written by another version of edgewise."
            fix = "read it with the version that wrote it, or start again with another --out."
            raise StoreError("E-CHECKPOINT", what, fix)


def check_goes_on(out: Path) -> None:
    """Raises StoreError(E-RESTORED) for a run that comes from a backup: what it released since then is not known."""
    if (out / RESTORED).exists():
        what = f"{out} comes from a backup of a server. What the run released and charged after it is not known."
        raise StoreError("E-RESTORED", what, "report, export or audit it. For more rounds begin another run.")


def named(c: sa.Connection, next_round: int) -> set[str]:
    """Digests that a row still needs: the newest models, the first one, the deltas, the vectors kept by name, and the
    kept totals with the models that their replay starts from."""
    kept = c.execute(sa.select(MODELS).where(MODELS.c.next_round > next_round - KEEP_MODELS))
    found = {d for r in kept for d in (r.params, r.memory, r.shadow, r.anchor, *json.loads(r.slots).values())}
    found |= {r.digest for r in c.execute(sa.select(DELTAS.c.digest))}
    found |= {r.digest for r in c.execute(sa.select(VECTORS.c.digest))}
    first = c.execute(sa.select(MODELS.c.params).where(MODELS.c.next_round == 0))
    return found | {r.params for r in first} | round_record.named(c, next_round)


def memory_dir(devices: Path, goes_on: bool) -> Path:
    """The folder for device memory of this opening: ``devices/EPOCH-RANDOM``, with an epoch above all that are there.

    Where a run ``goes_on``, the newest folder gets the new name, so that whoever knows the old one finds nothing there.
    The sessions of simulated devices ended with the simulation that was stopped, so they are removed from it.
    Otherwise the folder is made when a run begins (``empty``). Raises StoreError(E-DISK).
    """
    try:
        there = sorted((int(found[1]), p) for p in devices.iterdir() if (found := _EPOCH.fullmatch(p.name)))
        path = devices / f"{there[-1][0] + 1 if there else 1:06d}-{secrets.token_hex(4)}"
        if goes_on and there:
            os.rename(there[-1][1], path)
            with suppress(FileNotFoundError):
                shutil.rmtree(path / SESSIONS)
        elif goes_on:
            path.mkdir(FOLDER)
    except OSError as e:
        what = f"cannot take over the device memory in {devices}: {e.strerror}."
        raise StoreError("E-DISK", what, "wait for worker processes of a killed run, then --resume.") from None
    return path


def empty(out: Path, memory: Path) -> None:
    """Remove device memory and journals of whatever run was here before, and make the folder ``memory``.

    What edgewise did not name stays. Raises StoreError(E-DISK).
    """
    try:
        for path in (out / "devices").iterdir():
            if _EPOCH.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
        for _, path in journals(out):
            path.unlink()
        (out / "journal" / BEACON).unlink(missing_ok=True)
        memory.mkdir(FOLDER)
    except OSError as e:
        raise StoreError("E-DISK", f"cannot empty {out}: {e.strerror}.", "choose another --out.") from None


def clean(out: Path, next_round: int) -> None:
    """Remove what a killed process left behind, by the names that edgewise gives, and the sessions of devices.

    The caller holds the lock, so nobody is writing.
    """
    left = [path for number, path in journals(out) if number < max(0, next_round)]
    for pattern in (".*.tmp", "blobs/.*.tmp", "devices/*/.*.tmp"):
        left += (path for path in out.glob(pattern) if TEMPORARY.fullmatch(path.name))
    left += (path for path in out.glob("cache/*/.*") if _CACHING.fullmatch(path.name))
    left += out.glob(f"devices/*/{SESSIONS}/*")
    for path in left:
        discard(path)


def journal_key() -> bytes:
    """A new key for a journal: 32 bytes of the operating system's randomness."""
    return secrets.token_bytes(KEY_BYTES)


def journal_name(round: int) -> str:
    """The file of a round's journal."""
    return f"round-{max(0, round):06d}.log"


def journals(out: Path) -> Iterator[tuple[int, Path]]:
    """The journals of a run directory: (round, file)."""
    for path in (out / "journal").iterdir():
        if found := _ROUND.fullmatch(path.name):
            yield int(found[1]), path
