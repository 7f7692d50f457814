"""Checks of ``edgewise doctor --server FOLDER``: the state of a server's folder, and a fix for each fault."""

from __future__ import annotations

import ctypes
import datetime
import os
import shutil
import socket
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from cryptography import x509

from edgewise.apps.cli.doctor import BAD, NOTE, OK, Check
from edgewise.core.errors import EdgewiseError
from edgewise.drivers.fleet import blob_places, epoch
from edgewise.drivers.fleet.database import database_version
from edgewise.drivers.fleet.shared_folder import ELSEWHERE
from edgewise.drivers.http import certificates, identity
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.storage.fencing import GRACE_S
from edgewise.drivers.storage.object_store import ObjectStore

RESTORE = "restore the folder from a backup (`edgewise restore`)"
LOW_BYTES = 2**30
AHEAD_S = 300.0  # A file that is newer than now by more than this means that the clock was set back.
_UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)


def examine_server_folder(folder: Path, listen: str, now_s: float) -> list[Check]:
    """Run all checks of a server's folder without changing it. ``listen`` is HOST:PORT of the server."""
    if not (folder / "server.key").is_file():
        return [Check("server", BAD, f"{folder} is not a server's folder", "name the FOLDER of `edgewise serve`")]
    held, database = _check_database(folder, now_s)
    return [
        _check_folder(folder),
        _check_key_files(folder),
        *_check_certificate(folder, now_s),
        *database,
        *_check_blobs(folder),
        _check_disk(folder),
        _check_clock(folder, now_s),
        _check_port(listen, held),
        *_check_epoch(folder),
    ]


def _check_folder(folder: Path) -> Check:
    """Check who can enter the folder."""
    if os.name != "nt" and stat.S_IMODE(folder.stat().st_mode) & 0o077:
        return Check("folder", BAD, f"other users can enter {folder}", f"chmod 700 {folder}")
    if not os.access(folder, os.W_OK):
        return Check("folder", BAD, f"{folder} cannot be written", "run as its owner")
    return Check("folder", OK, str(folder.resolve()))


def _check_key_files(folder: Path) -> Check:
    """Check who can read the server's keys."""
    for name in ("ca.key", "tls.key", "server.db"):
        path = folder / name
        if os.name != "nt" and path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            fix = f"if nobody else has read it, chmod 600 {path}; else {RESTORE} and make new keys"
            return Check("keys", BAD, f"other users may read {path}", fix)
    try:
        return Check("keys", OK, f"the server is {identity.load(folder / 'server.key').name}")
    except EdgewiseError as e:
        return Check("keys", BAD, e.what, e.fix)


def _check_certificate(folder: Path, now_s: float) -> Iterator[Check]:
    """Check the certificate's last day."""
    path, now = folder / "tls.pem", datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    if not path.exists():
        yield Check("certificate", NOTE, "none yet: the server makes one at its start, unless --cert names yours")
        return
    try:
        certificates.server_context(path, folder / "tls.key")
        made = x509.load_pem_x509_certificate(path.read_bytes())
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (EdgewiseError, ValueError, OSError, x509.ExtensionNotFound) as e:
        yield Check("certificate", BAD, str(e), "remove tls.pem and tls.key: the next start makes new ones")
        return
    hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    days = (made.not_valid_after_utc - now).days
    found = f"for {', '.join(hosts)}; valid for {days} days"
    if made.not_valid_before_utc > now or days < 0:
        yield Check("certificate", BAD, f"{found}: it is not valid now", "restart the server, or set the clock")
    elif days < certificates.RENEW_DAYS:
        yield Check("certificate", NOTE, found, "restart the server: it then makes a new one")
    else:
        yield Check("certificate", OK, found)
    if set(hosts) <= {"localhost", "127.0.0.1", "::1"}:
        yield Check("host names", NOTE, "this machine only", "`edgewise serve --name HOST` for devices elsewhere")


def _check_database(folder: Path, now_s: float) -> tuple[bool, list[Check]]:
    """Check the database. Returns whether a server holds its lease, and the findings."""
    path = folder / "server.db"
    if (folder / ELSEWHERE).exists():
        return False, [Check("database", NOTE, "in PostgreSQL: not looked at here", "ask the servers: GET /readyz")]
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=5.0)) as c:
            (verdict,) = c.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                return False, [Check("database", BAD, f"{path} is damaged: {verdict}", RESTORE)]
            (version,) = c.execute("SELECT version_num FROM alembic_version").fetchone()
            lease = c.execute("SELECT holder, number, until_s FROM leases").fetchone()
            runs = dict(c.execute("SELECT state, COUNT(*) FROM served GROUP BY state").fetchall())
            members = dict(c.execute("SELECT status, COUNT(*) FROM members GROUP BY status").fetchall())
    except (sqlite3.Error, TypeError) as e:
        if "no such table" in str(e):
            return False, [
                Check("database", NOTE, f"of another version ({e})", "the next start of the server upgrades it")
            ]
        return False, [Check("database", BAD, f"{path}: {e}", RESTORE)]
    held = lease is not None and lease[2] > now_s
    who = f"held by {lease[0]}, number {lease[1]}" if held else "free: no server works here"
    state = Check(
        "database", OK, f"version {version}, {_counts_in_words(members)} members, {_counts_in_words(runs)} runs"
    )
    if version != database_version():
        found = f"version {version}; this edgewise has {database_version()}"
        state = Check("database", NOTE, found, "make a backup; the next start of the server upgrades it")
    findings = [state, Check("lease", OK, who)]
    if failed := runs.get("failed", 0):
        findings.append(Check("runs", NOTE, f"{failed} failed", "`edgewise run ls` says why"))
    return held, findings


def _counts_in_words(by_state: dict[str, int]) -> str:
    """Write a number of things by state."""
    return f"{sum(by_state.values())}" + (
        f" ({', '.join(f'{n} {s}' for s, n in sorted(by_state.items()))})" if by_state else ""
    )


def _check_blobs(folder: Path) -> Iterator[Check]:
    """Check the object store of the blobs with the credentials of this environment, without changing it."""
    try:
        place = blob_places.noted_object_store(folder)
        if place is None:
            return
        store = ObjectStore(place, GRACE_S)
        owner, (number, size) = store.owner(), store.measured()
        name = identity.load(folder / "server.key").name
    except EdgewiseError as e:
        yield Check("blobs", BAD, e.what, e.fix)
        return
    if owner != name:
        found = f"belongs to the server {owner:.80}" if owner is not None else "has no blobs of this server"
        yield Check("blobs", BAD, f"{place.url} {found}", "`edgewise explain E-STORE-BUCKET` says what to do")
    else:
        yield Check("blobs", OK, f"{number} in {place.url}, {size / 1e6:.1f} MB")


def _check_disk(folder: Path) -> Check:
    """Check the free space of the folder's disk."""
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free"
    if free < ServerLimits().reserve_bytes:
        return Check(
            "disk", BAD, f"{found}: frames are refused", "free some space; the server then continues by itself"
        )
    if free < LOW_BYTES:
        return Check("disk", NOTE, found, "free some space: below 64 MiB frames are refused")
    return Check("disk", OK, found)


def _check_clock(folder: Path, now_s: float) -> Check:
    """Check that the clock is not behind the folder's files."""
    newest = max(path.stat().st_mtime for path in folder.iterdir())
    if newest > now_s + AHEAD_S:
        found = f"a file here is from {newest - now_s:.0f} s in the future: the clock was set back"
        return Check("clock", BAD, found, "set the clock: devices sign the time, and 60 s of difference are allowed")
    if _is_clock_unsynchronised():
        fix = "run a time service (NTP): clocks of devices may differ by 60 s"
        return Check("clock", NOTE, "not kept by a time service", fix)
    return Check("clock", OK, f"{datetime.datetime.fromtimestamp(now_s, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC")


def _is_clock_unsynchronised() -> bool:
    """Tell whether the kernel knows that no time service keeps its clock; False if it does not tell."""
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)) == _UNSYNCHRONISED)
    except (OSError, AttributeError):
        return False


def _check_port(listen: str, held: bool) -> Check:
    """Check that the server can listen at its address."""
    host, _, port = listen.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 2**16):
        return Check("port", BAD, f"{listen} is not HOST:PORT", "write for example --listen 0.0.0.0:8443")
    near = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    try:
        with socket.create_connection((near, int(port)), 3.0):
            taken = True
    except OSError:
        taken = False
    if held and not taken:
        return Check(
            "port", NOTE, f"nobody answers at {listen}, but a server works here", "name its address by --listen"
        )
    if taken and not held:
        return Check("port", BAD, f"{listen} is taken by another program", "stop it, or name another --listen")
    return Check("port", OK, f"{listen} {'answers' if taken else 'is free'}")


def _check_epoch(folder: Path) -> Iterator[Check]:
    """Tell whether the server was restored from a backup."""
    try:
        found = epoch.load_server_epoch(folder)
    except EdgewiseError as e:
        yield Check("epoch", BAD, e.what, e.fix)
        return
    if found.number:
        when: Callable[[float], str] = lambda s: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(s))  # noqa: E731
        sentence = f"number {found.number}: restored {when(found.began_s)} from a backup of {when(found.backup_s)}"
        yield Check("epoch", NOTE, sentence, "revoke again each member that was revoked in between")
