"""Agents under their owners' policies, in runs that a server plays: what leaves, what is refused, and who stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from owned import ended, owned, seen, state, submitted, toy, working
from served import invite, joined, running, send_invitation

from edgewise.apps.device import control, record
from edgewise.apps.device.conditions import Conditions
from edgewise.apps.server import hosting
from edgewise.apps.server.start import HttpServer
from edgewise.core.errors import StoreError
from edgewise.core.training import FitRequest, Update
from edgewise.core.vector import Spec
from edgewise.drivers.fleet import mailboxes
from edgewise.drivers.http import home as homes
from edgewise.drivers.http.limits import LaterError
from edgewise.drivers.http.link import Link
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers.devices import Devices
from edgewise.engine.trainer import Registered
from edgewise.plan.recipe.recipe import Recipe
from support.commands import done

pytestmark = pytest.mark.slow
OPEN = "[privacy]\nwords = ['none']\ncohort = 1\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    with running(tmp_path) as made:
        yield made


@pytest.fixture
def admin(server: HttpServer, tmp_path: Path) -> Iterator[Link]:
    with joined(server, tmp_path / "admin", "admin") as link:
        yield link


def kinds(home: Path) -> list[str]:
    return [row.kind for row in record.device_record_lines(home)]


def test_what_an_agent_sends_is_what_its_record_says(server: HttpServer, admin: Link, tmp_path: Path) -> None:
    """One device takes the run. The other refuses it, since its policy wants hidden updates, and sends a code alone."""
    takes, refuses = owned(server, tmp_path / "takes", OPEN), owned(server, tmp_path / "refuses", "")
    run = submitted(server, admin, **{"round.rounds": 2, "round.minimum": 0.1})
    with working(takes, refuses):
        assert ended(admin, run) == "finished"
    assert kinds(takes) == ["update, readable by the server"] * 2
    rows = record.device_record_lines(refuses)
    assert [row.kind for row in rows if row.size] == [record.REFUSAL] * 2
    (told,) = (row for row in rows if row.kind == record.RUN_REFUSED)
    assert told.reason.startswith("E-FLOOR: the owner of this device asks that privacy is one of hidden")
    assert all(row.reason == "E-FLOOR: " for row in rows if row.size), "no word of the policy"
    sent = sum(row.size for row in record.device_record_lines(takes))
    status = done("device", "status", "--home", str(takes))
    assert (status["left"]["all"]["bytes"], status["left"]["all"]["rounds"]) == (sent, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[model]\nallow = ['sha256:" + "0" * 64 + "']\n", "the model is one of sha256:0000"),
        ("[limits]\nlocal_steps = 1\n", "1 local steps at most"),
        ("[limits]\nupload_mb_per_day = 0.0005\n", "of 0.0005 MB have left today"),
        ("[limits]\nupload_mb = 1e-5\n", "10 bytes at most"),
    ],
)
def test_a_limit_of_the_owner_holds_in_the_agent(
    server: HttpServer, admin: Link, tmp_path: Path, text: str, said: str
) -> None:
    """The toy's update has 200 bytes, and its frame some 350: of a day with 500, one may leave."""
    home = owned(server, tmp_path / "home", OPEN + text)
    run = submitted(server, admin, **{"round.rounds": 2, "round.minimum": 0.1, "round.deadline_s": 5.0})
    with working(home):
        reason = seen(
            lambda: next((row.reason for row in record.device_record_lines(home) if said in (row.reason or "")), "")
        )
        assert reason.partition(":")[0] == ("E-OWNER" if "today" in said else "E-FLOOR")
        admin.call("POST", f"/v1/runs/{run}/cancel")
    updates = [kind for kind in kinds(home) if kind.startswith("update")]
    assert len(updates) == (1 if "today" in said else 0)


HIDDEN: dict[str, Any] = {"merge": {"kind": "secure_sum"}, "privacy": "hidden", "metrics": "none", "round.rounds": 1}


def test_a_limit_of_bytes_counts_all_frames_of_a_round(server: HttpServer, admin: Link, tmp_path: Path) -> None:
    """The toy's masked update has 300 bytes, and with the keys and shares of six devices 2700 leave."""
    words = "[privacy]\nwords = ['hidden']\n[limits]\nupload_mb = "
    homes = [owned(server, tmp_path / f"home-{i}", f"{words}{0.001 if i == 0 else 0.004}\n") for i in range(7)]
    run = submitted(server, admin, **HIDDEN, **{"round.minimum": 0.5})
    with working(*homes):
        assert ended(admin, run) == "finished"
    sent = [sum(row.size for row in record.device_record_lines(home)) for home in homes]
    (reason,) = {row.reason for row in record.device_record_lines(homes[0]) if row.kind == record.RUN_REFUSED}
    assert "an upload has 1000 bytes at most; here it has" in reason
    stated = float(reason.rpartition(" ")[2].rstrip("."))
    assert sent[0] < 1000 < min(sent[1:])
    assert max(sent) <= stated < 2 * max(sent)


def test_a_run_whose_database_another_program_holds_waits_for_it(
    server: HttpServer, admin: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, held = RunStore.commit, list[str]()

    def holds(store: RunStore, checkpoint: Any, *rest: Any) -> None:
        if checkpoint.next_round == 1 and not held:
            held.append("once")
            raise StoreError("E-RUN-EXISTS", "database is locked.")
        commit(store, checkpoint, *rest)

    monkeypatch.setattr(RunStore, "commit", holds)
    monkeypatch.setattr(hosting, "FULL_S", 0.05)
    home = owned(server, tmp_path / "home", OPEN)
    run = submitted(server, admin, **{"round.rounds": 2, "round.minimum": 0.1})
    with working(home):
        assert ended(admin, run) == "finished"
    assert held == ["once"]


def test_mail_that_no_server_sends_is_left_alone(server: HttpServer, admin: Link, tmp_path: Path) -> None:
    """Neither a frame that cannot be read, nor a run whose name would be a path or steer the owner's screen."""
    home = owned(server, tmp_path / "home", OPEN)
    device = homes.load(home).name
    letter = invite()
    server.service.database.write(lambda c: mailboxes.post(c, device, b"no frame", letter, 0.0))
    for name in ("\x1b[31m\nred", "../me", "a?b=1", "a" * 129, ""):
        send_invitation(server, device, run=name)
    run = submitted(server, admin, **{"round.rounds": 1, "round.minimum": 0.1})
    with working(home):
        assert ended(admin, run) == "finished"
    assert {row.run for row in record.device_record_lines(home)} == {run}


def test_a_server_that_refuses_an_update_again_and_again_gets_no_more_than_a_days_bytes(
    server: HttpServer, admin: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frame has some 350 bytes: of a day with 1000, it leaves twice more at most."""
    bodies: list[int] = []

    def refuse(size: int) -> None:
        bodies.append(size)
        raise LaterError("E-RATE", "not now.", "wait.", 0.0)

    monkeypatch.setattr(server.service, "check_room", refuse)
    home = owned(server, tmp_path / "home", OPEN + "[limits]\nupload_mb_per_day = 0.001\n")
    submitted(server, admin, **{"round.minimum": 0.1})
    with working(home) as threads:
        assert seen(lambda: "MB have left today" in (done("device", "status", "--home", str(home))["why"] or ""))
        assert 0 < sum(bodies) <= 1000
        control.give_owner_order(home, control.Order("leave"))
        threads[0].join(10.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[when]\ncommand = ['false']\n", "your command false says no"),
        ("[when]\nquiet = ['00:00-12:00', '12:00-00:00']\n", "quiet hours until"),
    ],
)
def test_an_agent_that_may_not_work_says_why_and_asks_for_no_mail(
    server: HttpServer, admin: Link, tmp_path: Path, text: str, said: str
) -> None:
    home = owned(server, tmp_path / "home", OPEN + text)
    run = submitted(server, admin)
    with working(home):
        assert seen(lambda: said in (done("device", "status", "--home", str(home))["why"] or ""))
        assert state(admin, run) == "running"
    assert kinds(home) == []


def test_a_hidden_sum_is_finished_in_quiet_hours_that_began_within_it(
    server: HttpServer, admin: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first frame of a device on it may not work any more; who left now would cost the others their round."""
    monkeypatch.setattr(Conditions, "refusal", lambda self, now_s, sent, next_bytes=0.0: "quiet" if sent else None)
    homes = [owned(server, tmp_path / f"home-{i}", "") for i in range(4)]
    run = submitted(
        server, admin, **{"privacy": "hidden", "round.rounds": 1, "round.minimum": 1.0, "round.deadline_s": 20.0,
        "trust.malicious_fraction": 0.0, "trust.dropout_fraction": 0.0},
    )  # fmt: skip
    with working(*homes):
        assert ended(admin, run) == "finished"
    assert all("masked update" in kinds(home) for home in homes)


def test_a_pause_in_the_middle_of_training_keeps_the_answer_here(
    server: HttpServer, admin: Link, tmp_path: Path
) -> None:
    home, training, go_on = owned(server, tmp_path / "home", OPEN), threading.Event(), threading.Event()

    def slow(recipe: Recipe, folder: Path, device: str, spec: Spec) -> Registered:
        made = toy(recipe, folder, device, spec)
        fit = made.trainer.fit

        def held(request: FitRequest) -> Update:
            training.set()
            go_on.wait(20.0)
            return fit(request)

        made.trainer.fit = held  # type: ignore[method-assign]
        return made

    run = submitted(server, admin, **{"round.rounds": 1})
    with working(home, make=slow):
        assert training.wait(20.0)
        done("device", "pause", "--home", str(home))
        time.sleep(2 * control.LOOK_S)  # a pause holds within a second
        go_on.set()
        assert seen(lambda: kinds(home)), "the answer is ready"
        time.sleep(0.5)
        assert state(admin, run) == "running"
        assert done("device", "status", "--home", str(home))["state"] == "paused"
        done("device", "resume", "--home", str(home))
        assert ended(admin, run) == "finished"


def test_an_agent_waits_for_its_operator_and_ends_when_its_owner_leaves(
    server: HttpServer, admin: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgewise.apps.device import agent

    monkeypatch.setattr(agent, "APPROVAL_S", control.POLL_S)
    home = tmp_path / "home"
    with joined(server, home, approved=False) as link:
        name = link.name
    (home / "policy.toml").write_text(f"[data]\npath = 'own.txt'\n{OPEN}")
    with working(home) as (thread,):
        assert seen(lambda: "to approve" in (done("device", "status", "--home", str(home))["why"] or ""))
        admin.call("POST", f"/v1/devices/{name}/approve")
        assert seen(lambda: "mail" in (done("device", "status", "--home", str(home))["why"] or ""))
        assert done("device", "leave", "--home", str(home))["told"]
        thread.join(20.0)
        assert not thread.is_alive()
    assert {path.name for path in home.iterdir()} == {"policy.toml"}


def test_an_owner_who_leaves_while_the_device_joins_a_run_refuses_nothing(
    server: HttpServer, admin: Link, tmp_path: Path
) -> None:
    home, other = owned(server, tmp_path / "home", ""), owned(server, tmp_path / "other", "")

    def leaves(recipe: Recipe, folder: Path, device: str, spec: Spec) -> Registered:
        control.give_owner_order(home, control.Order("leave"))
        time.sleep(2 * control.LOOK_S)
        return toy(recipe, folder, device, spec)

    with working(other), working(home, make=leaves) as (thread,):
        submitted(server, admin, **{"privacy": "hidden", "trust.malicious_fraction": 0.0, "round.minimum": 1.0})
        thread.join(20.0)
        assert not thread.is_alive()
    assert record.device_record_lines(home) == []


def test_an_owner_sees_that_the_server_is_gone_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.drivers.http.link.LONGEST_PAUSE_S", 0.2)

    def why() -> str:
        return str(done("device", "status", "--home", str(tmp_path / "home"))["why"])

    with running(tmp_path) as server:
        home, port = owned(server, tmp_path / "home", OPEN), server.port
    with ExitStack() as until_the_agent_ends, working(home, patience_s=60.0):
        assert seen(lambda: why().startswith("E-CONNECT: https://127.0.0.1"))
        until_the_agent_ends.enter_context(HttpServer(tmp_path / "server", port=port))
        assert seen(lambda: why() == "for the server's mail")


def test_code_of_the_device_that_breaks_costs_a_round_and_not_the_agent(
    server: HttpServer, admin: Link, tmp_path: Path
) -> None:
    def breaks(recipe: Recipe, folder: Path, device: str, spec: Spec) -> Registered:
        raise TypeError("a tokenizer that quotes the text of this device")

    homes = [owned(server, tmp_path / name, OPEN) for name in ("one", "other")]
    with working(*homes, make=breaks) as threads:
        submitted(server, admin)
        for home in homes:
            why = seen(
                lambda home=home: next(
                    (r.reason for r in record.device_record_lines(home) if r.kind == record.RUN_REFUSED), ""
                )
            )
            assert "TypeError" in why
            assert "quotes" not in why
        assert all(thread.is_alive() for thread in threads)


def test_an_answer_that_breaks_costs_a_round_and_not_the_agent(
    server: HttpServer, admin: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise KeyError("a codec that quotes the text of this device")

    monkeypatch.setattr(Devices, "answer", breaks)
    home = owned(server, tmp_path / "home", OPEN)
    with working(home) as threads:
        submitted(server, admin)
        why = seen(lambda: "".join(r.reason for r in record.device_record_lines(home) if r.kind == record.RUN_REFUSED))
        assert "KeyError" in why
        assert "quotes" not in why
        assert all(thread.is_alive() for thread in threads)
