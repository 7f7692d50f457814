"""Personal models of enrolled devices: made when a run has finished, seen by the owner, sent to nobody."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from owned import ended, owned, seen, submitted, toy, working
from served import joined, running

from edgewise.apps.device import personal as personals
from edgewise.apps.device import record
from edgewise.apps.device.agent import personalise_run
from edgewise.apps.server.start import HttpServer
from edgewise.core.errors import RecipeError
from edgewise.drivers.http.link import Link
from edgewise.drivers.storage.personal_models import personal_models
from support.commands import done

pytestmark = pytest.mark.slow
OPEN = "[privacy]\nwords = ['none']\ncohort = 1\n"
PERSONAL = {"round.rounds": 2, "round.minimum": 0.1, "personal": {"method": "fine_tune", "steps": 3, "lr": 0.2}}
FEDPER = {"method": "fedper", "parts": ["b"], "steps": 3, "lr": 0.2}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    with running(tmp_path) as made:
        yield made


@pytest.fixture
def admin(server: HttpServer, tmp_path: Path) -> Iterator[Link]:
    with joined(server, tmp_path / "admin", "admin") as link:
        yield link


@pytest.mark.parametrize("section", [PERSONAL["personal"], FEDPER], ids=["fine_tune", "fedper"])
def test_an_agent_makes_its_personal_model_when_the_run_has_finished_and_sends_nothing_of_it(
    server: HttpServer, admin: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: dict[str, object]
) -> None:
    monkeypatch.setattr(personals, "LOOK_S", 0.1)
    home = owned(server, tmp_path / "home", OPEN)
    run = submitted(server, admin, **{**PERSONAL, "personal": section})
    folder = home / "runs" / run[:32]
    with working(home):
        assert ended(admin, run) == "finished"
        sent = len(record.device_record_lines(home))
        assert seen(lambda: list(personal_models(folder)))
    (model,) = personal_models(folder)
    assert model.made_from == admin.call("GET", f"/v1/runs/{run}")["released"]
    assert len(record.device_record_lines(home)) == sent == 2, "two updates, and nothing after them"
    (path,) = (folder / "personal").iterdir()
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    raw = path.read_bytes()
    stored = [p for p in (tmp_path / "server").rglob("*") if p.is_file()]
    body = model.params.tobytes()
    assert body in raw
    assert stored
    assert not any(body in p.read_bytes() for p in stored), "the server has nothing of it"
    status = done("device", "status", "--home", str(home))
    assert [one["file"] for one in status["personal"]] == [str(path)]
    assert status["personal_wanted"] == []
    again = personalise_run(home, run[:8], toy)
    assert not np.array_equal(again.params, np.zeros_like(again.params))
    done("device", "leave", "--home", str(home), "--offline")
    assert not folder.exists()


def test_no_personal_model_before_the_end_without_the_section_or_beyond_the_owners_limit(
    server: HttpServer, admin: Link, tmp_path: Path
) -> None:
    home = owned(server, tmp_path / "home", OPEN + "[limits]\nlocal_steps = 2\n")
    plain = submitted(server, admin, **{**PERSONAL, "personal": {"method": "none"}})
    with working(home):
        assert ended(admin, plain) == "finished"
    with pytest.raises(RecipeError, match="asks for no personal models") as e:
        personalise_run(home, plain, toy)
    assert e.value.code == "E-PERSONAL"
    run = submitted(server, admin, **PERSONAL)
    with Link(home) as link, pytest.raises(RecipeError, match="has not finished"):
        personals.personalise(link, None, home, run, 0)  # type: ignore[arg-type]
    with working(home):
        assert ended(admin, run) == "finished"
    with pytest.raises(RecipeError, match=r"more steps than limits\.local_steps = 2"):
        personalise_run(home, run, toy)
