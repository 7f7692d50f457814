"""A served run waits for its devices before a round, and says so."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread

import pytest
from scripted import RECIPE, device, module, step, submission

from edgewise.apps.device.script import Device
from edgewise.apps.server.start import HttpServer
from edgewise.core import events
from edgewise.core.errors import EdgewiseError
from edgewise.drivers.fleet import served
from edgewise.drivers.http import presence


def loop(made: Device) -> None:
    model = module()
    try:
        for task in made.tasks():
            task.load_into(model)
            task.submit(model, examples=4, metrics={"loss": step(model)})
    except EdgewiseError:
        pass  # the server is gone


@pytest.mark.slow
def test_no_round_begins_before_enough_devices_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "HERE_S", 0.2)
    told: list[events.AnyEvent] = []
    with HttpServer(tmp_path / "server", tell=lambda _, event: told.append(event)) as server:
        homes = [device(server, tmp_path / name) for name in "ab"]
        time.sleep(0.3)
        run = server.hosting.submit(submission({**RECIPE, "round": {"rounds": 1, "minimum": 1.0}}, server), "me").run

        def why() -> str:
            with server.service.database.read() as c:
                return served.find(c, run).why or ""

        give_up_s = time.monotonic() + 20.0
        while not why():
            assert time.monotonic() < give_up_s
            time.sleep(0.05)
        assert why() == "waits for devices: 0 of at least 2 are here"
        server.hosting.ask(run, served.PAUSED)
        assert why() == ""
        server.hosting.ask(run, served.RUNNING)
        while not why():
            assert time.monotonic() < give_up_s, "a run that waits again says so again"
            time.sleep(0.05)
        assert not any(isinstance(e, events.RoundStarted) for e in told)
        for made in homes:
            Thread(target=loop, args=(made,), daemon=True).start()
        server.hosting.wait(run, 60.0)
        with server.service.database.read() as c:
            found = served.find(c, run)
        assert (found.state, found.why) == (served.FINISHED, None)
        assert [e.accepted for e in told if isinstance(e, events.RoundFinished)] == [2]


@pytest.mark.slow
def test_enrolled_devices_draw_the_cohorts_of_a_served_run(tmp_path: Path) -> None:
    """With keys that they made themselves, the roster of the signed facts, and the randomness of the system."""
    drawn = {"rounds": 2, "minimum": 1.0, "sampling": "fixed", "cohort": 4, "overselect": 1.0, "deadline_s": 120.0}
    assumed = {"malicious_fraction": 0.2, "dropout_fraction": 0.0, "cohorts": "verified"}
    told: list[events.AnyEvent] = []
    with HttpServer(tmp_path / "server", tell=lambda _, event: told.append(event)) as server:
        homes = [device(server, tmp_path / name) for name in "abcde"]
        asked = {**RECIPE, "privacy": "hidden", "round": drawn, "trust": assumed}
        run = server.hosting.submit(submission(asked, server), "me").run
        for made in homes:
            Thread(target=loop, args=(made,), daemon=True).start()
        server.hosting.wait(run, 120.0)
        with server.service.database.read() as c:
            found = served.find(c, run)
        assert (found.state, found.why) == (served.FINISHED, None)
    assert [e.accepted for e in told if isinstance(e, events.RoundFinished)] == [4, 4]
    assert not [e for e in told if isinstance(e, events.Lost)]
