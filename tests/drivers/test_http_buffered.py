"""Asynchronous rounds with enrolled devices over HTTPS: late contributions, the window, rest, kills, and exact sums.

When a contribution arrives depends on this machine, so no two runs are alike. ``Again`` plays the order that a run had,
without a network, and must end in the same models.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeGuard

import pytest
from enrolled_toys import Toy, played
from served import joined, running

from edgewise.apps.server.start import HttpServer
from edgewise.core import events, frame, vector
from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import mailboxes, served, tables
from edgewise.drivers.http import link as connection
from edgewise.drivers.http.attend import RunPart, Watch, attend
from edgewise.drivers.http.cohort import Halted, HttpCohort
from edgewise.drivers.http.link import Link
from edgewise.drivers.simulation.keys import simulated_sampling
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine import outstanding
from edgewise.engine.ports import Absent, Arrived, Sent
from edgewise.plan import facts

pytestmark = pytest.mark.slow

KIT = Path(__file__).parents[1] / "support"
BUFFERED: dict[str, Any] = {
    "round.rounds": 8,
    "round.sampling": "buffered",
    "round.cohort": 2,
    "round.deadline_s": 60.0,
    "buffer.concurrency": 4,
    "buffer.max_staleness": 3,
    "eval.every": 100,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LONGEST_PAUSE_S", 0.3)


class Again:
    """A Cohort that delivers the answers in the order of a run's events, from devices of its own."""

    def __init__(self, toy: Toy, folder: Path, told: Sequence[events.AnyEvent]) -> None:
        self._parts, self._toy, self._folder = dict[str, RunPart](), toy, folder
        self._order = [e for e in told if isinstance(e, events.Accepted | events.Lost) and not _outdated(e)]
        self._blobs, self._mail = dict[str, vector.Buffer](), dict[str, bytes]()
        self._next = 0

    def now_s(self) -> float:
        return float(self._next)

    def publish(self, blobs: Sequence[vector.Buffer]) -> Sequence[str]:
        self._blobs |= {vector.digest(blob): blob for blob in blobs}
        return [vector.digest(blob) for blob in blobs]

    def send(self, to: str, raw: bytes) -> None:
        self._mail[to] = raw

    def resume(self, sent: Sequence[Sent], at_s: float) -> None:
        pass

    def carry(self, at_work: Mapping[str, int]) -> None:
        pass

    def close_round(self, keep: Collection[str] = ()) -> None:
        raise AssertionError("an asynchronous round ends by carry")

    def close(self) -> None:
        for part in self._parts.values():
            part.devices.store.close()  # type: ignore[attr-defined]

    def receive(self, timeout_s: float) -> Arrived | Absent | None:
        event = self._order[self._next]
        self._next += 1
        if isinstance(event, events.Lost):
            return Absent(event.device, event.code, self.now_s())
        if event.device not in self._parts:
            (self._folder / event.device).mkdir(parents=True)
            self._parts[event.device] = self._toy.part(self._folder / event.device)
        part, raw = self._parts[event.device], self._mail[event.device]
        invite = frame.from_server(raw, len(raw))
        assert isinstance(invite, frame.Invite)
        for digest in part.devices.wanted(event.device, invite):
            part.downloads.put(digest, bytes(self._blobs[digest]), keep=())
        answer = part.devices.answer(event.device, raw).frame
        assert answer is not None
        return Arrived(event.device, answer, self.now_s())


def _outdated(event: events.AnyEvent) -> TypeGuard[events.Lost]:
    return isinstance(event, events.Lost) and event.code == "E-OUTDATED"


def of_kind(told: Sequence[events.AnyEvent], kind: type[Any]) -> list[Any]:
    return [e for e in told if isinstance(e, kind)]


def stored(out: Path) -> tuple[dict[int, str], list[events.AnyEvent]]:
    """The models of a run and its committed events."""
    with RunStore(out) as store:
        return store.models(), store.events()


def check_exact(toy: Toy, out: Path, folder: Path) -> list[events.AnyEvent]:
    """Check that a run's models follow from its events alone. Returns these."""
    models, told = stored(out)
    with RunStore(folder / "again") as store:
        store.create(toy.plan.run, "toy", toy.plan.recipe.resolved(), {"initial_sha256": ""})
        cohort = Again(toy, folder / "devices", told)
        coordinator = toy.coordinator(cohort, store, lambda _: None)
        coordinator.run(coordinator.begin(toy.trainer.initial()))
        cohort.close()
        assert store.models() == models
    return told


class Pace(Watch):
    """A device that has trained and takes its time to send, or waits for a gate. ``codes``: the server's refusals."""

    def __init__(self, wait_s: float = 0.05, gate: Event | None = None) -> None:
        self.wait_s, self.gate, self.codes = wait_s, gate, list[str]()

    def leaving(self, part: RunPart | None, frame: bytes) -> None:
        time.sleep(self.wait_s)
        assert self.gate is None or self.gate.wait(60.0)


def _attend(*arguments: Any) -> None:
    with suppress(TransportError):  # at the end, when the server may be gone
        attend(*arguments)


@contextmanager
def at_work(links: Sequence[Link], toy: Toy, folder: Path, paces: Sequence[Pace]) -> Iterator[set[tuple[str, int]]]:
    """Devices as threads. Yields the contributions that the server has acknowledged: (device, round)."""
    stop, threads, stores, acknowledged = Event(), [], [], set[tuple[str, int]]()
    for link, pace in zip(links, paces, strict=True):
        home = folder / link.name
        home.mkdir(parents=True, exist_ok=True)
        part = toy.part(home)
        stores.append(part.devices.store)

        def send(run: str, round: int, raw: bytes, link: Link = link, pace: Pace = pace) -> int:
            try:
                number = Link.send(link, run, round, raw)
            except TransportError as e:
                pace.codes.append(e.code)
                raise
            if isinstance(frame.from_device(raw, len(raw)), frame.Contribution):
                acknowledged.add((link.name, round))
            return number

        link.send = send  # type: ignore[method-assign]
        arguments = (link, lambda run, part=part: part, stop.is_set, 0.2, pace)
        threads.append(Thread(target=_attend, args=arguments, daemon=True))
        threads[-1].start()
    try:
        yield acknowledged
    finally:
        stop.set()
        for link in links:
            link.patience_s = 0.0
        for thread in threads:
            thread.join(30.0)
        for store in stores:
            store.close()


@contextmanager
def fleet(tmp_path: Path, n: int, overrides: Mapping[str, Any]) -> Iterator[tuple[HttpServer, list[Link], Toy]]:
    with running(tmp_path) as server:
        links = [joined(server, tmp_path / f"home-{i}") for i in range(n)]
        toy = Toy.of([link.name for link in links], overrides)
        yield server, links, toy
        for link in links:
            link.close()


def contributions(told: Sequence[events.AnyEvent]) -> list[tuple[str, int]]:
    """(device, round of its invitation) of all contributions that are in a sum."""
    return [(e.device, e.round - e.staleness) for e in of_kind(told, events.Accepted)]


def test_rounds_do_not_wait_and_a_late_contribution_counts_later(tmp_path: Path) -> None:
    gate = Event()

    def tell(event: events.AnyEvent) -> None:
        if isinstance(event, events.RoundFinished) and event.round == 1:
            gate.set()

    with fleet(tmp_path, 6, {**BUFFERED, "buffer.max_staleness": 7}) as (server, links, toy):
        rule, key = toy.plan.sampling.buffer, simulated_sampling(toy.plan, toy.root)
        assert rule is not None
        late = outstanding.replacements(rule, toy.trainer.devices(), outstanding.Work(), key, 0)[0]
        with at_work(links, toy, tmp_path, [Pace(gate=gate if link.name == late else None) for link in links]):
            played(server, toy, tmp_path / "out", tell)
        with server.service.database.read() as c:
            assert mailboxes.arrivals(c, toy.plan.run, 0) == []
            assert not any(mailboxes.takes_part(c, link.name) for link in links)
    told = check_exact(toy, tmp_path / "out", tmp_path / "check")
    assert [(e.met, e.accepted, e.late) for e in of_kind(told, events.RoundFinished)] == [(True, 2, 0)] * 8
    assert (late, 0) in contributions(told)
    assert next(e.staleness for e in of_kind(told, events.Accepted) if e.device == late) >= 2
    assert max(Counter(contributions(told)).values()) == 1


def test_a_device_beyond_the_window_is_refused_by_name_and_takes_part_again(tmp_path: Path) -> None:
    overrides = {**BUFFERED, "buffer.max_staleness": 1, "round.cohort": 1, "buffer.concurrency": 2, "round.rounds": 30}
    gate, told = Event(), list[events.AnyEvent]()

    def tell(event: events.AnyEvent) -> None:
        told.append(event)
        if isinstance(event, events.RoundFinished) and any(map(_outdated, told)):
            gate.set()

    with fleet(tmp_path, 3, overrides) as (server, links, toy):
        register(server, toy)
        paces, late = [Pace(0.0, gate), Pace(), Pace()], links[0].name
        with at_work(links, toy, tmp_path, paces):
            played(server, toy, tmp_path / "out", tell)
    told = check_exact(toy, tmp_path / "out", tmp_path / "check")
    first = next(e for e in told if _outdated(e))
    assert (first.device, paces[0].codes[:1]) == (late, ["E-OUTDATED"])
    counted = contributions(told)
    assert (late, first.round - 2) not in counted
    assert any(device == late and round > first.round for device, round in counted)
    assert all(e.staleness <= 1 for e in of_kind(told, events.Accepted))


def register(server: HttpServer, toy: Toy) -> None:
    """Let the server know the facts of the run, as of one that was submitted."""
    run = served.ServedRun(
        run=toy.plan.run, name="toy", state=served.RUNNING, why=None, rounds=toy.plan.rounds,
        facts=facts.canonical(toy.plan.facts), signature=b"", kept={}, made_by="", made_s=0.0,
    )  # fmt: skip
    server.service.database.write(lambda c: served.add(c, run))


KILLED = {**BUFFERED, "round.cohort": 3, "round.rounds": 5, "buffer.concurrency": 5}


class Mortal:
    """A cohort whose server dies when it has received ``life`` times."""

    def __init__(self, cohort: HttpCohort, life: int) -> None:
        self._cohort, self._left = cohort, life

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cohort, name)

    def receive(self, timeout_s: float) -> Arrived | Absent | None:
        if self._left == 0:
            raise Halted
        item = self._cohort.receive(timeout_s)
        self._left -= item is not None
        return item


class Uncarried(Mortal):
    """A cohort whose server dies between the commit of a round and its end on the network, ``life`` rounds on."""

    def receive(self, timeout_s: float) -> Arrived | Absent | None:
        return self._cohort.receive(timeout_s)

    def carry(self, at_work: Mapping[str, int]) -> None:
        if self._left == 0:
            raise Halted
        self._left -= 1
        self._cohort.carry(at_work)


def play_until_killed(server: HttpServer, toy: Toy, out: Path, life: int, death: type[Mortal] = Mortal) -> None:
    """Play a run, or go on with it, with a server that dies."""
    with RunStore(out) as store:
        if store.run() is None:
            store.create(toy.plan.run, "toy", toy.plan.recipe.resolved(), {"initial_sha256": ""})
        server.service.database.write(lambda c: mailboxes.admit(c, toy.plan.run, toy.trainer.devices()))
        cohort: Any = death(HttpCohort(server.service, toy.plan.run, toy.plan.frame_limit_bytes), life)
        coordinator = toy.coordinator(cohort, store, lambda _: None)
        with pytest.raises(Halted):
            coordinator.run(coordinator.begin(toy.trainer.initial()))


def check_none_lost(told: Sequence[events.AnyEvent], acknowledged: Collection[tuple[str, int]], last: int) -> None:
    """Check that each acknowledged contribution counts once, but for those that came to the last round too late."""
    counted = Counter(contributions(told))
    assert max(counted.values()) == 1
    assert set(counted) <= set(acknowledged)
    missing = set(acknowledged) - set(counted)
    ended = max(e.round for e in of_kind(told, events.RoundFinished))
    assert len(missing) <= last, missing
    assert all(ended - round <= 3 for _, round in missing)


@pytest.mark.long(sample=2)
@pytest.mark.parametrize("life", [0, 1, 2, 3, 4, 5])
def test_a_server_that_dies_in_the_middle_of_a_buffer_goes_on_with_all_that_it_acknowledged(
    tmp_path: Path, life: int
) -> None:
    with (
        fleet(tmp_path, 7, KILLED) as (server, links, toy),
        at_work(links, toy, tmp_path, [Pace() for _ in links]) as acknowledged,
    ):
        for _ in range(2):  # The second dies as many arrivals later, in another round.
            play_until_killed(server, toy, tmp_path / "out", life)
        played(server, toy, tmp_path / "out")
    told = check_exact(toy, tmp_path / "out", tmp_path / "check")
    assert [(e.met, e.accepted) for e in of_kind(told, events.RoundFinished)] == [(True, 3)] * 5
    assert not of_kind(told, events.Lost)
    check_none_lost(told, acknowledged, last=2)


class Seen(Mortal):
    """A cohort whose server dies once it has begun, and that notes the mail which it began with: (device, round)."""

    mail: list[tuple[str, int]]
    expected: list[tuple[str, int]]

    def resume(self, sent: Sequence[Sent], at_s: float) -> None:
        with self._cohort._service.database.read() as c:
            Seen.mail = sorted({(row.device, row.round) for row in c.execute(tables.MAIL.select())})
        Seen.expected = sorted((one.device, frame.from_server(one.frame, len(one.frame)).round) for one in sent)
        self._cohort.resume(sent, at_s)


@pytest.mark.long(sample=1)
@pytest.mark.parametrize("life", [0, 1, 2])
def test_a_server_that_dies_after_a_commit_counts_nothing_twice(tmp_path: Path, life: int) -> None:
    with (
        fleet(tmp_path, 7, KILLED) as (server, links, toy),
        at_work(links, toy, tmp_path, [Pace() for _ in links]) as acknowledged,
    ):
        play_until_killed(server, toy, tmp_path / "out", life, Uncarried)
        play_until_killed(server, toy, tmp_path / "out", 0, Seen)
        assert Seen.mail == Seen.expected
        played(server, toy, tmp_path / "out")
    told = check_exact(toy, tmp_path / "out", tmp_path / "check")
    assert not of_kind(told, events.Lost)
    check_none_lost(told, acknowledged, last=2)


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.parametrize("accepted", [1, 2, 4, 5, 8])
def test_sigkill_in_the_middle_of_a_buffer_loses_no_acknowledged_contribution(tmp_path: Path, accepted: int) -> None:
    with running(tmp_path) as first:  # enrols the devices, and ends
        links, port = [joined(first, tmp_path / f"home-{i}") for i in range(7)], first.port
    for link in links:
        link.patience_s = 120.0
    toy = Toy.of([link.name for link in links], KILLED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(KIT)]),
                   "TOY_NAMES": ",".join(link.name for link in links)}  # fmt: skip
    command = [sys.executable, str(KIT / "enrolled_toys.py"), "server", str(tmp_path), json.dumps(KILLED), str(port)]
    with at_work(links, toy, tmp_path, [Pace() for _ in links]) as acknowledged:
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            seen = 0
            for line in server.stdout:
                seen += '"accepted","' in line.replace(" ", "")
                if seen == accepted:
                    server.kill()
                    break
        assert server.wait(30.0) == -9
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
    for link in links:
        link.close()
    told = check_exact(toy, tmp_path / "out", tmp_path / "check")
    assert [(e.met, e.accepted) for e in of_kind(told, events.RoundFinished)] == [(True, 3)] * 5
    counted = Counter(contributions(told))
    assert max(counted.values()) == 1
    assert not of_kind(told, events.Lost)
    assert len(acknowledged - set(counted)) <= 2  # of those that were at work when the run ended


LOCAL = {
    **BUFFERED,
    "privacy": "local_dp",
    "metrics": "none",
    "stage": [],
    "dp.epsilon": 50.0,
    "dp.delta": 1e-4,
    "dp.clip_l2": 4.0,
    "buffer.concurrency": 3,
}


@pytest.mark.parametrize("overrides", [{**BUFFERED, "buffer.concurrency": 3}, LOCAL], ids=["none", "local_dp"])
def test_the_server_gives_devices_the_rest_that_they_insist_on(tmp_path: Path, overrides: Mapping[str, Any]) -> None:
    with (
        fleet(tmp_path, 8, {**overrides, "buffer.rest": 3}) as (server, links, toy),
        at_work(links, toy, tmp_path, [Pace() for _ in links]) as acknowledged,
    ):
        played(server, toy, tmp_path / "out")
    told = check_exact(toy, tmp_path / "out", tmp_path / "check")
    assert not of_kind(told, events.Lost)
    entered, left = dict[str, int](), dict[str, int]()
    for e in of_kind(told, events.Accepted):
        assert e.round - entered.get(e.device, -3) >= 3
        entered[e.device] = e.round
    for device, round in sorted(acknowledged, key=lambda pair: pair[1]):
        assert round - left.get(device, -3) >= 3
        left[device] = round
