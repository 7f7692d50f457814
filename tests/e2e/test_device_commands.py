"""The commands of a device's owner: status, pause, resume, leave; and what they leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import RUN, code, contribution, joined, running, send_invitation

from edgewise.apps.device import clock, control, policy
from edgewise.apps.device.control import Agent
from edgewise.apps.device.record import Record
from edgewise.apps.server.start import HttpServer
from edgewise.core.errors import RecipeError
from edgewise.core.vector import Spec
from edgewise.drivers.http import home as homes
from edgewise.drivers.http.link import Link
from edgewise.drivers.storage.counter_file import LEDGERS
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.recipe.recipe import from_plain
from support.commands import call, command, done

NOON = time.mktime((2026, 12, 1, 12, 0, 0, 0, 0, -1))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with running(tmp_path_factory.mktemp("served")) as made:
        yield made


@pytest.fixture
def home(server: HttpServer, tmp_path: Path) -> Path:
    """Of an enrolled device."""
    joined(server, tmp_path / "home").close()
    policy.first_policy(tmp_path / "home")
    return tmp_path / "home"


def at(home: Path) -> tuple[str, str]:
    return ("--home", str(home))


@pytest.mark.slow
def test_an_owner_sees_what_the_device_does_and_what_left_it(home: Path, server: HttpServer) -> None:
    (home / policy.FILE).write_text("[budget]\nepsilon = 20.0\n")
    plan = compile(from_plain({"privacy": "none"}), Spec.of([("w", (4,), "float32")]), 8, BUILT_IN)
    left, device = Record(home), homes.load(home).name
    raw = contribution(device, bytes(1000))
    left.frame("server", plan, raw, 1.5)
    left.refused("server", "f" * 64, RecipeError("E-FLOOR", "the owner of this device asks for more."))
    found = done("device", "status", *at(home))
    assert (found["state"], found["server"], found["device"]) == ("not running", server.url, device)
    assert found["left"]["today"]["bytes"] == len(raw)
    with Agent(home) as agent:
        agent.say("waiting", "quiet hours until 06:30")
        shown = call("device", "status", *at(home)).stdout
    for said in (
        "waiting: quiet hours until 06:30", "today 1 frame", "1 x update, readable by the server", "1.5 of 20",
        "E-FLOOR: the owner of this device asks for more.",
    ):  # fmt: skip
        assert said in shown
    (home / policy.FILE).write_text("[budget]\nepsilom = 20.0\n")
    assert "did you mean `epsilon`" in call("device", "status", *at(home)).stdout
    assert command("device", "status", "--home", str(home / "none"))["code"] == "E-IDENTITY"


@pytest.mark.slow
def test_a_pause_holds_what_is_about_to_leave_until_it_is_over(home: Path, server: HttpServer) -> None:
    """The device has its answer ready. Paused, not a byte of it leaves; resumed, it is taken within a second."""
    assert done("device", "pause", *at(home))["until_s"] is None
    sent = threading.Event()
    with Agent(home) as agent, Link(home, open=agent.open) as device:
        send_invitation(server, device.name)
        thread = threading.Thread(target=lambda: (device.send(RUN, 0, contribution(device.name)), sent.set()))
        thread.start()
        assert not sent.wait(0.6)
        assert not device.requests, "no request at all"
        assert done("device", "status", *at(home))["state"] == "paused"
        assert done("device", "resume", *at(home))["running"]
        assert sent.wait(5.0)
        thread.join()


def test_a_pause_ends_by_itself() -> None:
    assert clock.next_time("13:30", NOON) == NOON + 5400.0
    assert clock.next_time("11:30", NOON) == NOON + 23.5 * 3600.0
    assert clock.next_time("2026-12-02 12:00", NOON) == NOON + 86400.0
    for text in ("25:00", "soon", "2026-11-30 12:00", ""):
        assert code(clock.next_time, text, NOON) == "E-REQUEST"


@pytest.mark.slow
def test_an_agent_says_what_it_lacks(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getpass", lambda _: (_ for _ in ()).throw(EOFError))
    monkeypatch.delenv("EDGEWISE_TOKEN", raising=False)
    assert command("join", "https://127.0.0.1:1", "--home", str(tmp_path / "new"))["code"] == "E-TOKEN"
    assert command("device", "run", "--home", str(tmp_path / "new"))["code"] == "E-IDENTITY"
    found = command("device", "run", *at(home))
    assert (found["code"], "data.path is empty" in found["what"]) == ("E-MISSING", True)
    (home / policy.FILE).unlink()
    assert command("device", "run", *at(home))["code"] == "E-RECIPE-READ"


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True])
def test_who_leaves_is_revoked_and_only_what_edgewise_made_is_gone(home: Path, server: HttpServer, keep: bool) -> None:
    name = homes.load(home).name
    for folder in ("runs", "models", "cache", LEDGERS):
        (home / folder / "deep").mkdir(parents=True)
    (home / "left.jsonl").write_bytes(b"")
    (home / ".device.key.77.tmp").write_bytes(b"what a killed process left")
    (home / "mine.txt").write_text("the owner's")
    copy = Link(home, 5.0)
    found = done("device", "leave", *at(home), *(["--keep-records"] if keep else []))
    assert found["told"]
    assert code(copy.standing) == "E-REVOKED"
    copy.close()
    records = {LEDGERS, "left.jsonl"} if keep else set()
    assert {path.name for path in home.iterdir()} == {policy.FILE, "mine.txt"} | records
    assert sorted(found["stays"]) == sorted(str(path) for path in home.iterdir())
    with server.service.database.read() as c:
        from edgewise.drivers.fleet import members

        member = members.find(c, name)
        assert member is not None
        assert member.status == "revoked"
    assert command("device", "leave", *at(home))["code"] == "E-IDENTITY"


@pytest.mark.slow
def test_a_device_revokes_itself_and_nobody_else(home: Path, server: HttpServer, tmp_path: Path) -> None:
    with Link(home, 5.0) as device, joined(server, tmp_path / "other") as other:
        for document in ({"device": other.name}, {}, {"device": device.name, "more": 1}):
            assert code(lambda d=document: device.call("POST", "/v1/me/leave", document=d)) == "E-REQUEST"  # type: ignore[misc]
        device.leave()
        device.leave()  # it has left already
        assert other.standing()["status"] == "approved"
    waiting = joined(server, tmp_path / "pending", approved=False)
    waiting.leave()
    waiting.close()


@pytest.mark.slow
def test_nothing_is_removed_where_the_server_cannot_be_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    from edgewise.apps.device import leave

    monkeypatch.setattr(leave, "PATIENCE_S", 0.0)
    homes.save(home, msgspec.structs.replace(homes.load(home), url="https://127.0.0.1:1"))
    assert command("device", "leave", *at(home))["code"] == "E-CONNECT"
    assert (home / homes.KEY).exists()
    assert not done("device", "leave", "--offline", *at(home))["told"]
    assert not (home / homes.KEY).exists()


@pytest.mark.slow
def test_an_agent_ends_when_its_owner_leaves(home: Path) -> None:
    """By itself where it asks for its order; an agent that does not is ended by a signal."""
    ended = threading.Event()

    def work() -> None:
        with Agent(home) as agent:
            while not agent.order().leave:
                time.sleep(0.02)
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    while control.running_agent(home) is None:
        time.sleep(0.01)
    assert done("device", "leave", *at(home))["told"]
    assert ended.is_set()
    thread.join()


@pytest.mark.slow
def test_the_owners_side_imports_no_torch(home: Path) -> None:
    """`device status` in a process of its own, which compiles nothing either; then the link and all modules."""
    names = sorted(path.stem for path in Path(control.__file__).parent.glob("*.py") if path.stem != "__init__")
    heavy = "print(*[m for m in ('torch', 'transformers', 'peft', 'fastapi', 'uvicorn') if m in sys.modules])\n"
    program = (
        "import sys\nfrom edgewise.apps.cli.main import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "print(*[m for m in ('numba', 'scipy') if m in sys.modules])\n"
        "import edgewise.drivers.http.link\n"
    )
    program += "".join(f"import edgewise.apps.device.{name}\n" for name in names) + heavy
    asked = subprocess.run(
        [sys.executable, "-c", program, "device", "status", "--json", "--home", str(home)],
        capture_output=True, text=True, timeout=120, env=os.environ.copy(),
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    assert '"state": "not running"' in asked.stdout
    assert asked.stdout.splitlines()[-2:] == ["", ""]
