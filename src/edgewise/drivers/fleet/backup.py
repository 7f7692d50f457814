"""Backup and restore of a server's folder. A backup can be made while the server runs.

    save(folder, to)            server.db as of one moment, the keys, and the files of each run that its database names
    restore(backup, folder)     another folder, for a server that begins a new epoch

A backup holds no frames and no keys of rounds, because a copy must not preserve what a round's end destroys. So rounds
that were open are over in a restored server. The restored server does not know what was released and charged after the
backup was made. Unfinished runs therefore do not continue, because they could pass their privacy budget (E-RESTORED).
They can still be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgewise.core.errors import StoreError, TransportError
from edgewise.drivers.fleet import blob_places
from edgewise.drivers.fleet.blob_places import BLOBS
from edgewise.drivers.fleet.epoch import EPOCH, Epoch
from edgewise.drivers.fleet.mailboxes import EVERYBODY
from edgewise.drivers.fleet.shared_folder import ELSEWHERE
from edgewise.drivers.http import home
from edgewise.drivers.storage.fencing import GRACE_S
from edgewise.drivers.storage.files import FOLDER, TEMPORARY, for_owner, sync_folder
from edgewise.drivers.storage.object_store import ObjectStore
from edgewise.drivers.storage.opening import RESTORED, digests_in_row
from edgewise.drivers.storage.schema import SCHEMA_VERSION

MANIFEST, DATABASE, RUNS = "backup.json", "server.db", "runs"
KEYS = ("server.key", "ca.pem", "ca.key", "tls.pem", "tls.key", EPOCH)
RUN_NAME = 32  # characters of a run's id that name its folder
ATTEMPTS = 5  # attempts to copy a run whose blobs are swept in the meantime
NUMBERS = 2**40  # numbers of mail reserved for each epoch, so that no number is given twice
_FORGOTTEN = ("rounds", "mail", "uploads", "nonces", f"publications WHERE run != '{EVERYBODY}'", "sessions")
_NONCES_PASSED = (
    "INSERT INTO forgotten_nonces (id, created_s)"
    " SELECT 0, latest FROM (SELECT MAX(created_s) AS latest FROM nonces) WHERE latest IS NOT NULL"
    " ON CONFLICT (id) DO UPDATE SET created_s = MAX(created_s, excluded.created_s)"
)
_LEFT_OUT = {"blobs", "journal", "devices", "cache", "lock", "run.db", "run.db-wal", "run.db-shm", "sampling.key"}
_FINISHED = "finished"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The list of a backup's files. ``files``: path -> bytes and SHA-256."""

    version: int
    made_s: float
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of a restore.

    Attributes:
        made_s: time of the backup.
        epoch: number of the new epoch.
        ended: runs that do not continue.
        tokens: number of enrolment tokens that the restore revoked.
    """

    made_s: float
    epoch: int
    ended: tuple[str, ...]
    tokens: int


def save(folder: Path, to: Path, now_s: float) -> Manifest:
    """Copy a server's folder to ``to``, completely or not at all. The server may be running.

    Raises:
        TransportError: E-IDENTITY where the folder is not a server's.
        StoreError: E-FILE-EXISTS, E-DISK, E-DATABASE where the fleet is in PostgreSQL, and E-CHECKPOINT where a
            database is damaged. As ``ObjectStore`` where the blobs are in one: the backup has those of promoted models.
    """
    if (folder / home.KEY).is_file() and (folder / DATABASE).is_file():
        what = f"{folder} belongs to a gateway. From an older copy it could open a sum twice."
        fix = "keep no copy. If it is lost, make another gateway (`edgewise gateway join`) and submit its runs again."
        raise TransportError("E-IDENTITY", what, fix)
    if (folder / ELSEWHERE).exists():
        what = f"the servers of {folder} have their fleet in PostgreSQL."
        raise StoreError("E-DATABASE", what, "copy it with pg_dump, and the folder beside it.")
    if not (folder / "server.key").is_file() or not (folder / DATABASE).is_file():
        raise TransportError(
            "E-IDENTITY", f"{folder} is not the folder of a server.", "name the folder of `edgewise serve`."
        )
    with _whole(to) as part:
        for name in KEYS:
            if (folder / name).is_file():
                _copy(folder / name, part / name)
        _snapshot(folder / DATABASE, part / DATABASE)
        with closing(sqlite3.connect(part / DATABASE)) as c:
            c.execute(_NONCES_PASSED)  # A request before the backup is not accepted again, whatever the clock says.
            for table in _FORGOTTEN:
                c.execute(f"DELETE FROM {table}")
            c.execute("UPDATE leases SET until_s = 0")
            c.commit()
            c.execute("VACUUM")  # no page of the copy keeps deleted rows
            promoted = [str(row[0]) for row in c.execute("SELECT digest FROM publications")]
            served = [str(row[0]) for row in c.execute("SELECT run FROM served ORDER BY run")]
        (part / BLOBS).mkdir(FOLDER)
        elsewhere = blob_places.noted_object_store(folder)
        for digest in promoted:
            if elsewhere is None:
                _copy(folder / BLOBS / digest, part / BLOBS / digest)
            else:
                _write(part / BLOBS / digest, ObjectStore(elsewhere, GRACE_S).get(digest))
        for run in served:  # A run that is being submitted has a folder before it has a row.
            name = run[:RUN_NAME]
            if (folder / RUNS / name / "run.db").is_file():
                _save_run(folder / RUNS / name, part / RUNS / name)
        manifest = Manifest(1, now_s, dict(_listed(part)))
        _write(part / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
    return manifest


def restore(backup: Path, folder: Path, now_s: float) -> Restored:
    """Make a server's folder from a backup, in a new epoch. A failed restore leaves nothing behind.

    The old server must not run any more, because both servers would have the same identity.

    Raises:
        StoreError: E-BACKUP where the backup is incomplete or changed; E-FOLDER where the folder holds files; E-DISK.
    """
    manifest = check(backup)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError("E-FOLDER", f"{folder} holds files.", "name a new or an empty folder.")
    with _whole(folder) as part:
        for name in manifest.files:
            (part / name).parent.mkdir(FOLDER, parents=True, exist_ok=True)
            _copy(backup / name, part / name)
        previous = msgspec.json.decode((part / EPOCH).read_bytes(), type=Epoch) if (part / EPOCH).is_file() else None
        epoch = Epoch((previous.number if previous else 0) + 1, now_s, manifest.made_s)
        _write(part / EPOCH, msgspec.json.encode(epoch))
        with closing(sqlite3.connect(part / DATABASE)) as c:
            ended, tokens = _begin_epoch(c, epoch)
            c.commit()
        for run in (part / RUNS).iterdir() if (part / RUNS).is_dir() else ():
            if not _finished(run / "run.db"):
                _write(run / RESTORED, json.dumps({"backup_s": manifest.made_s, "restored_s": now_s}).encode())
    return Restored(manifest.made_s, epoch.number, ended, tokens)


def check(backup: Path) -> Manifest:
    """Check that a backup is complete and return its manifest.

    Raises:
        StoreError: E-BACKUP.
    """
    fix = "use another backup. `edgewise backup` writes a complete one or none."
    try:
        manifest = msgspec.json.decode((backup / MANIFEST).read_bytes(), type=Manifest)
        found = dict(_listed(backup))
    except (OSError, msgspec.DecodeError, ValueError):
        raise StoreError("E-BACKUP", f"{backup} is not a backup of a server.", fix) from None
    if manifest.version != 1:
        raise StoreError("E-BACKUP", f"{backup} is of another version of edgewise.", "restore it with that version.")
    if found != manifest.files:
        wrong = sorted(
            name for name in found.keys() | manifest.files.keys() if found.get(name) != manifest.files.get(name)
        )
        raise StoreError("E-BACKUP", f"{backup}: {wrong[0]} has changed since it was saved.", fix)
    return manifest


def _begin_epoch(c: sqlite3.Connection, epoch: Epoch) -> tuple[tuple[str, ...], int]:
    """End the runs and tokens that a restored server cannot vouch for.

    Return the ended runs and the number of revoked tokens.
    """
    why = "E-RESTORED: restored from a backup; what the run released after it is not known."
    going_on = "state NOT IN ('finished', 'cancelled')"
    ended = tuple(str(row[0]) for row in c.execute(f"SELECT run FROM served WHERE {going_on} ORDER BY run"))
    c.execute(f"UPDATE served SET state = 'cancelled', why = ? WHERE {going_on}", (why,))
    tokens = c.execute("UPDATE tokens SET revoked = 1 WHERE NOT revoked AND used < uses").rowcount
    c.execute("DELETE FROM sqlite_sequence WHERE name = 'mail'")
    c.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('mail', ?)", (epoch.number * NUMBERS,))
    return ended, tokens


def _save_run(run: Path, to: Path) -> None:
    """Copy a run's folder: its database as of one moment, the blobs that the database names, and its pages."""
    for attempt in range(ATTEMPTS):
        shutil.rmtree(to, ignore_errors=True)
        (to / "blobs").mkdir(FOLDER, parents=True)
        try:
            for path in sorted(run.rglob("*")):
                place = path.relative_to(run)
                if path.is_file() and place.parts[0] not in _LEFT_OUT and not TEMPORARY.fullmatch(path.name):
                    (to / place).parent.mkdir(FOLDER, parents=True, exist_ok=True)
                    _copy(path, to / place)  # the witness is copied before the database, so it is never ahead
            _snapshot(run / "run.db", to / "run.db")
            with closing(sqlite3.connect(to / "run.db")) as c:
                c.execute("UPDATE runs SET journal_key = x''")
                c.commit()
                c.execute("VACUUM")
            for digest in _blobs(to / "run.db"):
                _copy(run / "blobs" / digest, to / "blobs" / digest)
            return
        except FileNotFoundError:
            if attempt == ATTEMPTS - 1:
                raise StoreError(
                    "E-CHECKPOINT", f"{run} lacks a blob that its database names.", "look at it."
                ) from None


def _blobs(database: Path) -> set[str]:
    import sqlalchemy as sa

    engine = sa.create_engine(f"sqlite:///{database}")
    with engine.connect() as c:
        versions = c.execute(sa.text("SELECT schema_version, next_round FROM runs")).all()
        found = (
            digests_in_row(c, versions[0].next_round)
            if versions and versions[0].schema_version == SCHEMA_VERSION
            else set()
        )
    engine.dispose()
    return found - {""}


def _finished(database: Path) -> bool:
    with closing(sqlite3.connect(database)) as c:
        return bool(c.execute("SELECT COALESCE(MIN(finished), 0) FROM runs").fetchone()[0])


def _snapshot(source: Path, target: Path) -> None:
    """Copy a database as of one moment into one file. Raises StoreError: E-CHECKPOINT, E-DISK."""
    try:
        with open(target, "xb", opener=for_owner):
            pass
        with (
            closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=rw", uri=True, timeout=30.0)) as theirs,
            closing(sqlite3.connect(target)) as ours,
        ):
            theirs.backup(ours)  # one step copies all pages, so the copy lies between two commits
            ours.execute("PRAGMA journal_mode=DELETE")
            (verdict,) = ours.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as e:
        if "full" in str(e) or "disk I/O" in str(e):
            raise StoreError("E-DISK", f"{target}: {e}.", "free some space.") from None
        raise StoreError("E-CHECKPOINT", f"{source}: {e}.", "restore the folder from an older backup.") from None
    if verdict != "ok":
        raise StoreError("E-CHECKPOINT", f"{source} is damaged: {verdict}.", "restore the folder from an older backup.")


@contextmanager
def _whole(to: Path) -> Iterator[Path]:
    """Make a folder that gets its name once all of it is on the disk. Remove the remains of killed attempts."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise StoreError("E-FILE-EXISTS", f"{to} exists already.", "name another folder.")
    part = to.parent / f".{to.name}.partial"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(FOLDER, parents=True)
        yield part
        for folder in [part, *(p for p in part.rglob("*") if p.is_dir())]:
            sync_folder(folder)
        if to.exists():
            to.rmdir()
        os.rename(part, to)
        sync_folder(to.parent)
    except OSError as e:
        raise StoreError(
            "E-DISK", f"cannot write {to}: {e.strerror}.", "free some space, or name another place."
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as f, open(target, "wb", opener=for_owner) as g:
        shutil.copyfileobj(f, g, 2**20)
        g.flush()
        os.fsync(g.fileno())


def _write(target: Path, raw: bytes) -> None:
    with open(target, "wb", opener=for_owner) as f:
        f.write(raw)
        f.flush()
        os.fsync(f.fileno())


def _listed(folder: Path) -> Iterator[tuple[str, tuple[int, str]]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with open(path, "rb") as f:
                digest: Any = hashlib.file_digest(f, "sha256")
            yield path.relative_to(folder).as_posix(), (path.stat().st_size, digest.hexdigest())
