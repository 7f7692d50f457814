"""`edgewise doctor --server`: what it finds wrong with a server's folder, and that it says what to do."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from served import running

from edgewise.apps.cli.doctor import BAD, NOTE, OK, Check
from edgewise.apps.cli.server_doctor import examine_server_folder
from edgewise.drivers.fleet import backup
from support.commands import command


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a server that has stopped."""
    made = tmp_path_factory.mktemp("examined")
    with running(made):
        pass
    return made / "server"


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "server"))


def free() -> str:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return f"127.0.0.1:{s.getsockname()[1]}"


def found(folder: Path, listen: str = "", after_s: float = 0.0) -> dict[str, Check]:
    return {one.name: one for one in examine_server_folder(folder, listen or free(), time.time() + after_s)}


def test_a_sound_server_has_nothing_bad(folder: Path) -> None:
    findings = found(folder)
    assert {name for name, one in findings.items() if one.state == BAD} == set()
    assert {"folder", "keys", "certificate", "database", "lease", "disk", "clock", "port"} <= findings.keys()
    assert "no server works here" in findings["lease"].found
    assert "localhost" in findings["certificate"].found


@pytest.mark.slow
def test_a_running_server_is_seen(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        findings = found(tmp_path / "server", f"127.0.0.1:{server.port}")
        assert findings["lease"].found.startswith("held by")
        assert findings["port"].state == OK
        assert found(tmp_path / "server")["port"].state == NOTE


def _damaged(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[4096:8192] = os.urandom(4096)
    path.write_bytes(raw)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "open folder": (lambda f: f.chmod(0o755), "folder"),
    "open key": (lambda f: (f / "server.key").chmod(0o644), "keys"),
    "open key of the authority": (lambda f: (f / "ca.key").chmod(0o640), "keys"),
    "no key": (lambda f: (f / "server.key").write_text("no"), "keys"),
    "another's certificate": (lambda f: (f / "tls.key").write_bytes((f / "ca.key").read_bytes()), "certificate"),
    "no certificate": (lambda f: (f / "tls.pem").write_text("no"), "certificate"),
    "damaged database": (lambda f: _damaged(f / "server.db"), "database"),
    "no database": (lambda f: (f / "server.db").write_bytes(b"no database" * 100), "database"),
    "a file of tomorrow": (lambda f: os.utime(f / "ca.pem", (time.time() + 86400,) * 2), "clock"),
    "damaged epoch": (lambda f: (f / "epoch.json").write_text("{"), "epoch"),
}


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_found_and_has_a_cure(folder: Path, what: str) -> None:
    spoil, name = WRONG[what]
    spoil(folder)
    findings = found(folder)
    assert findings[name].state == BAD, findings
    assert findings[name].fix
    assert [one.name for one in findings.values() if one.state == BAD] == [name]


def test_a_certificate_that_ends_and_a_port_that_is_taken(folder: Path) -> None:
    assert found(folder, after_s=380 * 86400)["certificate"].state == NOTE
    assert found(folder, after_s=400 * 86400)["certificate"].state == BAD
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert found(folder, f"127.0.0.1:{taken.getsockname()[1]}")["port"].state == BAD
    assert found(folder, "8443")["port"].state == BAD


@pytest.mark.slow
def test_a_restored_server_says_so_and_the_commands_work(folder: Path, tmp_path: Path) -> None:
    done = command("backup", str(folder), str(tmp_path / "copy"))
    assert done["files"] >= 6
    again = command("restore", str(tmp_path / "copy"), str(tmp_path / "new"))
    assert (again["epoch"], again["ended"]) == (1, [])
    assert "from a backup of" in found(tmp_path / "new")["epoch"].found
    said = command("doctor", "--server", str(tmp_path / "new"), "--listen", free())
    assert {one["name"] for one in said["findings"]} >= {"lease", "epoch"}
    assert command("restore", str(tmp_path / "copy"), str(folder))["code"] == "E-FOLDER"
    (tmp_path / "copy" / backup.MANIFEST).unlink()
    assert command("restore", str(tmp_path / "copy"), str(tmp_path / "third"))["code"] == "E-BACKUP"
    assert [one.state for one in examine_server_folder(tmp_path, free(), 0.0)] == [BAD]
