"""A server that dies in any phase of a hidden round goes on in that phase, with devices that live on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import fleet_server
import pytest
from fleet import Fleet, Fuse, Killed, Server, plan_of
from invited import MemoryLog, decided
from long import LONG

from edgewise.core import frame, vector
from edgewise.core.errors import StoreError
from edgewise.core.keys import root
from edgewise.drivers.simulation.keys import simulated_trust
from edgewise.engine import round_states
from edgewise.engine.aggregation import aggregation
from edgewise.engine.checkpoint import Standing
from edgewise.engine.open_round import OpenRound
from edgewise.engine.ports import Absent, Expired, Pinned
from edgewise.secagg import messages, server_states
from edgewise.secagg.secrets import Hidden

KINDS = ("secure_sum", "shared_sum")
SILENT = {"secure_sum": {("d5", "boxes"), ("d4", "proofs")}, "shared_sum": {("d5", "invite")}}
PLANS = {kind: plan_of(kind) for kind in KINDS}
STATES = (
    round_states.Collecting, round_states.Opening, server_states.Sharing, server_states.Masking, server_states.Signing,
    server_states.Unmasking, server_states.Released, round_states.Closed,
)  # fmt: skip
ORDER = ("", *(state.__name__ for state in STATES))


class End(NamedTuple):
    """End of a round: digest of the model, rows of the ledger, phases when the server was killed and resumed."""

    model: str
    charges: int
    died: str
    went_on: str
    operations: list[str]


def rank(phase: str) -> int:
    return max(
        ORDER.index(name)
        for name in phase.replace(round_states.Exchanging.__name__, "").split(" ") or [""]
        if name in ORDER
    )


def fleet_of(kind: str) -> Fleet:
    return Fleet(PLANS[kind], lambda device, message: (device, message) in SILENT[kind])


def play(fleet: Fleet, out: Path, at: int = 0, power_cut: bool = False) -> End:
    """Play one round. A server that stops at operation ``at`` is followed by another one. For every second ``at`` that
    one stops soon too."""
    fuse, again, died, went_on = Fuse(), Fuse(at % 2 * (12 + at % 5)), "", ""
    with Server(fleet, out, fuse) as server:
        checkpoint = server.begin()
        fuse.operations.clear()
        fuse.at = at
        with suppress(Killed):
            checkpoint = server.play(checkpoint)
        died, charges = server.phase, server.charges()
    if power_cut:
        server.cut(fuse)
    for next_fuse in (again, Fuse()):
        if checkpoint.next_round == 1:
            break
        with Server(fleet, out, next_fuse) as server, suppress(Killed):
            checkpoint = server.begin()
            if checkpoint.next_round == 0:
                server.go_on(checkpoint)
                went_on = went_on or server.phase
                checkpoint = server.finish(checkpoint)
            charges = server.charges()
    assert checkpoint.next_round == 1
    return End(vector.digest(vector.to_bytes(checkpoint.state.params)), charges, died, went_on, fuse.operations)


@pytest.fixture(scope="module", params=KINDS)
def calm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, End]:
    kind = request.param
    return kind, play(fleet_of(kind), tmp_path_factory.mktemp(kind))


def gone_on(kind: str, calm: End, out: Path, at: int, power_cut: bool = False) -> str:
    """Describe the faults of a round whose server died at an operation. Empty where there are none."""
    fleet = fleet_of(kind)
    fleet.keeps = power_cut
    end = play(fleet, out, at, power_cut)
    said = []
    if end.model != calm.model:
        said.append("another model")
    if end.charges != 1:
        said.append(f"{end.charges} charges")
    if end.went_on and rank(end.went_on) < rank(end.died) and not power_cut:
        said.append(f"went back from {end.died} to {end.went_on}")
    said += [f"{d} trained {n} times" for d, n in fleet.trained.items() if n != 1]
    said += [f"{d} answered {message} in {len(a)} ways" for (d, message), a in fleet.answers.items() if len(a) != 1]
    return f"killed {end.operations[-1]} ({end.died}): {'; '.join(said)}" if said else ""


@pytest.mark.slow
@pytest.mark.long
def test_a_server_killed_at_any_operation_goes_on_where_it_was(calm: tuple[str, End], tmp_path: Path) -> None:
    """The server dies before and after each frame, each record of its log, each charge, and its commit."""
    kind, undisturbed = calm
    n = len(undisturbed.operations)
    chosen = range(1, n + 1) if LONG else range(1 + n // 16, n + 1, n // 8)
    wrong = [trouble for at in chosen if (trouble := gone_on(kind, undisturbed, tmp_path / str(at), at))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.long
def test_a_power_cut_costs_what_was_not_synced_and_nothing_else(calm: tuple[str, End], tmp_path: Path) -> None:
    """Network that keeps the frames of a round until it is closed, as the mailboxes of a server do."""
    kind, undisturbed = calm
    n = len(undisturbed.operations)
    chosen = range(1, n + 1) if LONG else range(1 + n // 12, n + 1, n // 6)
    wrong = [said for at in chosen if (said := gone_on(kind, undisturbed, tmp_path / str(at), at, power_cut=True))]
    assert not wrong, "\n".join(wrong)


def killed_in(phase: str, fleet: Fleet, out: Path) -> None:
    """Play a round until its server is in a phase, and stop the server there while it waits."""
    server = Server(fleet, out, Fuse(before="receive", wanted=lambda: phase in server.phase.split(" ")))
    with server, pytest.raises(Killed):
        server.play(server.begin())
    assert phase in server.phase


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["Sharing", "Masking", "Unmasking"])
def test_a_round_whose_sessions_are_lost_is_abandoned_and_charged_once_at_most(tmp_path: Path, phase: str) -> None:
    fleet = fleet_of("secure_sum")
    killed_in(phase, fleet, tmp_path)
    fleet.forget()
    charged = 1 if phase == "Unmasking" else 0
    with Server(fleet, tmp_path) as server:
        checkpoint = server.begin()
        server.go_on(checkpoint)
        assert phase in server.phase
        after = server.finish(checkpoint)
        assert (after.next_round, after.unmet) == (1, 1)
        assert not after.state.params.any()
        assert server.charges() == charged
        assert server.play(after).unmet == 0
        assert server.charges() == charged + 1


def survivor_lists(fleet: Fleet) -> set[tuple[str, ...]]:
    steps = [messages.load_secagg_message(m.body) for _, m in fleet.letters if isinstance(m, frame.Step)]
    return {m.devices for m in steps if isinstance(m, messages.SurvivorsMessage)}


@pytest.mark.slow
def test_a_crash_does_not_open_a_second_sum(tmp_path: Path) -> None:
    """The attack: hold back a masked update until its device is not in the sum, crash the server before the sum is
    opened, deliver the update. A server that began the phase anew would tell the others another list, and the two sums
    would differ by the update of one device."""
    fleet, others = Fleet(PLANS["secure_sum"]), ("d0", "d1", "d2", "d4", "d5")
    fleet.holds = lambda device, message: (device, message) == ("d3", "masked")
    killed_in("Signing", fleet, tmp_path)
    assert survivor_lists(fleet) == {others}
    fleet.deliver()
    with Server(fleet, tmp_path) as server:
        checkpoint = server.begin()
        server.go_on(checkpoint)
        assert "Signing" in server.phase
        assert server.finish(checkpoint).unmet == 0
    assert survivor_lists(fleet) == {others}
    assert {d for (d, message) in fleet.answers if message == "survivors"} == set(others)


@pytest.mark.slow
def test_survivors_are_on_the_disk_before_a_device_hears_of_them(tmp_path: Path) -> None:
    """The guarantee holds after a power cut, which loses every record that was not synced."""
    fuse = Fuse()
    with Server(fleet_of("secure_sum"), tmp_path, fuse) as server:
        server.play(server.begin())
    done = fuse.operations
    session, _, _, survivors, _ = (i for i, said in enumerate(done) if said == "after sync")  # and before each letter
    assert "before send" not in done[:session]
    pinned = ["before append", "after append", "before sync", "after sync", "before send"]
    assert done[survivors - 3 : survivors + 2] == pinned
    charged = done.index("after charge")
    assert survivors < charged
    with Server(fleet_of("shared_sum"), tmp_path / "two", two := Fuse()) as server:
        server.play(server.begin())
    assert two.operations[two.operations.index("before charge") - 2 :][:2] == ["before sync", "after sync"]
    assert done[charged - 1 : charged + 2] == ["before charge", "after charge", "before send"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_can_drive_a_round_by_events(kind: str, tmp_path: Path) -> None:
    """Drive a round without a receive loop. Arrivals are taken as they come, and a timer fires at ``until_s``."""
    fleet = fleet_of(kind)
    with Server(fleet, tmp_path / "a") as server:
        checkpoint = server.begin()
        opened = server.go_on(checkpoint)
        while (until_s := opened.until_s) is not None:
            opened.take(fleet.mail.popleft() if fleet.mail else Expired(until_s))
        after = server.finish(checkpoint)
    assert vector.digest(vector.to_bytes(after.state.params)) == play(fleet_of(kind), tmp_path / "b").model


def test_a_round_goes_on_with_the_cohort_that_was_asked(tmp_path: Path) -> None:
    """The resumed round keeps its cohort, whichever one the next server would draw."""
    some = {"metrics": "none", "stage": [], "round.sampling": "fixed", "round.cohort": 3, "round.overselect": 1.0}
    fleet = Fleet(plan_of("sum", some))
    killed_in("Collecting", fleet, tmp_path)
    asked = {device for device, _ in fleet.letters}
    with Server(fleet, tmp_path, key=root(4)) as server:
        assert server.play(server.begin()).unmet == 0
    assert {device for device, _ in fleet.letters} == asked
    with Server(fleet, tmp_path / "another", key=root(4)) as server:
        server.play(server.begin())
    assert {device for device, _ in fleet.letters} != asked


def test_a_log_without_a_beginning_is_refused(tmp_path: Path) -> None:
    fleet = fleet_of("secure_sum")
    with Server(fleet, tmp_path) as server:
        server.begin()
        server.log(0).append(Absent("d1", "dropped", 1.0))
    with Server(fleet, tmp_path) as server:
        checkpoint = server.begin()
        with pytest.raises(StoreError, match=r"E-CHECKPOINT.*began"):
            server.play(checkpoint)


def test_a_log_that_names_other_survivors_is_refused() -> None:
    plan, names = PLANS["secure_sum"], [f"d{i}" for i in range(6)]
    trust = simulated_trust(root(7))
    facts = decided(plan, standings=dict.fromkeys(names, Standing()), trust=trust)
    for records in ([Pinned(0, ("d0",))], [Absent("d1", "dropped", 1.0), Pinned(0, ("d0",))]):
        sums = aggregation(facts, trust, b"", None)
        fleet = fleet_of("secure_sum")
        opened = OpenRound(facts, fleet, MemoryLog(), sums, lambda: None, lambda event: None, lambda: 0.0)
        with pytest.raises(StoreError, match=r"E-CHECKPOINT.*survivors"):
            opened.begin(records)


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_process_that_is_killed_is_followed_by_another_one(kind: str, tmp_path: Path) -> None:
    """SIGKILL while it waits for an answer of its cohort; the devices are in this process."""
    fleet, at = Fleet(PLANS[kind]), {"secure_sum": 55, "shared_sum": 12}[kind]
    command = [sys.executable, fleet_server.__file__, kind, str(tmp_path / "killed")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for kill in (at, 0):
        fleet.restarted()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if not fleet_server.serve(fleet, process.stdout, process.stdin, kill):
                process.kill()
        assert process.returncode == (-signal.SIGKILL if kill else 0)
    assert set(fleet.trained.values()) == {1}
    calm = play(Fleet(PLANS[kind]), tmp_path / "calm")
    with Server(Fleet(PLANS[kind]), tmp_path / "killed") as server:
        assert vector.digest(vector.to_bytes(server.begin().state.params)) == calm.model
        assert server.charges() == calm.charges == 1


@pytest.mark.slow
def test_a_helper_opens_after_a_stop_only_what_is_pinned_on_the_disk(tmp_path: Path) -> None:
    """Otherwise a power cut after the opening could leave a log that leads to other devices than the helper opened."""
    fleet, fuse = Fleet(plan_of("shared_sum")), Fuse()
    with Server(fleet, tmp_path / "calm", fuse) as server:
        checkpoint = server.begin()
        fuse.operations.clear()
        server.play(checkpoint)
    pinned = max(i for i in range(fuse.operations.index("before charge")) if fuse.operations[i] == "before append")
    fleet, fuse, out = Fleet(plan_of("shared_sum")), Fuse(), tmp_path / "run"
    fleet.keeps = True
    with Server(fleet, out, fuse) as server:
        checkpoint = server.begin()
        fuse.operations.clear()
        fuse.at = pinned + 1
        with suppress(Killed):
            server.play(checkpoint)
    fuse, opened = Fuse(), fleet.helper.open

    def opens(devices: Collection[str]) -> Hidden:
        fuse.operations.append("helper opens")
        return opened(devices)

    fleet.helper.open = opens  # type: ignore[method-assign]
    with Server(fleet, out, fuse) as server:
        server.go_on(server.begin())
    before = fuse.operations[: fuse.operations.index("helper opens")]
    assert "after append" in before
    assert before[::-1].index("after sync") < before[::-1].index("after append"), "synced since"
