"""The coordinator over enrolled devices: the same run as in the simulator, to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from enrolled_toys import Toy, played, working
from network_recipes import MASKS, SHARES
from played import play
from served import code, contribution, invite, joined, running
from toy import ToyTrainer

from edgewise.apps.server.start import HttpServer
from edgewise.core import events, frame, vector
from edgewise.core.keys import derive
from edgewise.drivers.fleet import mailboxes, members
from edgewise.drivers.http import attend
from edgewise.drivers.http import link as connection
from edgewise.drivers.http.cohort import SILENCE_S, HttpCohort
from edgewise.drivers.http.link import Link
from edgewise.drivers.simulation.keys import simulated_sampling
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine import beacon, beacon_server
from edgewise.engine.ports import Absent, Arrived, Sent

KIT = Path(__file__).parents[1] / "support"
FEDAVG: dict[str, Any] = {
    "stage": [{"kind": "weigh"}],
    "strategy": {"kind": "fedavg"},
    "round.rounds": 1,
    "round.deadline_s": 60.0,
}
COUNTED = ("accepted", "round_started", "round_finished")
MEMORY: dict[str, Any] = {"round.rounds": 3, "round.deadline_s": 60.0}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    with running(tmp_path) as made:
        yield made


@contextmanager
def fleet(server: HttpServer, folder: Path, n: int) -> Iterator[list[Link]]:
    links = [joined(server, folder / f"home-{i}") for i in range(n)]
    yield links
    for link in links:
        link.close()


def simulated(folder: Path, names: list[str], overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TOY_NAMES", ",".join(names))
    models, *_ = play(folder, {"data.devices": len(names), **overrides})
    return models


def process(role: str, place: Path, overrides: dict[str, Any], *more: str) -> subprocess.Popen[str]:
    """A device or the server of a run; the devices are those of ``TOY_NAMES``."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(KIT)])}
    command = [sys.executable, str(KIT / "enrolled_toys.py"), role, str(place), json.dumps(overrides), *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def agree(
    server: HttpServer, tmp_path: Path, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    with fleet(server, tmp_path, n) as links:
        names = [link.name for link in links]
        expected = simulated(tmp_path / "simulated", names, overrides, monkeypatch)
        toy = Toy.of(names, overrides)
        told: list[events.AnyEvent] = []
        with working(links, toy, tmp_path):
            assert played(server, toy, tmp_path / "out", told.append) == expected
        assert len([e for e in told if isinstance(e, events.Accepted)]) == n * overrides["round.rounds"]


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("overrides", [FEDAVG, MEMORY], ids=["fedavg", "memory of three rounds"])
def test_the_simulator_and_the_network_agree_to_the_byte(
    server: HttpServer, tmp_path: Path, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(server, tmp_path, overrides, monkeypatch, 3)


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("overrides", [MASKS, SHARES], ids=["masks", "shares"])
def test_hidden_sums_agree_too(
    server: HttpServer, tmp_path: Path, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(server, tmp_path, overrides, monkeypatch, 8)


@pytest.mark.slow
def test_devices_draw_their_cohorts_over_the_network(server: HttpServer, tmp_path: Path) -> None:
    """Every round has the cohort that its devices drew, and who came first to commit is free."""
    settings = {
        **MASKS, "round.rounds": 2, "round.sampling": "fixed", "round.cohort": 4, "round.overselect": 1.0,
        "round.minimum": 1.0, "trust.malicious_fraction": 0.2, "trust.dropout_fraction": 0.0,
        "trust.cohorts": "verified",
    }  # fmt: skip
    with fleet(server, tmp_path, 5) as links:
        toy = Toy.of([link.name for link in links], settings)
        told: list[events.AnyEvent] = []
        with working(links, toy, tmp_path):
            played(server, toy, tmp_path / "out", told.append)
    with RunStore(tmp_path / "out") as store:
        blob = beacon_server.stored(store.beacon)
    assert blob is not None
    assert len(frame.beacon(blob).listed) == toy.plan.contributors == 2
    top = derive(simulated_sampling(toy.plan, toy.root), "beacon")
    for number in range(2):
        draw = frame.Draw(beacon=vector.digest(blob), key=beacon.key(top, 2, number))
        drawn = beacon.cohort(toy.plan, toy.trust, draw, number, blob)
        assert {e.device for e in told if isinstance(e, events.Accepted) and e.round == number} == drawn
    assert not [e for e in told if isinstance(e, events.Lost)]


@pytest.mark.long(sample=0)
@pytest.mark.slow
@pytest.mark.parametrize("overrides", [FEDAVG, MASKS, SHARES], ids=["plain", "masks", "shares"])
def test_one_server_and_five_device_processes_agree_with_the_simulator(
    server: HttpServer, tmp_path: Path, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the devices is killed while it starts, and started again."""
    with fleet(server, tmp_path, 5) as links:
        names = [link.name for link in links]
        expected = simulated(tmp_path / "simulated", names, overrides, monkeypatch)
        toy = Toy.of(names, overrides)
        start = lambda i: process("device", tmp_path / f"home-{i}", overrides)  # noqa: E731
        devices = [start(i) for i in range(5)]
        try:
            devices[0].kill()
            devices[0].communicate()
            devices[0] = start(0)
            assert played(server, toy, tmp_path / "out") == expected
        finally:
            for device in devices:
                device.kill()
                device.communicate()


def until(server: subprocess.Popen[str], found: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """Read what a server tells up to a line of interest; None where it ends before."""
    assert server.stdout is not None
    return next((told for told in map(json.loads, server.stdout) if found(told)), None)


@pytest.mark.long(sample=0)
@pytest.mark.slow
@pytest.mark.parametrize("overrides", [MEMORY, MASKS], ids=["memory of three rounds", "masks"])
@pytest.mark.parametrize("killed_after", [2, 4])
def test_a_run_goes_on_after_its_server_was_killed(
    tmp_path: Path, overrides: dict[str, Any], killed_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after so many contributions were counted. No device is asked by hand: they find the new server."""
    n = 3 if overrides is MEMORY else 8
    monkeypatch.setattr(connection, "LONGEST_PAUSE_S", 0.5)
    with running(tmp_path) as first:  # enrols the devices, and ends
        links = [joined(first, tmp_path / f"home-{i}") for i in range(n)]
        port = first.port
    for one in links:
        one.patience_s = 120.0  # a process takes seconds to start on a busy machine
    names = [link.name for link in links]
    expected = simulated(tmp_path / "simulated", names, overrides, monkeypatch)
    toy = Toy.of(names, overrides)
    server = process("server", tmp_path, overrides, str(port))
    try:
        with working(links, toy, tmp_path):
            for _ in range(killed_after):
                assert until(server, lambda told: told.get("event") in COUNTED) is not None
            server.kill()
            server.communicate()
            server = process("server", tmp_path, overrides, str(port))
            last = until(server, lambda told: "models" in told)
        assert last is not None
        assert {int(played): model for played, model in last["models"].items()} == expected
    finally:
        server.kill()
        server.communicate()
        for link in links:
            link.close()


# -- the port ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def device(server: HttpServer, tmp_path: Path) -> Iterator[Link]:
    with joined(server, tmp_path / "home") as link:
        yield link


def cohort(server: HttpServer, silence_s: float = 60.0) -> HttpCohort:
    return HttpCohort(server.service, "run-1", 2**20, silence_s)


@pytest.mark.slow
def test_a_restarted_coordinator_gets_what_had_come_and_the_clock_goes_on(server: HttpServer, device: Link) -> None:
    one, raw = cohort(server), frame.dump(invite())
    one.publish([b"model"])
    one.send(device.name, raw)
    assert one.receive(0.0) is None
    device.send("run-1", 0, contribution(device.name))
    first = one.receive(5.0)
    assert isinstance(first, Arrived)
    assert first.frame == contribution(device.name)
    assert 0.0 <= first.at_s <= one.now_s()
    assert one.receive(0.0) is None
    two = cohort(server)  # the server was killed before the arrival was in the round's log
    two.publish([b"model"])
    two.resume([Sent(device.name, raw, 0.0, True)], 50.0)
    assert two.now_s() >= 50.0
    again = two.receive(5.0)
    assert isinstance(again, Arrived)
    assert again.frame == first.frame
    two.close_round()
    assert code(device.send, "run-1", 0, contribution(device.name)) == "E-CLOSED"


def test_a_device_is_in_touch_often_enough() -> None:
    assert 3 * attend.TOUCH_S <= SILENCE_S


@pytest.mark.slow
def test_only_what_is_published_can_be_downloaded(server: HttpServer, device: Link, tmp_path: Path) -> None:
    one = cohort(server)
    (old,) = one.publish([b"old"])
    assert code(device.download, old, tmp_path / "blobs", 100) == "E-BLOB", "it takes no part in the run"
    for run in ("run-1", "run-2"):
        server.service.database.write(lambda c, run=run: mailboxes.admit(c, run, [device.name]))  # type: ignore[misc]
    assert device.download(old, tmp_path / "blobs", 100).read_bytes() == b"old"
    other = HttpCohort(server.service, "run-2", 2**20)
    (theirs,) = other.publish([b"of another run"])
    (new,) = one.publish([b"new"])
    for digest in (new, theirs):
        device.download(digest, tmp_path / "blobs", 100)
    assert code(device.download, old, tmp_path / "other", 100) == "E-BLOB"
    assert not server.service.blobs.path(old).exists()


@pytest.mark.slow
def test_a_device_without_progress_is_lost_and_one_that_calls_is_not(server: HttpServer, device: Link) -> None:
    one = cohort(server, silence_s=0.3)
    one.publish([])
    one.send(device.name, frame.dump(invite()))
    for _ in range(8):  # longer than the silence that is allowed
        device.standing()
        assert one.receive(0.1) is None
    time.sleep(0.4)
    lost = one.receive(5.0)
    assert isinstance(lost, Absent)
    assert (lost.device, lost.code) == (device.name, "dropped")
    assert one.receive(0.0) is None, "once"


@pytest.mark.slow
def test_a_device_that_was_told_to_come_back_later_is_not_lost_before(server: HttpServer, device: Link) -> None:
    one = cohort(server, silence_s=0.0)
    one.publish([])
    server.service.presence.returns(device.name, 0.3)
    one.send(device.name, frame.dump(invite()))
    assert one.receive(0.05) is None
    assert isinstance(one.receive(5.0), Absent)


def test_who_is_not_approved_is_lost_at_once(server: HttpServer, device: Link) -> None:
    one = cohort(server)
    server.service.database.write(lambda c: members.revoke(c, device.name, time.time()))
    one.send(device.name, frame.dump(invite()))
    one.send("f" * 32, frame.dump(invite()))
    assert {lost.device for lost in (one.receive(5.0), one.receive(5.0)) if lost} == {device.name, "f" * 32}
    with server.service.database.read() as c:
        assert mailboxes.next_letter(c, device.name, 0) is None


@pytest.mark.slow
def test_a_large_frame_comes_whole_and_its_chunks_go_with_the_round(server: HttpServer, device: Link) -> None:
    one = cohort(server)
    one.send(device.name, frame.dump(invite()))
    raw = contribution(device.name, bytes(range(256)) * 2**15)  # three chunks
    device.send("run-1", 0, raw)
    arrived = one.receive(5.0)
    assert isinstance(arrived, Arrived)
    assert arrived.frame == raw
    assert len(server.service.chunks.uploads()) == 1
    one.close_round()
    assert server.service.chunks.uploads() == []


@pytest.mark.slow
@pytest.mark.parametrize("last", ["PUT", "POST"])
def test_an_upload_whose_round_closes_amid_it_is_refused_as_any_late_frame(
    server: HttpServer, device: Link, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    one, honest = cohort(server), device.call
    one.send(device.name, frame.dump(invite()))
    assert one.receive(0.0) is None

    def call(method: str, path: str, *rest: Any, **more: Any) -> Any:
        if (method, path[:11]) == (last, "/v1/uploads" if last == "PUT" else "/v1/outbox"):
            one.close_round()
        return honest(method, path, *rest, **more)

    monkeypatch.setattr(device, "call", call)
    assert code(device.send, "run-1", 0, contribution(device.name, bytes(2**23))) == "E-CLOSED"


@pytest.mark.slow
def test_a_device_that_is_revoked_is_lost_at_once(server: HttpServer, device: Link, tmp_path: Path) -> None:
    one = cohort(server)
    one.send(device.name, frame.dump(invite()))
    with joined(server, tmp_path / "operator", "operator") as operator:
        operator.call("POST", f"/v1/devices/{device.name}/revoke")
    lost = one.receive(5.0)
    assert isinstance(lost, Absent)
    assert lost.device == device.name


@pytest.mark.slow
def test_a_device_that_trains_for_long_keeps_its_place(
    server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attend, "TOUCH_S", 0.05)
    with joined(server, tmp_path / "home") as device:
        toy = Toy.of([device.name], FEDAVG)
        real = ToyTrainer.fit
        monkeypatch.setattr(ToyTrainer, "fit", lambda self, request: (time.sleep(0.9), real(self, request))[1])
        told: list[events.AnyEvent] = []
        with working([device], toy, tmp_path):
            played(server, toy, tmp_path / "out", told.append, silence_s=0.5)
        assert not [e for e in told if isinstance(e, events.Lost)]
        assert [e.device for e in told if isinstance(e, events.Accepted)] == [device.name]
