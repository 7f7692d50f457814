"""Devices that were asked to come back later are present and not lost, whichever server asked them and when."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from scripted import RECIPE, submission
from served import invite, joined, running, send_invitation

from edgewise.apps.server.start import HttpServer
from edgewise.core import frame
from edgewise.drivers.http import presence
from edgewise.drivers.http.cohort import HttpCohort
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.presence import HERE_S, Presence, short_deadline
from edgewise.engine.pacing import LEAST_S, LONGEST_S
from edgewise.engine.ports import Absent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time of ``presence``, in ``at_s``."""
    made = SimpleNamespace(at_s=10_000.0)
    monkeypatch.setattr(presence.time, "monotonic", lambda: made.at_s)
    return made


def test_a_device_is_present_until_its_pause_is_over_and_somewhat_longer(clock: SimpleNamespace) -> None:
    fleet = Presence(rate=1.0, fleet=lambda: 0)
    for name in (f"{i:03d}" for i in range(800)):
        fleet.came(name)
        pause_s = fleet.pause_s(name, 0.0)
    assert pause_s > 800.0
    clock.at_s += 800.0
    assert fleet.present(["799"]) == 1, "it is on its way"
    assert fleet.present(["000"]) == 0, "it was to come long ago"
    assert fleet.recent() == [f"{i:03d}" for i in range(800) if LEAST_S + i >= 800.0 - HERE_S]
    clock.at_s += 30.0 + HERE_S
    assert fleet.present(["799"]) == 0


def test_pauses_of_an_earlier_life_are_bounded_by_the_longest_of_the_fleet(clock: SimpleNamespace) -> None:
    assert Presence(1000.0, lambda: 0).earliest_s("a") == clock.at_s, "a new fleet has no pauses"
    assert Presence(1000.0, lambda: 2).earliest_s("a") == pytest.approx(clock.at_s + LEAST_S, abs=0.01)
    assert Presence(1000.0, lambda: 10**7).earliest_s("a") == clock.at_s + LONGEST_S
    one = Presence(1000.0, lambda: 100_000)
    clock.at_s += 131.0
    assert one.earliest_s("a") == clock.at_s, "whoever was told before the start has come back"


def test_another_server_may_have_asked_a_device_just_now(clock: SimpleNamespace) -> None:
    one = Presence(1000.0, lambda: 100_000, shared=True)
    clock.at_s += 5000.0
    one.came("a")
    assert one.earliest_s("a") == clock.at_s + 130.0


def test_a_device_with_mail_pauses_no_longer(clock: SimpleNamespace) -> None:
    one = Presence(1.0, lambda: 0)
    one.returns("a", 500.0)
    assert one.last_s("a") == one.earliest_s("a") == clock.at_s + 500.0
    one.has_mail("a")
    assert one.earliest_s("a") == clock.at_s


@pytest.mark.slow
def test_a_server_that_starts_again_waits_for_those_that_were_told_before(tmp_path: Path) -> None:
    with running(tmp_path) as server, joined(server, tmp_path / "home") as device:
        name = device.name
    with HttpServer(tmp_path / "server") as server:
        one = HttpCohort(server.service, "run-1", 2**20, silence_s=0.0)
        one.publish([])
        one.send(name, frame.dump(invite()))
        assert one.receive(0.2) is None
    with HttpServer(tmp_path / "server") as server:
        one = HttpCohort(server.service, "run-1", 2**20, silence_s=-2 * LEAST_S)
        one.send(name, frame.dump(invite()))
        assert isinstance(one.receive(5.0), Absent)


def test_servers_tell_each_other_the_pauses(tmp_path: Path) -> None:
    with running(tmp_path, ServerLimits(waiting=0)) as server, joined(server, tmp_path / "home") as device:
        told: list[tuple[str, str]] = []
        server.service._tell = lambda kind, name: told.append((kind, name))  # type: ignore[method-assign]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(device, "_sleep", lambda _: None)
            assert device.poll(0, 30.0) is None
        assert told[-1] == ("pause", f"{device.name} 30")
        assert server.service.presence.last_s(device.name) > time.monotonic() + 20.0
        send_invitation(server, device.name)
        assert device.poll(0, 30.0) is not None
        assert server.service.presence.last_s(device.name) <= time.monotonic(), "with mail its pause is over"
        server.service._hear("pause", "somebody 300")
        assert server.service.presence.last_s("somebody") == pytest.approx(time.monotonic() + 300.0, abs=1.0)


@pytest.mark.slow
def test_a_deadline_below_the_pauses_of_a_large_fleet_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert short_deadline(600.0, 4096) is short_deadline(600.0, 500_000) is None
    assert short_deadline(1.0, 4096) is None, "all of them have a long poll"
    warning = short_deadline(600.0, 800_000)
    assert "up to 830 s" in warning
    assert "Write 890 or more." in warning
    with running(tmp_path, ServerLimits(waiting=0)) as server, joined(server, tmp_path / "home"):
        wanted = submission({**RECIPE, "round": {"rounds": 1, "deadline_s": 20.0}}, server)
        with joined(server, tmp_path / "admin", "admin") as admin:
            (told,) = admin.call("POST", "/v1/runs", document=msgspec.to_builtins(wanted))["warnings"]
        assert told.startswith("round.deadline_s = 20 is short for a fleet of 1 devices.")
        assert told in caplog.text
