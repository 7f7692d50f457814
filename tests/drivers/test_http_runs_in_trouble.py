"""Runs over HTTPS whose network parts, whose server's disk fills up, or whose devices talk nonsense.

The models are those of the simulation, or of the devices that do as they should.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from enrolled_toys import Toy, helped_by, played, working
from network_recipes import GATEWAY, MASKS
from played import play
from proxy import Proxy, proxied
from served import joined, running
from small_disk import fill, small_disk

from edgewise.apps.gateway.start import Gateway, join
from edgewise.apps.server.start import HttpServer
from edgewise.core import events, frame
from edgewise.core.errors import StoreError
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http import home
from edgewise.drivers.http import link as connection
from edgewise.drivers.http.allowed import Allowed
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.link import Link
from edgewise.drivers.http.remote_helper import RemoteHelper

PLAIN: dict[str, Any] = {"round.rounds": 2, "round.deadline_s": 60.0}
PHASES = 4  # of a masked round: each device sends one frame in each


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(connection, "LONGEST_PAUSE_S", 0.2)


@contextmanager
def fleet(server: HttpServer, folder: Path, n: int, port: int) -> Iterator[list[Link]]:
    """Enrolled devices that reach their server by another port."""
    links = []
    for i in range(n):
        place = folder / f"home-{i}"
        joined(server, place).close()
        home.save(place, msgspec.structs.replace(home.load(place), url=f"https://127.0.0.1:{port}"))
        links.append(Link(place, 60.0))
    yield links
    for link in links:
        link.close()


def after(
    server: HttpServer,
    count: int,
    do: Callable[[], None],
    then: Callable[[], None],
    s: float,
    patch: pytest.MonkeyPatch,
) -> threading.Timer:
    """Do something as soon as so many frames have come from devices, and another thing ``s`` seconds later."""
    delivered, come, timer = server.service.delivered, [0], threading.Timer(s, then)

    def counted() -> None:
        delivered()
        come[0] += 1
        if come[0] == count:
            do()
            timer.start()

    patch.setattr(server.service, "delivered", counted)
    return timer


def simulated(folder: Path, names: list[str], overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TOY_NAMES", ",".join(names))
    models, *_ = play(folder, {"data.devices": len(names), **overrides})
    return models


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.parametrize("cut", [False, True], ids=["flows on", "connections are gone"])
@pytest.mark.parametrize(
    ("overrides", "n", "count"),
    [(PLAIN, 3, 1), (PLAIN, 3, 4), *((MASKS, 8, 8 * phase + k) for phase in range(PHASES) for k in (3, 8))],
    ids=lambda x: x if isinstance(x, int) else x["round.rounds"],
)
def test_a_partition_in_any_phase_changes_nothing(
    tmp_path: Path, overrides: dict[str, Any], n: int, count: int, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network parts after so many frames have come, in the middle of a phase and between two."""
    with running(tmp_path) as server, proxied(server.port) as proxy, fleet(server, tmp_path, n, proxy.port) as links:
        names = [link.name for link in links]
        expected = simulated(tmp_path / "simulated", names, overrides, monkeypatch)

        def heal() -> None:
            if cut:
                proxy.cut_all()
            proxy.heal()

        timer = after(server, count, proxy.part, heal, 0.4, monkeypatch)
        toy = Toy.of(names, overrides)
        with working(links, toy, tmp_path):
            assert played(server, toy, tmp_path / "out") == expected
        timer.join()


class Parting:
    """The way to a gateway whose network parts just before a call of this kind, at every ``every``-th of them."""

    def __init__(self, inner: RemoteHelper, proxy: Proxy, at: str, every: int, cut: bool) -> None:
        self._inner, self._proxy, self._at, self._every, self._cut = inner, proxy, at, every, cut
        self.calls, self.partings = 0, list[threading.Timer]()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls += name == self._at
            if name == self._at and self.calls % self._every == 0:
                self._proxy.part()
                self.partings.append(threading.Timer(0.4, self._heal))
                self.partings[-1].start()
            return getattr(self._inner, name)(*arguments)

        return call

    def _heal(self) -> None:
        if self._cut:
            self._proxy.cut_all()
        self._proxy.heal()


SHARING = 4  # devices; each sends one frame a round, and there are two rounds


@pytest.mark.slow
@pytest.mark.long(sample=2)
@pytest.mark.parametrize("cut", [False, True], ids=["flows on", "connections are gone"])
@pytest.mark.parametrize(
    ("at", "every"),
    [*(("devices", count) for count in (1, 3, 4, 6, 8)), ("begin", 1), ("admit", 1), ("admit", 3), ("open", 1)],
)
def test_a_partition_in_any_step_of_shared_sums_changes_nothing(
    tmp_path: Path, at: str, every: int, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network parts between devices and server after so many frames, or between server and gateway before a
    round is begun, before a report is admitted, or before the sum is opened.
    """
    with (
        running(tmp_path) as server,
        proxied(server.port) as proxy,
        fleet(server, tmp_path, SHARING, proxy.port) as links,
    ):
        names = [link.name for link in links]
        expected = simulated(tmp_path / "simulated", names, GATEWAY, monkeypatch)
        join(server.url, server.token(Grant("gateway", approved=True)), tmp_path / "gateway").close()
        Allowed(tmp_path / "gateway").add(names)
        toy, told = Toy.of(names, GATEWAY, server), list[events.AnyEvent]()
        with (
            Gateway(tmp_path / "gateway") as gateway,
            proxied(gateway.port) as between,
            helped_by(toy, server, between.url, gateway.name) as (helped, helper),
            working(links, helped, tmp_path),
        ):
            way = Parting(helper, between if at != "devices" else proxy, at, every, cut)
            timer = after(server, every, proxy.part, way._heal, 0.4, monkeypatch) if at == "devices" else None
            assert played(server, helped, tmp_path / "out", told.append, helper=way) == expected
        for one in way.partings if timer is None else [timer]:
            one.join()
        assert way.partings or timer
    finished = [e for e in told if isinstance(e, events.RoundFinished)]
    assert [(e.met, e.accepted) for e in finished] == [(True, SHARING)] * 2
    assert not [e for e in told if isinstance(e, events.Lost)]


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.parametrize(("overrides", "n", "count"), [(PLAIN, 3, 2), (MASKS, 8, 5), (MASKS, 8, 20)])
def test_a_disk_that_is_full_for_a_while_changes_nothing(
    tmp_path: Path, overrides: dict[str, Any], n: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left on the disk of the server in the middle of a run; then there is room. A run that could not
    write goes on from what was committed."""
    with (
        small_disk(tmp_path / "disk") as disk,
        running(disk, ServerLimits(reserve_bytes=2**16)) as server,
        fleet(server, tmp_path, n, server.port) as links,
    ):
        names = [link.name for link in links]
        expected = simulated(tmp_path / "simulated", names, overrides, monkeypatch)

        def full() -> None:
            fill(disk, 0)
            server.service._free = (0, -1.0)  # it looks at its disk once in a second

        timer = after(server, count, full, (disk / "filler").unlink, 1.5, monkeypatch)
        toy, stops, models = Toy.of(names, overrides), list[str](), None
        with working(links, toy, tmp_path):
            while models is None and len(stops) < 100:
                try:
                    models = played(server, toy, disk / "out")
                except StoreError as e:
                    stops.append(e.code)
                    time.sleep(0.3)
        timer.join()
        assert models == expected
        assert set(stops) <= {"E-DISK"}
        refused = {outcome for _, _, outcome in server.service.meter.outcomes() if outcome.startswith("E-")}
        assert "E-DISK" in refused | set(stops)
        assert "E-SERVER" not in refused


NONSENSE: dict[str, Callable[[frame.Contribution], frame.Contribution]] = {
    "other bytes": lambda c: msgspec.structs.replace(c, payload=memoryview(bytes(reversed(bytes(c.payload))))),
    "too few": lambda c: msgspec.structs.replace(c, payload=memoryview(bytes(c.payload)[:-3])),
    "nothing": lambda c: msgspec.structs.replace(c, payload=memoryview(b"")),
    "no numbers": lambda c: msgspec.structs.replace(c, payload=memoryview(b"\xff" * len(c.payload))),
    "much more": lambda c: msgspec.structs.replace(c, payload=memoryview(bytes(c.payload) * 50)),
}


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.parametrize("kind", NONSENSE)
def test_a_device_that_sends_nonsense_is_left_out_and_the_round_goes_on(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {**PLAIN, "round.rounds": 1, "round.minimum": 0.5}
    with running(tmp_path) as server, fleet(server, tmp_path, 4, server.port) as links:
        names, real = [link.name for link in links], links[0].send

        def send(run: str, round: int, raw: bytes) -> int:
            message = frame.from_device(raw, 2**26)
            if isinstance(message, frame.Contribution):
                raw = frame.dump(NONSENSE[kind](message))
            return real(run, round, raw)

        monkeypatch.setattr(links[0], "send", send)
        toy, told = Toy.of(names, overrides), list[events.AnyEvent]()
        with working(links, toy, tmp_path):
            played(server, toy, tmp_path / "out", told.append)
        assert {e.device for e in told if isinstance(e, events.Accepted)} == set(names[1:])
        assert [e for e in told if getattr(e, "device", "") == names[0] and not isinstance(e, events.Accepted)]
