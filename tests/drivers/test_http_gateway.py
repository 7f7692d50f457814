"""A gateway as the second server of shared sums: its own process, plan, list of devices, and memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from enrolled_toys import Toy, helped_by, played, working
from gateway_process import Restarted
from network_recipes import GATEWAY
from played import play
from served import joined, running

from edgewise.apps.gateway.start import Gateway, join
from edgewise.apps.server.start import HttpServer
from edgewise.core import events
from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import backup
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http import home, identity
from edgewise.drivers.http import link as connection
from edgewise.drivers.http.allowed import Allowed
from edgewise.drivers.http.link import Link
from edgewise.drivers.http.remote_helper import RemoteHelper
from edgewise.drivers.storage.run_store import RunStore
from edgewise.privacy import ledger


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    with running(tmp_path) as made:
        yield made


@contextmanager
def fleet(server: HttpServer, folder: Path, n: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Link]]:
    """Enrolled devices, which the gateway of the same folder counts."""
    links = [joined(server, folder / f"home-{i}") for i in range(n)]
    monkeypatch.setenv("TOY_NAMES", ",".join(link.name for link in links))
    monkeypatch.setattr(connection, "LONGEST_PAUSE_S", 0.3)
    join(server.url, server.token(Grant("gateway", approved=True)), folder / "gateway").close()
    Allowed(folder / "gateway").add(link.name for link in links)
    yield links
    for link in links:
        link.close()


@pytest.mark.slow
def test_a_run_with_a_gateway_gives_the_simulators_model(
    server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fleet(server, tmp_path, 4, monkeypatch) as links, Gateway(tmp_path / "gateway") as gateway:
        expected, *_ = play(tmp_path / "simulated", {"data.devices": 4, **GATEWAY})
        toy, told = Toy.of([link.name for link in links], GATEWAY, server), list[events.AnyEvent]()
        with (
            helped_by(toy, server, gateway.url, gateway.name) as (helped, helper),
            working(links, helped, tmp_path),
        ):
            assert played(server, helped, tmp_path / "out", told.append, helper=helper) == expected
    finished = [e for e in told if isinstance(e, events.RoundFinished)]
    assert [(r.met, r.accepted) for r in finished] == [(True, 4)] * 2


class Dying:
    """The way to a gateway, of a server that dies once when it has an answer of this kind in its hand."""

    def __init__(self, inner: RemoteHelper, at: str, after: int) -> None:
        self._inner, self._at, self._left = inner, at, after

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            answer = getattr(self._inner, name)(*arguments)
            if name == self._at:
                self._left -= 1
                if self._left == 0:
                    raise Killed
            return answer

        return call


class Killed(BaseException):
    """The server died."""


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.parametrize(("at", "after"), [("open", 1), ("begin", 1), ("admit", 2), ("admit", 4)])
def test_a_server_that_dies_amid_a_step_goes_on_with_it(
    server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, after: int
) -> None:
    """The gateway has done the step. The next server asks again and gets the same answer; the sum is the same."""
    overrides = {**GATEWAY, "round.rounds": 1}
    with fleet(server, tmp_path, 4, monkeypatch) as links, Gateway(tmp_path / "gateway") as gateway:
        expected, *_ = play(tmp_path / "simulated", {"data.devices": 4, **overrides})
        toy, told = Toy.of([link.name for link in links], overrides, server), list[events.AnyEvent]()
        with (
            helped_by(toy, server, gateway.url, gateway.name) as (helped, helper),
            working(links, helped, tmp_path),
        ):
            with pytest.raises(Killed):
                played(server, helped, tmp_path / "out", helper=Dying(helper, at, after))
            assert played(server, helped, tmp_path / "out", told.append, helper=helper) == expected
    (finished,) = [e for e in told if isinstance(e, events.RoundFinished)]
    assert (finished.met, finished.accepted) == (True, 4)


NOISED: dict[str, Any] = {
    **GATEWAY, "privacy": "distributed_dp", "metrics": "none", "stage": [], "dp.epsilon": 20.0, "dp.delta": 1e-5,
    "dp.clip_l2": 4.0,
}  # fmt: skip
STEPS = [  # (of what, which call of it, whether it was done)
    *(("gateway", name, True) for name in ("begin", "admit", "open")),
    *(("store", name, done) for name in ("charge", "commit") for done in (False, True)),
]


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.parametrize(("whose", "name", "done"), STEPS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_budget_holds_wherever_a_server_with_a_gateway_dies(
    server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str, name: str, done: bool
) -> None:
    """The budget is for two rounds. It dies once in each of them, and each is charged once."""
    out, deaths = tmp_path / "out", list[int]()

    def dies_once_a_round(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            played = next(iter(arguments[1:]), None)
            first = len(deaths) < 2 and (name != "commit" or played.next_round > 0)  # the first commit is of the start
            answer = real(*arguments) if done or not first else None
            if first:
                deaths.append(0)
                raise Killed
            return answer

        return call

    with fleet(server, tmp_path, 4, monkeypatch) as links, Gateway(tmp_path / "gateway") as gateway:
        toy = Toy.of([link.name for link in links], NOISED, server)
        if whose == "store":
            monkeypatch.setattr(RunStore, name, dies_once_a_round(getattr(RunStore, name)))
        else:
            monkeypatch.setattr(RemoteHelper, name, dies_once_a_round(getattr(RemoteHelper, name)))
        with (
            helped_by(toy, server, gateway.url, gateway.name) as (helped, helper),
            working(links, helped, tmp_path),
        ):
            for _ in range(2):
                with pytest.raises(Killed):
                    played(server, helped, out, helper=helper)
            assert set(played(server, helped, out, helper=helper)) == {0, 1, 2}, "both rounds moved the model"
    with RunStore(out) as store:
        charges = store.charges()
    budget = toy.plan.spend.budget if toy.plan.spend is not None else None
    assert budget is not None
    assert [one.round for one in charges] == [0, 1]
    assert ledger.spent_epsilon(charges, budget.delta) <= budget.epsilon


VERIFIED: dict[str, Any] = {
    **GATEWAY, "round.sampling": "fixed", "round.cohort": 4, "round.overselect": 1.0, "round.minimum": 1.0,
    "trust.malicious_fraction": 0.2, "trust.cohorts": "verified",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "killed"])
def test_a_gateway_verifies_the_cohorts_that_devices_draw(
    server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Four of five devices are drawn in each round, and their reports count. What it knows of the draw is durable."""
    with fleet(server, tmp_path, 5, monkeypatch) as links:
        toy, told = Toy.of([link.name for link in links], VERIFIED, server), list[events.AnyEvent]()
        name = identity.load(tmp_path / "gateway" / home.KEY).name
        with (
            (Restarted if killed else Gateway)(tmp_path / "gateway") as gateway,
            helped_by(toy, server, gateway.url, name, 120.0) as (helped, helper),
            working(links, helped, tmp_path),
        ):
            played(server, helped, tmp_path / "out", told.append, helper=helper)
            assert not isinstance(gateway, Restarted) or gateway.deaths >= 2 * (1 + 1 + 4 + 1)
    assert [(e.met, e.accepted) for e in told if isinstance(e, events.RoundFinished)] == [(True, 4)] * 2
    assert not [e for e in told if isinstance(e, events.Lost)]


@pytest.mark.slow
@pytest.mark.long(sample=0)
def test_a_gateway_that_is_killed_around_every_step_changes_nothing(
    server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {**GATEWAY, "round.rounds": 1}
    with fleet(server, tmp_path, 4, monkeypatch) as links:
        expected, *_ = play(tmp_path / "simulated", {"data.devices": 4, **overrides})
        toy, told = Toy.of([link.name for link in links], overrides, server), list[events.AnyEvent]()
        name = identity.load(tmp_path / "gateway" / home.KEY).name
        with (
            Restarted(tmp_path / "gateway") as gateway,
            helped_by(toy, server, gateway.url, name, 120.0) as (helped, helper),
            working(links, helped, tmp_path),
        ):
            assert played(server, helped, tmp_path / "out", told.append, helper=helper) == expected
            assert gateway.deaths >= 2 * (1 + 1 + 4 + 1), "the run, the round, four reports, the batch"
    (finished,) = [e for e in told if isinstance(e, events.RoundFinished)]
    assert (finished.met, finished.accepted) == (True, 4)


def test_a_gateways_folder_is_not_copied(server: HttpServer, tmp_path: Path) -> None:
    join(server.url, server.token(Grant("gateway", approved=True)), tmp_path / "gateway").close()
    with pytest.raises(TransportError, match=r"E-IDENTITY: .*could open a sum twice.*`edgewise gateway join`"):
        backup.save(tmp_path / "gateway", tmp_path / "copy", 0.0)
    assert not (tmp_path / "copy").exists()


@pytest.mark.slow
def test_a_gateway_says_how_it_is(server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    with (
        fleet(server, tmp_path, 1, monkeypatch),
        Gateway(tmp_path / "gateway") as gateway,
        httpx2.Client(base_url=gateway.url, verify=False) as http,
    ):
        assert http.get("/healthz").text == "ok\n"
        assert http.get("/readyz").json()["ready"]
        assert 'edgewise_requests_total{method="GET",outcome="200",route="/readyz"}' in http.get("/metrics").text

        def fails() -> None:
            raise RuntimeError("broken")

        monkeypatch.setattr(gateway.service, "checks", fails)
        answer = http.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (500, "E-SERVER")
