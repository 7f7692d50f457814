"""`edgewise serve` and the commands of operators and owners, as processes; and a server that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import RUN, contribution, invite

from edgewise.apps.device import policy
from edgewise.core import frame
from edgewise.drivers.fleet import mailboxes
from edgewise.drivers.fleet.database import Database
from edgewise.drivers.http.link import Link
from support.commands import command, done


class Serving:
    """A server process on one port."""

    def __init__(self, folder: Path, listen: str = "127.0.0.1:0") -> None:
        code = "from edgewise.apps.cli.main import main; main()"
        arguments = [sys.executable, "-c", code, "serve", str(folder), "--listen", listen, "--json"]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.told: dict[str, Any] = json.loads(line)
        self.url = self.told["url"]

    def end(self, how: signal.Signals) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.communicate()
        return self.process.returncode


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    made = Serving(tmp_path / "server")
    yield made
    made.end(signal.SIGKILL)


def join(serving: Serving, home: Path, token: str) -> dict[str, Any]:
    home.mkdir()
    (home / "token").write_text(token + "\n")
    return done("join", serving.url, "--token-file", str(home / "token"), "--home", str(home))


@pytest.mark.slow
def test_an_operator_lets_devices_in_and_out(serving: Serving, tmp_path: Path) -> None:
    admin, device = tmp_path / "admin", tmp_path / "device"
    assert join(serving, admin, serving.told["token"])["role"] == "admin"
    made = done("token", "create", "--tag", "lab", "--home", str(admin))
    joined = join(serving, device, made["text"])
    assert (joined["role"], joined["status"], joined["tags"]) == ("device", "pending", ["lab"])
    assert Path(joined["policy"]).read_text() == policy.owner_policy_template()
    assert not (admin / policy.FILE).exists(), "who runs the fleet has no text to give"
    assert command("fleet", "ls", "--home", str(device))["code"] == "E-PENDING"
    (waiting,) = done("fleet", "ls", "--status", "pending", "--home", str(admin))["members"]
    assert done("fleet", "approve", waiting["id"], "--home", str(admin))["members"][0]["status"] == "approved"
    assert command("fleet", "ls", "--home", str(device))["code"] == "E-ROLE"
    done("fleet", "revoke", waiting["id"], "--home", str(admin))
    assert command("fleet", "ls", "--home", str(device))["code"] == "E-REVOKED"
    assert {t["role"]: t["used"] for t in done("token", "ls", "--home", str(admin))["tokens"]} == {
        "admin": 1,
        "device": 1,
    }
    done("token", "revoke", made["id"], "--home", str(admin))
    assert command("token", "revoke", "../x", "--home", str(admin))["code"] == "E-UNKNOWN-ID"
    assert command("fleet", "ls", "--home", str(tmp_path / "nobody"))["code"] == "E-IDENTITY"
    assert command("serve", str(tmp_path / "server"), "--listen", "127.0.0.1:0")["code"] == "E-LEASE"
    arguments = Path(f"/proc/{serving.process.pid}/cmdline")
    shown = (tmp_path / "server" / "server.log").read_text()
    assert {json.loads(line)["event"] for line in shown.splitlines()} == {"request"}
    shown += arguments.read_text() if arguments.exists() else ""
    for secret in (serving.told["token"], made["text"]):
        assert secret not in shown
    assert serving.end(signal.SIGTERM) == 0


def post(folder: Path, device: str) -> None:
    """Put an invitation into the mail of a server that does not run."""
    database = Database(folder)
    letter = invite()
    database.write(lambda c: mailboxes.post(c, device, frame.dump(letter), letter, time.time()))
    database.close()


@pytest.mark.slow
def test_what_was_acknowledged_survives_the_server(tmp_path: Path) -> None:
    """Killed right after an answer, the server has the frame, and takes it for the same."""
    folder = tmp_path / "server"
    serving = Serving(folder)
    listen = serving.url.removeprefix("https://")
    try:
        join(serving, tmp_path / "admin", serving.told["token"])
        made = done("token", "create", "--approved", "--home", str(tmp_path / "admin"))
        join(serving, tmp_path / "device", made["text"])
        serving.end(signal.SIGKILL)
        with Link(tmp_path / "device", patience_s=20.0) as device:
            post(folder, device.name)
            serving = Serving(folder, listen)
            assert serving.told["token"] is None, "there is an administrator already"
            assert device.poll(0, 0.0) is not None
            raw = contribution(device.name)
            number = device.send(RUN, 0, raw)
            serving.end(signal.SIGKILL)
            began = time.monotonic()
            serving = Serving(folder, listen)
            print(f"serving again after {time.monotonic() - began:.1f} s")
            assert device.send(RUN, 0, raw) == number
            serving.end(signal.SIGKILL)
            database = Database(folder)
            with database.read() as c:
                assert [letter.number for letter in mailboxes.arrivals(c, RUN, 0, 10)] == [number]
            database.close()
    finally:
        serving.end(signal.SIGKILL)


@pytest.mark.slow
def test_bad_addresses_and_files_are_named(tmp_path: Path) -> None:
    for arguments in (
        ("serve", "--listen", "8443"), ("serve", "--listen", "localhost:99999"), ("serve", "--cert", "a.pem"),
    ):  # fmt: skip
        assert command(arguments[0], str(tmp_path / "s"), *arguments[1:])["code"] == "E-REQUEST"
    assert command("serve", str(tmp_path / "s"), "--cert", "a", "--key", "b")["code"] == "E-IDENTITY"
    assert command("serve", str(tmp_path / "s"), "--plain", "--listen", "0.0.0.0:0")["code"] == "E-LISTEN"
    (tmp_path / "token").write_text("fedtok1_x")
    home = ("--home", str(tmp_path / "home"))
    for url, file, expected in (
        ("https://127.0.0.1:1", str(tmp_path / "none"), "E-TOKEN"),
        ("https://127.0.0.1:1", str(tmp_path / "token"), "E-TOKEN"),
    ):
        assert command("join", url, "--token-file", file, *home)["code"] == expected
    assert not (tmp_path / "home").exists()


@pytest.mark.slow
def test_an_unreachable_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise.drivers.http import tokens

    monkeypatch.setenv("EDGEWISE_TOKEN", tokens.make_token_for_server("a" * 32).text)
    found = command("join", "https://127.0.0.1:1", "--home", str(tmp_path / "home"))
    assert found["code"] == "E-CONNECT"
    assert os.environ["EDGEWISE_TOKEN"] not in json.dumps(found)
    assert command("join", "http://127.0.0.1:1", "--home", str(tmp_path / "home"))["code"] == "E-REQUEST"
