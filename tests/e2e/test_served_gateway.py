"""A submitted recipe with two servers: server and gateway, and devices whose owners pin the gateway."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest
from network_recipes import GATEWAY
from served import code, joined
from toy import ToyTrainer
from toy_recipe import make_recipe

from edgewise.apps.device.joining import Owner, Parts
from edgewise.apps.gateway.start import Gateway, join
from edgewise.apps.server import sharing
from edgewise.apps.server.sharing import Address
from edgewise.apps.server.start import HttpServer
from edgewise.apps.server.submission import Submission
from edgewise.core import events, vector
from edgewise.drivers.fleet import served
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.fleet.served import ServedRun
from edgewise.drivers.http.attend import attend
from edgewise.drivers.http.link import Link
from edgewise.engine.trainer import registered

RECIPE = make_recipe({"data.devices": 4, **GATEWAY})
TRAINER = ToyTrainer(RECIPE)


def submit(server: HttpServer) -> ServedRun:
    initial = bytes(vector.to_bytes(TRAINER.initial()))
    digest = vector.digest(initial)
    if not server.service.staging.received(digest):
        server.service.staging.put(digest, 0, len(initial), initial)
    wanted = Submission(recipe=RECIPE.resolved(), spec=TRAINER.spec.to_list(), initial=digest)
    return server.hosting.submit(wanted, "test")


def state(server: HttpServer, run: str) -> tuple[str, str]:
    with server.service.database.read() as c:
        found = served.find(c, run)
    return found.state, found.why


@contextmanager
def agents(links: list[Link], folder: Path, gateway: str = "") -> Iterator[None]:
    """Devices as threads, on the toy's data, of owners who trust this gateway, or the one that they joined through."""
    stop, threads = Event(), list[Thread]()

    def work(link: Link, home: Path) -> None:
        owner = Owner({}, home, gateway=gateway or link.home.gateway)
        with Parts(link, home, owner, lambda recipe, at, name, _: registered(ToyTrainer(recipe, [name]))) as parts:
            attend(link, parts, stop.is_set, 1.0)

    for i, link in enumerate(links):
        threads.append(Thread(target=work, args=(link, folder / f"home-{i}"), daemon=True))
        threads[-1].start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
def test_a_submitted_recipe_with_shares_is_played_with_the_gateway_that_owners_pin(tmp_path: Path) -> None:
    """It is their way to the server too. With one that they do not pin, no device answers with an update."""
    with HttpServer(tmp_path / "server") as first:
        join(first.url, first.token(Grant("gateway", approved=True)), tmp_path / "gateway").close()
        port = first.port
        with Gateway(tmp_path / "gateway") as gateway:
            token, near = first.token(Grant(uses=4, approved=True)), (gateway.url, gateway.name)
            homes = [tmp_path / f"home-{i}" for i in range(4)]
            links = [Link.join(near[0], token, home, gateway=near[1]) for home in homes]
            listen = gateway.port
        assert code(submit, first) == "E-COMBO", "a server without a gateway"
    with Gateway(tmp_path / "gateway", port=listen) as gateway:
        gateway.allowed.add(link.name for link in links)
        at = Address(gateway.name, gateway.url)
        told = list[events.AnyEvent]()
        tell = lambda run, event: told.append(event)  # noqa: E731
        with HttpServer(tmp_path / "server", port=port, gateway=at, tell=tell) as server:
            with agents(links, tmp_path):
                run = submit(server)
                server.hosting.wait(run.run, 60.0)
            assert state(server, run.run) == (served.FINISHED, None)
            assert len([e for e in told if isinstance(e, events.Accepted)]) == 8
            told.clear()
            with agents(links, tmp_path, "f" * 32):
                server.hosting.wait(submit(server).run, 60.0)
            assert {e.code for e in told if isinstance(e, events.Lost)} == {"E-SERVER-KEY"}
            assert not any(isinstance(e, events.Accepted) for e in told)
    for link in links:
        link.close()


@pytest.mark.slow
def test_a_run_waits_for_its_gateway_and_the_server_can_be_stopped_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "SUBMIT_S", 1.0)
    with HttpServer(tmp_path / "server") as first:
        links = [joined(first, tmp_path / f"home-{i}") for i in range(4)]
        join(first.url, first.token(Grant("gateway", approved=True)), tmp_path / "gateway").close()
        port = first.port
    with Gateway(tmp_path / "gateway") as gateway:
        gateway.allowed.add(link.name for link in links)
        at = Address(gateway.name, gateway.url)
        with HttpServer(tmp_path / "server", port=port, gateway=at) as server:
            run = submit(server)
    with HttpServer(tmp_path / "server", port=port, gateway=at) as server:
        assert code(submit, server) == "E-CONNECT"
        time.sleep(0.5)
        assert state(server, run.run) == (served.RUNNING, None), "it waits"
        begun = time.monotonic()
    assert time.monotonic() - begun < 20.0
    with Gateway(tmp_path / "gateway") as again:
        moved = replace(at, url=again.url)
        with (
            HttpServer(tmp_path / "server", port=port, gateway=moved) as server,
            agents(links, tmp_path, again.name),
        ):
            server.hosting.wait(run.run, 90.0)
            assert state(server, run.run) == (served.FINISHED, None)
    for link in links:
        link.close()
