"""A trainer, a codec and a strategy of an installed package, in runs that a server plays with enrolled devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import own_package
import pytest
from owned import ended, owned, seen, working
from served import joined, running

from edgewise.apps.device import record
from edgewise.apps.gateway.start import Gateway, join
from edgewise.apps.server import submission, submit
from edgewise.apps.server.lines import server_event_line
from edgewise.apps.server.sharing import Address
from edgewise.apps.server.start import HttpServer
from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.core.errors import EdgewiseError
from edgewise.drivers import extension_packages
from edgewise.drivers.fleet import served
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http import link as connection
from edgewise.drivers.http.link import Link
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.facts import parse
from edgewise.plan.recipe import loading
from edgewise.plan.recipe.recipe import Recipe

pytestmark = pytest.mark.slow
OPEN = "[privacy]\nwords = ['none', 'hidden']\ncohort = 1\n"
SHARES: dict[str, Any] = {
    "privacy": "hidden",
    "merge": {"kind": "shared_sum"},
    "stage": [
        {"kind": "coarse"}, {"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 8, "grid": "shared"},
        {"kind": "wrap"},
    ],
    "trust.malicious_fraction": 0.0,
    "round.minimum": 0.6,
}  # fmt: skip


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_package.installed(tmp_path / "site", monkeypatch)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    with running(tmp_path) as made:
        yield made


@pytest.fixture
def admin(server: HttpServer, tmp_path: Path) -> Iterator[Link]:
    with joined(server, tmp_path / "admin", "admin") as link:
        yield link


def digest() -> str:
    return extension_packages.package_files_digest(own_package.NAME)


def recipe_of(folder: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    catalogue = extension_packages.catalogue(extension_packages.installed_packages([own_package.MODULE]))
    return loading.load(own_package.EXAMPLE / "recipe.toml", {"data.path": str(folder), **(overrides or {})}, catalogue)


def allowing(sha256: str, more: str = "") -> str:
    return f"{OPEN}[[package]]\nname = '{own_package.NAME}'\nsha256 = '{sha256}'\n{more}"


def device(server: HttpServer, home: Path, readings: Path, policy: str) -> Path:
    """An enrolled device that trains on this file."""
    made = owned(server, home, policy)
    (home / "own.txt").write_text(readings.read_text())
    return made


@contextmanager
def fleet(server: HttpServer, folder: Path, n: int, policy: str) -> Iterator[list[Path]]:
    files = own_package.readings(folder / "readings", n)
    homes = [device(server, folder / f"home-{i}", file, policy) for i, file in enumerate(files)]
    with working(*homes, make=None):
        yield homes


def begun(admin: Link, recipe: Recipe) -> str:
    return str(submit.submit(admin, recipe, Path(), (), [own_package.MODULE])["run"])


def refusals(home: Path) -> list[str]:
    return [row.reason for row in record.device_record_lines(home) if row.kind == record.RUN_REFUSED]


def test_a_run_of_own_parts_gives_the_simulators_model(
    module: Path, server: HttpServer, admin: Link, tmp_path: Path
) -> None:
    with fleet(server, tmp_path, 3, allowing(digest())) as homes:
        recipe = recipe_of(tmp_path / "readings")
        run = begun(admin, recipe)
        assert ended(admin, run) == "finished"
    simulation.run(
        recipe, out=tmp_path / "simulated", recipe_dir=tmp_path, extensions=[own_package.MODULE], report=False
    )
    with RunStore(submission.folder(server.service, run)) as store, RunStore(tmp_path / "simulated") as simulated:
        assert store.models() == simulated.models()
        assert len(set(store.models().values())) == 3
        told, expected = [
            [e.head for e in one.events() if isinstance(e, events.RoundFinished)] for one in (store, simulated)
        ]
        assert told == expected
        assert 0.0 < told[0]["far"] < 1.0
        lines = [server_event_line(e) for e in store.events() if isinstance(e, events.RoundFinished)]
    assert "  far 0." in str(lines[0]), "edgewise run watch"
    found = admin.call("GET", f"/v1/runs/{run}")
    (package,) = parse(found["facts"].encode()).packages
    assert (package.name, package.sha256) == (own_package.NAME, digest())
    assert not any(refusals(home) for home in homes)


def test_a_package_that_an_owner_does_not_allow_is_refused_and_nothing_is_sent(
    module: Path, server: HttpServer, admin: Link, tmp_path: Path
) -> None:
    with fleet(server, tmp_path, 1, OPEN) as homes:
        device(server, tmp_path / "other", tmp_path / "readings" / "d0.csv", allowing("0" * 64))
        late = device(server, tmp_path / "late", tmp_path / "readings" / "d0.csv", allowing(digest()))
        begun(admin, recipe_of(tmp_path / "readings", {"round.minimum": 0.3}))
        with working(tmp_path / "other", make=None):
            for home in (*homes, tmp_path / "other"):
                assert seen(lambda home=home: refusals(home))
        module.write_bytes(module.read_bytes() + b"\n")
        with working(late, make=None):
            assert seen(lambda: refusals(late))
    reasons = [refusals(home)[0] for home in (homes[0], tmp_path / "other", late)]
    causes = ("does not allow", "owner of this machine allows 000", "the installed one has")
    for reason, why in zip(reasons, causes, strict=True):
        assert reason.startswith("E-PACKAGE")
        assert own_package.NAME in reason
        assert why in reason
    for home in (*homes, tmp_path / "other", late):
        assert {row.kind for row in record.device_record_lines(home)} <= {record.RUN_REFUSED, record.REFUSAL}


def test_a_run_whose_package_changed_on_the_server_stops_by_name(module: Path, tmp_path: Path) -> None:
    with running(tmp_path) as server, joined(server, tmp_path / "admin", "admin") as admin:
        device(server, tmp_path / "home", own_package.readings(tmp_path / "readings", 1)[0], allowing(digest()))
        run = begun(admin, recipe_of(tmp_path / "readings"))
    module.write_bytes(module.read_bytes() + b"\n")
    with running(tmp_path) as server:
        server.hosting.wait(run, 20.0)
        with server.service.database.read() as c:
            found = served.find(c, run)
    assert found.state == served.FAILED
    assert found.why.startswith("E-PACKAGE")


def test_own_code_that_fails_on_the_server_is_named_with_its_line(
    module: Path, server: HttpServer, tmp_path: Path
) -> None:
    module.write_text(module.read_text().replace("return State(state.params + ", "return State(state.lost + "))
    with joined(server, tmp_path / "admin", "admin") as admin, fleet(server, tmp_path, 2, allowing(digest())):
        run = begun(admin, recipe_of(tmp_path / "readings"))
        assert ended(admin, run) == "failed"
        why = admin.call("GET", f"/v1/runs/{run}")["why"]
    assert why.startswith("E-EXTENSION")
    assert "own_parts.py:" in why


def test_a_gateway_helps_with_own_codecs_that_its_operator_allows(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LONGEST_PAUSE_S", 0.3)
    with HttpServer(tmp_path / "server") as first:
        join(first.url, first.token(Grant("gateway", approved=True)), tmp_path / "gateway").close()
        files = own_package.readings(tmp_path / "readings", 4)
        with Gateway(tmp_path / "gateway") as gateway:
            name = gateway.name
            policy = allowing(digest()).replace("cohort = 1", f"cohort = 2\ngateway = '{name}'")
            homes = [device(first, tmp_path / f"home-{i}", file, policy) for i, file in enumerate(files)]
            for home in homes:
                with Link(home, 5.0) as link:
                    gateway.allowed.add([link.name])
        joined(first, tmp_path / "admin", "admin").close()
        port = first.port
    recipe = recipe_of(tmp_path / "readings", SHARES)

    @contextmanager
    def served_by(packages: dict[str, str]) -> Iterator[Link]:
        with (
            Gateway(tmp_path / "gateway", packages=packages) as gateway,
            HttpServer(tmp_path / "server", port=port, gateway=Address(name, gateway.url)),
            Link(tmp_path / "admin", 10.0) as admin,
        ):
            yield admin

    with served_by({}) as admin:
        with pytest.raises(EdgewiseError, match="does not allow") as e:
            begun(admin, recipe)
        assert e.value.code == "E-PACKAGE"
    with served_by({own_package.NAME: digest()}) as admin, working(*homes, make=None):
        run = begun(admin, recipe)
        assert ended(admin, run) == "finished"
        told = admin.call("GET", f"/v1/runs/{run}/events", {"after": 0})["events"]
    assert len([event for event in told if event["event"] == "accepted"]) == 8
