"""Statistics of enrolled devices: hidden sums of what their owners' texts hold, by the command that simulates them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from owned import submitted, working
from served import joined, running

from edgewise.apps.device import joining, policy, record
from edgewise.apps.server.start import HttpServer
from edgewise.core.errors import RecipeError, TransportError
from edgewise.drivers.http.link import Link
from support.commands import command, done

pytestmark = pytest.mark.slow
WORDS = ("rain and sun ", "rain and snow ", "bolts and nuts ")
RECIPE = """
name = "weather"
privacy = "{word}"
[data]
source = "text"
path = "texts"
partition = "owner"
sequence_len = 32
[eval]
max_tokens = 64
[round]
deadline_s = 60.0
{more}
"""
OPEN = "[data]\npath = 'texts'\n[privacy]\nwords = ['{word}']\ncohort = 1\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    with running(tmp_path) as made:
        yield made


@pytest.fixture
def admin(server: HttpServer, tmp_path: Path) -> Iterator[Link]:
    with joined(server, tmp_path / "admin", "admin") as link:
        yield link


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load one model at a time: transformers cannot in threads. Each agent of a user is a process of its own."""
    alone, make = threading.Lock(), joining.make_trainer

    def made(*given: Any, **named: Any) -> Any:
        with alone:
            return make(*given, **named)

    monkeypatch.setattr(joining, "make_trainer", made)


def text_homes(server: HttpServer, place: Path, word: str, policy_text: str = "") -> list[Path]:
    """Three enrolled devices with a text each, and the same texts in one folder for the simulator."""
    homes = []
    for i, line in enumerate(WORDS):
        home = place / f"home{i}"
        joined(server, home).close()
        for folder in (home / "texts", place / "texts" / f"site{i}"):
            folder.mkdir(parents=True)
            for d in range(i + 1):
                (folder / f"{d}.txt").write_text(line * (20 * (i + 1)))
        (home / policy.FILE).write_text(OPEN.format(word=word) + policy_text)
        homes.append(home)
    return homes


def written(place: Path, word: str, more: str = "") -> Path:
    path = place / "recipe.toml"
    path.write_text(RECIPE.format(word=word, more=more))
    return path


def asked(recipe: Path, place: Path, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = done("stats", str(recipe), "--enrolled", "--home", str(place / "admin"), *more)
    return found


@pytest.mark.parametrize("loss", [(), ("--loss",)], ids=["text", "loss"])
def test_devices_contribute_what_a_simulation_of_their_texts_does(
    server: HttpServer, admin: Link, tmp_path: Path, loss: tuple[str, ...]
) -> None:
    homes, recipe = text_homes(server, tmp_path, "hidden"), written(tmp_path, "hidden")
    simulated = done("stats", str(recipe), *loss)
    with working(*homes, make=None):
        found = asked(recipe, tmp_path, *loss)
    assert found["contributed"] == simulated["contributed"] == ([3] if loss else [3, 3])
    for name, part in simulated["parts"].items():
        assert found["parts"][name]["values"] == pytest.approx(part["values"], abs=1e-3), name
    shown = done("run", "statistics", found["run"][:12], "--home", str(tmp_path / "admin"))
    assert shown["parts"] == found["parts"]
    assert all("update" in row.kind for home in homes for row in record.device_record_lines(home) if row.size > 2000)
    with pytest.raises(TransportError, match=r"E-UNKNOWN-ID.*no model"):
        admin.call("POST", "/v1/models", document={"run": found["run"], "played": 1})


def test_an_owner_who_keeps_held_out_losses_measures_nothing(server: HttpServer, admin: Link, tmp_path: Path) -> None:
    homes = text_homes(server, tmp_path, "none", "evaluation = false\n")
    recipe = written(tmp_path, "none", "minimum = 0.1")
    with working(*homes, make=None):
        text = asked(recipe, tmp_path)
        assert text["contributed"] == [3, 3]
        home = str(tmp_path / "admin")
        short = ("--set", "round.deadline_s=3")
        answer = command("stats", str(recipe), "--enrolled", "--loss", *short, "--home", home)
    reasons = [row.reason or "" for home in homes for row in record.device_record_lines(home)]
    assert sum("E-FLOOR" in why and "held-out" in why for why in reasons) >= 3
    assert answer["code"] == "E-CONFLICT"
    assert "below their minimum" in answer["what"]


def test_a_run_that_trains_has_no_statistics(server: HttpServer, admin: Link, tmp_path: Path) -> None:
    text_homes(server, tmp_path, "none")
    run = submitted(server, admin, **{"round.rounds": 1})
    with pytest.raises((RecipeError, TransportError), match=r"E-COMBO.*trains a model"):
        admin.call("GET", f"/v1/runs/{run}/statistics")
    admin.call("POST", f"/v1/runs/{run}/cancel")
