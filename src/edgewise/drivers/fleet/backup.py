"""Backups of a server's folder, made while it serves; and the server that goes on from one.

    save(folder, to)            server.db as of one moment, the keys, and of each run what its database names
    restore(backup, folder)     another folder, for a server that begins a new epoch

A backup holds no frames, and no keys of rounds: what a round's end destroys must not live on in a copy. So the rounds
that were open are over in a restored server. It cannot know either what was released and charged after the backup was
made, so no run goes on that was not finished: it could pass its privacy budget (E-RESTORED). It can still be read.
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
from edgewise.drivers.fleet.epoch import EPOCH, Epoch
from edgewise.drivers.fleet.mailboxes import EVERYBODY
from edgewise.drivers.http import home
from edgewise.drivers.storage.files import FOLDER, TEMPORARY, for_owner, sync_folder
from edgewise.drivers.storage.opening import RESTORED, named
from edgewise.drivers.storage.schema import SCHEMA_VERSION

MANIFEST, DATABASE, RUNS, BLOBS = "backup.json", "server.db", "runs", "blobs"
KEYS = ("server.key", "ca.pem", "ca.key", "tls.pem", "tls.key", EPOCH)
ATTEMPTS = 5  # to copy a run whose blobs are swept meanwhile
NUMBERS = 2**40  # of mail in an epoch, so that a number is never given twice
_FORGOTTEN = ("rounds", "mail", "uploads", "nonces", f"publications WHERE run != '{EVERYBODY}'")
_LEFT_OUT = {"blobs", "journal", "devices", "cache", "lock", "run.db", "run.db-wal", "run.db-shm", "sampling.key"}
_FINISHED = "finished"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a backup holds. ``files``: path -> bytes and SHA-256."""

    version: int
    made_s: float
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore has done.

    Attributes:
        made_s: when the backup was made. epoch: number of the new epoch. ended: runs that do not go on. tokens: number
        of enrolment tokens that it revoked.
    """

    made_s: float
    epoch: int
    ended: tuple[str, ...]
    tokens: int


def save(folder: Path, to: Path, now_s: float) -> Manifest:
    """Copy a server's folder to ``to``, which is there whole or not at all. The server may be running.

    Raises:
        TransportError(E-IDENTITY) where the folder is not a server's; StoreError: E-FILE-EXISTS, E-DISK,
        E-CHECKPOINT where a database is damaged.
    """
    if (folder / home.KEY).is_file() and (folder / DATABASE).is_file():
        what = f"{folder} is a gateway's: from an older copy it could open a sum twice, which it would have forgotten."
        fix = "keep no copy. Where it is lost, make another one (`edgewise gateway join`) and submit its runs anew."
        raise TransportError("E-IDENTITY", what, fix)
    if not (folder / "server.key").is_file() or not (folder / DATABASE).is_file():
        raise TransportError("E-IDENTITY", f"{folder} is not the folder of a server.", "name that of `edgewise serve`.")
    with _whole(to) as part:
        for name in KEYS:
            if (folder / name).is_file():
                _copy(folder / name, part / name)
        _snapshot(folder / DATABASE, part / DATABASE)
        with closing(sqlite3.connect(part / DATABASE)) as c:
            for table in _FORGOTTEN:
                c.execute(f"DELETE FROM {table}")
            c.execute("UPDATE leases SET until_s = 0")
            c.commit()
            c.execute("VACUUM")  # what was deleted is in no page of the copy
            promoted = [str(row[0]) for row in c.execute("SELECT digest FROM publications")]
        (part / BLOBS).mkdir(FOLDER)
        for digest in promoted:
            _copy(folder / BLOBS / digest, part / BLOBS / digest)
        for run in sorted((folder / RUNS).iterdir()) if (folder / RUNS).is_dir() else ():
            if (run / "run.db").is_file():
                _save_run(run, part / RUNS / run.name)
        manifest = Manifest(1, now_s, dict(_listed(part)))
        _write(part / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
    return manifest


def restore(backup: Path, folder: Path, now_s: float) -> Restored:
    """Make a server's folder of a backup, in a new epoch. Nothing is left of one that fails.

    The old server must not run any more: both would have one identity.
    Raises StoreError: E-BACKUP where the backup is not whole; E-FOLDER where the folder holds files; E-DISK.
    """
    manifest = check(backup)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError("E-FOLDER", f"{folder} holds files.", "name a new or an empty folder.")
    with _whole(folder) as part:
        for name in manifest.files:
            (part / name).parent.mkdir(FOLDER, parents=True, exist_ok=True)
            _copy(backup / name, part / name)
        before = msgspec.json.decode((part / EPOCH).read_bytes(), type=Epoch) if (part / EPOCH).is_file() else None
        epoch = Epoch((before.number if before else 0) + 1, now_s, manifest.made_s)
        _write(part / EPOCH, msgspec.json.encode(epoch))
        with closing(sqlite3.connect(part / DATABASE)) as c:
            ended, tokens = _begin_epoch(c, epoch)
            c.commit()
        for run in (part / RUNS).iterdir() if (part / RUNS).is_dir() else ():
            if not _finished(run / "run.db"):
                _write(run / RESTORED, json.dumps({"backup_s": manifest.made_s, "restored_s": now_s}).encode())
    return Restored(manifest.made_s, epoch.number, ended, tokens)


def check(backup: Path) -> Manifest:
    """The manifest of a backup that is whole. Raises StoreError(E-BACKUP)."""
    fix = "use another backup; `edgewise backup` writes one whole or not at all."
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
        raise StoreError("E-BACKUP", f"{backup}: {wrong[0]} is not what was saved.", fix)
    return manifest


def _begin_epoch(c: sqlite3.Connection, epoch: Epoch) -> tuple[tuple[str, ...], int]:
    """End what a restored server cannot know; returns the runs that ended and the number of tokens revoked."""
    why = "E-RESTORED: restored from a backup; what the run released after it is not known."
    going_on = "state NOT IN ('finished', 'cancelled')"
    ended = tuple(str(row[0]) for row in c.execute(f"SELECT run FROM served WHERE {going_on} ORDER BY run"))
    c.execute(f"UPDATE served SET state = 'cancelled', why = ? WHERE {going_on}", (why,))
    tokens = c.execute("UPDATE tokens SET revoked = 1 WHERE NOT revoked AND used < uses").rowcount
    c.execute("DELETE FROM sqlite_sequence WHERE name = 'mail'")
    c.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('mail', ?)", (epoch.number * NUMBERS,))
    return ended, tokens


def _save_run(run: Path, to: Path) -> None:
    """Copy a run's folder: its database as of one moment, the blobs that it names, and its pages."""
    for attempt in range(ATTEMPTS):
        shutil.rmtree(to, ignore_errors=True)
        (to / "blobs").mkdir(FOLDER, parents=True)
        try:
            for path in sorted(run.rglob("*")):
                place = path.relative_to(run)
                if path.is_file() and place.parts[0] not in _LEFT_OUT and not TEMPORARY.fullmatch(path.name):
                    (to / place).parent.mkdir(FOLDER, parents=True, exist_ok=True)
                    _copy(path, to / place)  # the witness before the database: it must not be ahead
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
        found = named(c, versions[0].next_round) if versions and versions[0].schema_version == SCHEMA_VERSION else set()
    engine.dispose()
    return found - {""}


def _finished(database: Path) -> bool:
    with closing(sqlite3.connect(database)) as c:
        return bool(c.execute("SELECT COALESCE(MIN(finished), 0) FROM runs").fetchone()[0])


def _snapshot(source: Path, target: Path) -> None:
    """A database as of one moment, in one file. Raises StoreError: E-CHECKPOINT, E-DISK."""
    try:
        with open(target, "xb", opener=for_owner):
            pass
        with (
            closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=rw", uri=True, timeout=30.0)) as theirs,
            closing(sqlite3.connect(target)) as ours,
        ):
            theirs.backup(ours)  # in one step, so between two commits
            ours.execute("PRAGMA journal_mode=DELETE")
            (said,) = ours.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as e:
        if "full" in str(e) or "disk I/O" in str(e):
            raise StoreError("E-DISK", f"{target}: {e}.", "free some space.") from None
        raise StoreError("E-CHECKPOINT", f"{source}: {e}.", "restore the folder from an older backup.") from None
    if said != "ok":
        raise StoreError("E-CHECKPOINT", f"{source} is damaged: {said}.", "restore the folder from an older backup.")


@contextmanager
def _whole(to: Path) -> Iterator[Path]:
    """A folder that gets its name when all of it is on the disk. What killed attempts left is removed."""
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
