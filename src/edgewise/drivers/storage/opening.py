"""Preparation of a run directory's files, when it is opened and when a run begins in it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from edgewise.core.errors import StoreError
from edgewise.crypto.seal import KEY_BYTES
from edgewise.drivers.storage import fencing, round_record
from edgewise.drivers.storage.device_store import SESSIONS
from edgewise.drivers.storage.files import FOLDER, TEMPORARY, discard, for_owner
from edgewise.drivers.storage.schema import DELTAS, MODELS, SCHEMA_VERSION, VECTORS

DISK = ("readonly", "unable to open", "full", "disk I/O")  # words of SQLite's messages about the disk
KEEP_MODELS = 3  # number of model versions whose vectors stay on disk
BEACON = "beacon"  # beside the journals: the joint randomness of a run's cohorts, or the progress towards it
RESTORED = "restored.json"  # marks a run that comes from a backup of a server
_EPOCH = re.compile(r"(\d+)-[0-9a-f]{8}")  # a folder for device memory
_CACHING = re.compile(r"\.[0-9a-f]{32,64}(\.[\w.]+)?\.[a-z0-9_]{8}")  # an incomplete file or folder of the cache


def run_token() -> str:
    """Draw a name for a run directory: 128 random bits."""
    return secrets.token_hex(16)


def open_run_database(out: Path) -> sa.Engine:
    """Open ``run.db`` or create it empty. SQLite gives its journal and log files the mode of the database."""
    path = out / "run.db"
    if not path.exists():
        with suppress(OSError), open(path, "ab", opener=for_owner):  # SQLite reports the reason
            pass
    engine = sa.create_engine(f"sqlite:///{path}")
    sa.event.listen(engine, "connect", _set_pragmas)
    return engine


def _set_pragmas(connection: Any, _: object) -> None:
    """Set up a connection: write-ahead log, durable commits, deleted bytes overwritten."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()


@contextmanager
def database_errors(out: Path) -> Iterator[None]:
    """Turn the errors of ``run.db`` into StoreError with what to do."""
    try:
        yield
    except sa.exc.DatabaseError as e:
        what, message = f"{out / 'run.db'}: {e.orig}.", str(e.orig)
        if "locked" in message:
            raise StoreError("E-RUN-EXISTS", what, "wait until the other program has closed it.") from None
        if any(words in message for words in DISK):
            raise StoreError("E-DISK", what, "free space or give write permission, then --resume.") from None
        raise StoreError("E-CHECKPOINT", what, "use another --out.") from None


def check_schema(engine: sa.Engine, out: Path) -> None:
    """Refuse a damaged database and one of another version of edgewise.

    Raises:
        StoreError: E-CHECKPOINT.
    """
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
    """Refuse to continue a run that comes from a backup. Its releases after the backup are not known.

    Raises:
        StoreError: E-RESTORED.
    """
    if (out / RESTORED).exists():
        what = f"{out} comes from a backup of a server. What the run released and charged after it is not known."
        raise StoreError("E-RESTORED", what, "report, export or audit it. For more rounds begin another run.")


def digests_in_row(c: sa.Connection, next_round: int) -> set[str]:
    """List the digests that a row still needs.

    These are the newest models, the first model, the deltas, the vectors kept by name, and the kept totals with the
    models from which their replay starts.
    """
    newest = c.execute(sa.select(MODELS).where(MODELS.c.next_round > next_round - KEEP_MODELS))
    blobs = (d for r in newest for d in (r.params, r.memory, r.shadow, r.anchor, *json.loads(r.slots).values()))
    found = {digest for digest in blobs if digest is not None}
    found |= {r.digest for r in c.execute(sa.select(DELTAS.c.digest))}
    found |= {r.digest for r in c.execute(sa.select(VECTORS.c.digest))}
    first = c.execute(sa.select(MODELS.c.params).where(MODELS.c.next_round == 0))
    return found | {r.params for r in first} | round_record.record_digests(c, next_round)


def memory_dir(devices: Path, goes_on: bool) -> Path:
    """Choose the folder for device memory of this opening: ``devices/EPOCH-RANDOM``, with a higher epoch than all
    others.

    Where a run ``goes_on``, the newest folder is renamed to it, so that a process that knows the old name finds nothing
    there. The sessions of simulated devices ended with the stopped simulation, so they are removed. Otherwise the
    folder is made when a run begins (``empty_run``).

    Raises:
        StoreError: E-DISK.
    """
    try:
        existing = sorted((int(found[1]), p) for p in devices.iterdir() if (found := _EPOCH.fullmatch(p.name)))
        path = devices / f"{existing[-1][0] + 1 if existing else 1:06d}-{secrets.token_hex(4)}"
        if goes_on and existing:
            os.rename(existing[-1][1], path)
            with suppress(FileNotFoundError):
                shutil.rmtree(path / SESSIONS)
        elif goes_on:
            path.mkdir(FOLDER)
    except OSError as e:
        what = f"cannot take over the device memory in {devices}: {e.strerror}."
        raise StoreError("E-DISK", what, "wait for worker processes of a killed run, then --resume.") from None
    return path


def take_over_run(out: Path, next_round: int | None) -> Path:
    """Take the files of a run directory over from the process before: ``memory_dir``, then ``clean_run``.

    ``next_round``: of the run that goes on; None: no run is there. The caller holds the lock, or the run's fence.

    Raises:
        StoreError: E-DISK.
    """
    memory = memory_dir(out / "devices", next_round is not None)
    clean_run(out, -1 if next_round is None else next_round)
    return memory


def empty_run(out: Path, memory: Path) -> None:
    """Remove device memory and journals of an earlier run, and make the folder ``memory``.

    Files that edgewise did not name stay.

    Raises:
        StoreError: E-DISK.
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


def clean_run(out: Path, next_round: int) -> None:
    """Remove the files that a killed process left behind, and the sessions of devices.

    Only names that edgewise gives are removed.

    The caller holds the lock, so nobody is writing.
    """
    leftovers = [path for number, path in journals(out) if number < max(0, next_round)]
    for pattern in (".*.tmp", "blobs/.*.tmp", "devices/*/.*.tmp", "personal/.*.tmp", "split/*/.*.tmp"):
        leftovers += (path for path in out.glob(pattern) if TEMPORARY.fullmatch(path.name))
    cached = [path for path in out.glob("cache/*/.*") if _CACHING.fullmatch(path.name)]
    leftovers += out.glob(f"devices/*/{SESSIONS}/*")
    for path in (*leftovers, *cached):
        discard(path)
    for path in (path for path in cached if path.is_dir()):  # the copy of a quantized model
        shutil.rmtree(path, ignore_errors=True)


def journal_key() -> bytes:
    """Draw a key for a journal: 32 bytes of the operating system's randomness."""
    return secrets.token_bytes(KEY_BYTES)


def journals(out: Path) -> Iterator[tuple[int, Path]]:
    """List the journals of a run directory as (round, file)."""
    for path in (out / "journal").iterdir():
        if found := fencing.journal_of(path.name):
            yield found[0], path
