"""A server that plays one round twice, over devices that differ by one: the difference of the sums is its update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from invited import invitation
from played import play
from toy_recipe import make_recipe

from edgewise.core import frame
from edgewise.core.errors import DecodeError
from edgewise.core.keys import Secrets, derive, root
from edgewise.core.memory import Memory
from edgewise.core.training import Update
from edgewise.core.vector import Spec
from edgewise.drivers.simulation.keys import simulated_servers, simulated_trust
from edgewise.drivers.simulation.local_helper import LocalHelper
from edgewise.engine import device as machine
from edgewise.engine import device_events
from edgewise.engine import device_state as states
from edgewise.engine.ports import Arrived
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.secagg import events, server, two_server

GRID = [{"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}]
DEVICES = [f"d{i}" for i in range(8)]
DEVICES_OF_TOY = [f"d{i:05d}" for i in range(8)]
SPEC = Spec.of([("a", (5,), "float32")])
XS = {d: np.random.default_rng(i).standard_normal(5).astype(np.float32) for i, d in enumerate(DEVICES)}


def plan_of(kind: str) -> Plan:
    recipe = make_recipe({"privacy": "hidden", "metrics": "none", "merge": {"kind": kind}, "stage": GRID})
    return compile(recipe, SPEC, len(DEVICES), BUILT_IN)


def invite(plan: Plan, nonce: bytes | None, round: int = 0) -> frame.Invite:
    return invitation(plan, round, nonce=nonce)


class Devices:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.trust = plan, simulated_trust(plan.key)
        self.states: dict[str, states.State] = {d: states.join(plan, d) for d in DEVICES}
        self.remembered: dict[str, states.Kept] = {}

    def step(self, device: str, event: device_events.Event) -> tuple[device_events.Effect, ...]:
        self.states[device], effects = machine.step(self.plan, self.states[device], event, self.trust)
        for effect in effects:
            if isinstance(effect, device_events.Save):
                self.remembered[device] = effect.state
        return effects

    def asked(self, device: str, message: frame.Invite) -> frame.Message:
        """The answer to an invitation, trained where the device would."""
        # It rounds alike in both sessions, so that the difference of two sums shows one update and nothing else.
        secrets = replace(Secrets.of(derive(root(9), device, message.nonce or b"")), encoding=derive(root(9), device))
        effects = self.step(device, device_events.Invited(message, np.zeros(5, np.float32), secrets))
        if isinstance(effects[0], device_events.Train):
            effects = self.step(device, device_events.Trained(Update(XS[device], {}, 1.0)))
        return frame.load(next(e.frame for e in effects if isinstance(e, device_events.SendFrame)))


def masked(devices: Devices, nonce: bytes, who: list[str]) -> server.State | list[frame.Refusal]:
    """One session to its end; or the refusals of devices that stay out."""
    plan, message = devices.plan, invite(devices.plan, nonce)
    answers = {d: devices.asked(d, message) for d in who}
    if refused := [a for a in answers.values() if isinstance(a, frame.Refusal)]:
        return refused
    state: server.State = server.start(
        server.SecAggSession(plan.secagg(0), plan.session(message), devices.trust.registry)
    )
    mail: list[events.SecAggSend] = []

    def feed(event: events.Event) -> None:
        nonlocal state
        state, effects = server.step_secagg_server(state, event)
        mail.extend(e for e in effects if isinstance(e, events.SecAggSend))

    for d, answer in answers.items():
        feed(events.SecAggReceived(d, answer.body))
    feed(events.SecAggStepClosed())
    while mail:
        letter = mail.pop(0)
        step = frame.Step(run=plan.run, round=0, device=letter.device, body=letter.raw)
        for effect in devices.step(letter.device, device_events.Delivered(step)):
            if isinstance(effect, device_events.SendFrame):
                feed(events.SecAggReceived(letter.device, frame.load(effect.frame).body))
    return state


def test_a_device_sends_one_masked_update_a_round() -> None:
    devices = Devices(plan_of("secure_sum"))
    first = masked(devices, b"A" * 32, DEVICES)
    assert isinstance(first, server.Released)
    assert {d: s.answered for d, s in devices.remembered.items()} == dict.fromkeys(DEVICES, 0), "before it left"
    again = masked(devices, b"B" * 32, DEVICES[1:])
    assert isinstance(again, list)
    assert {a.code for a in again} == {"E-SECAGG-ORDER"}
    assert len(again) == len(DEVICES) - 1
    assert all(isinstance(s, states.Idle) and s.answered == 0 for s in devices.states.values())
    later = devices.asked("d0", invite(devices.plan, b"A" * 32, round=1))
    assert isinstance(later, frame.Step), "the next round is another matter"

    # What a device would give away that forgot: the attack itself.
    forgetful = Devices(devices.plan)
    first = masked(forgetful, b"A" * 32, DEVICES)
    forgetful.states = {d: replace(s, answered=None) for d, s in forgetful.states.items()}  # type: ignore[arg-type, type-var]
    second = masked(forgetful, b"B" * 32, DEVICES[1:])
    assert isinstance(first, server.Released)
    assert isinstance(second, server.Released)
    bits, scale = devices.plan.secagg(0).bits, devices.plan.at(0).encoded.grid.scale
    apart = (first.body.astype(np.int64) - second.body) % (1 << bits)
    apart = np.where(apart >= 1 << bits - 1, apart - (1 << bits), apart)
    np.testing.assert_allclose(apart * scale, XS["d0"], atol=1.01 * scale)


def test_devices_take_part_as_often_as_their_noise_was_sized_for() -> None:
    """Two cohorts take turns: whatever a server asks, a device is in every second of the four rounds."""
    recipe = make_recipe(
        {
            "privacy": "distributed_dp", "metrics": "none", "merge": {"kind": "secure_sum"}, "stage": [],
            "dp.epsilon": 20.0, "dp.delta": 1e-5, "dp.clip_l2": 4.0, "round.sampling": "cyclic", "round.cohort": 4,
            "round.minimum": 1.0, "round.rounds": 4,
        }
    )  # fmt: skip
    devices = Devices(compile(recipe, SPEC, len(DEVICES), BUILT_IN))
    assert devices.plan.sampling.groups == 2
    for round, code in ((1, ""), (2, "E-SECAGG-ORDER"), (3, ""), (4, "E-INVITE"), (5, "E-INVITE")):
        answer = devices.asked("d0", invite(devices.plan, bytes(32), round))
        assert code == (answer.code if isinstance(answer, frame.Refusal) else ""), round
        if not code:  # as if its masked update had left
            state = devices.states["d0"]
            assert isinstance(state, states.InSecAgg)
            devices.states["d0"] = replace(state.idle, answered=round)


def test_noise_of_a_device_is_not_averaged_out() -> None:
    """``local``: each update hides by itself, so a server that asks again and again would see through the noise."""
    recipe = make_recipe(
        {
            "privacy": "local_dp", "metrics": "none", "stage": [], "dp.epsilon": 20.0, "dp.delta": 1e-5,
            "dp.clip_l2": 4.0, "round.sampling": "cyclic", "round.cohort": 4, "round.rounds": 4,
        }
    )  # fmt: skip
    devices = Devices(compile(recipe, SPEC, len(DEVICES), BUILT_IN))
    codes = []
    for round in (0, 0, 1, 2, 2, 3, 4, 5, 999):
        answer = devices.asked("d0", invite(devices.plan, None, round))
        codes.append(answer.code if isinstance(answer, frame.Refusal) else "")
        if not codes[-1]:
            assert devices.remembered["d0"].answered == round
    order, over = "E-SECAGG-ORDER", "E-INVITE"
    assert codes == ["", order, order, "", order, order, over, over, over]


class Twice:
    """A cohort whose server sends each invitation again when its answer has come."""

    def __init__(self, inner: Any) -> None:
        self._inner, self._invites, self.answers = inner, dict[str, bytes](), dict[str, list[frame.Message]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, to: str, raw: bytes) -> None:
        if isinstance(frame.load(raw), frame.Invite):
            self._invites[to] = raw
        self._inner.send(to, raw)

    def receive(self, timeout_s: float) -> Any:
        item = self._inner.receive(timeout_s)
        if isinstance(item, Arrived):
            message = frame.load(item.frame)
            if isinstance(message, frame.Contribution | frame.Refusal):
                self.answers.setdefault(item.device, []).append(message)
            if raw := self._invites.pop(item.device, b""):
                self._inner.send(item.device, raw)
        return item


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize(
    "settings",
    [
        {"privacy": "local_dp", "dp.epsilon": 20.0, "dp.delta": 1e-5, "dp.clip_l2": 4.0, "stage": []},
        {"privacy": "hidden", "merge": {"kind": "shared_sum"}, "stage": GRID},
    ],
    ids=["local_dp", "two servers"],
)
def test_simulated_devices_know_what_they_sent(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Between two messages a device's memory is the simulator's to keep."""
    made: list[Twice] = []

    def wrap(cohort: Any) -> Twice:
        made.append(Twice(cohort))
        return made[0]

    play(tmp_path, {"metrics": "none", "round.rounds": 1, "compare.local_only": False, **settings}, wrap=wrap)
    both = [kinds for d in DEVICES_OF_TOY if len(kinds := made[0].answers.get(d, [])) > 1]
    assert len(both) > 1, "the round ends with the last first answer, so not all are waited for"
    for first, second, *_ in both:
        assert isinstance(first, frame.Contribution)
        assert isinstance(second, frame.Refusal)
        assert second.code == "E-SECAGG-ORDER"


@pytest.mark.parametrize("kind", ["secure_sum", "shared_sum", "sum"])
def test_rounds_are_counted_from_zero(kind: str) -> None:
    visible = {"privacy": "none", "metrics": "none", "merge": {"kind": "sum"}, "stage": []}
    plan = plan_of(kind) if kind != "sum" else compile(make_recipe(visible), SPEC, len(DEVICES), BUILT_IN)
    message = invite(plan, b"A" * 32)
    answer = Devices(plan).asked("d0", msgspec.structs.replace(message, round=-1))
    assert isinstance(answer, frame.Refusal)
    assert answer.code == "E-INVITE"


def test_an_update_that_has_not_left_may_be_asked_for_again() -> None:
    """Keys and shares say nothing of it: a session that ends before the masks costs nothing."""
    devices = Devices(plan_of("secure_sum"))
    for nonce in (b"A" * 32, b"B" * 32):
        for d in DEVICES:
            assert isinstance(devices.asked(d, invite(devices.plan, nonce)), frame.Step)
    assert all(s.idle.answered is None for s in devices.remembered.values())
    assert isinstance(masked(devices, b"C" * 32, DEVICES), server.Released)


def test_what_was_answered_survives_on_the_disk() -> None:
    idle = states.Idle("d0", states.After(None, Memory()), answered=7)
    assert states.resumed(states.idle_of("d0", states.memory_of(idle)), states.session_of(idle)).answered == 7


def test_a_device_seals_one_report_a_round() -> None:
    devices = Devices(plan_of("shared_sum"))
    assert isinstance(devices.asked("d0", invite(devices.plan, b"A" * 32)), frame.Contribution)
    assert devices.remembered["d0"].answered == 0
    again = devices.asked("d0", invite(devices.plan, b"B" * 32))
    assert isinstance(again, frame.Refusal)
    assert again.code == "E-SECAGG-ORDER"


class Leader:
    """A leader of ``shared_sum`` before an honest helper, with devices that forget what they answered."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.trust = plan, simulated_trust(plan.key)
        self.pair, helper = simulated_servers(plan.key)
        self.helper = LocalHelper(plan, helper.secret, self.trust)
        self.tickets: list[bytes] = []

    def batch(self, told: frame.Invite, begun: frame.Invite | None = None, devices: list[str] = DEVICES) -> set[str]:
        """The helper's answers to the reports of devices that were ``told`` so, in the round ``begun``."""
        self.helper.begin(begun or told)
        params, context = self.plan.secagg(told.round), self.plan.session(told)
        lead = two_server.lead_two_servers(params, context, self.pair.secret, self.trust.registry)
        fresh, codes = Devices(self.plan), set()
        for d in devices:
            answer = fresh.asked(d, told)
            assert isinstance(answer, frame.Contribution)
            ticket, _ = two_server.open_share_report(lead, d, answer.payload)
            self.tickets.append(two_server.dump_ticket(ticket))
            codes.add(self.helper.admit(self.tickets[-1]))
        return codes

    def opens(self, devices: list[str]) -> str:
        try:
            self.helper.open(devices)
        except DecodeError as e:
            return e.code
        return ""


def test_the_helper_opens_one_batch_a_round() -> None:
    """Under another nonce, of fewer devices: it takes no report for a round whose batch was opened."""
    leader = Leader(plan := plan_of("shared_sum"))
    assert leader.batch(invite(plan, b"A" * 32)) == {None}
    assert leader.opens(DEVICES) == ""
    assert leader.batch(invite(plan, b"B" * 32)) == {"E-SECAGG-ORDER"}
    assert leader.opens(DEVICES[1:]) == "E-SECAGG-ORDER"
    assert leader.batch(invite(plan, b"C" * 32, 1)) == {None}
    assert leader.opens(DEVICES) == ""


def test_a_leader_that_was_stopped_asks_again_and_learns_nothing_new() -> None:
    """The same invitation, tickets and batch: the same answers, and no second batch."""
    leader = Leader(plan := plan_of("shared_sum"))
    told = invite(plan, b"A" * 32)
    assert leader.batch(told) == {None}
    for _ in range(2):
        leader.helper.begin(told)
        assert {leader.helper.admit(ticket) for ticket in leader.tickets} == {None}
        first = leader.helper.open(DEVICES)
    np.testing.assert_array_equal(leader.helper.open(reversed(DEVICES)).body, first.body)
    assert leader.opens(DEVICES[1:]) == "E-SECAGG-ORDER"


def test_the_helper_takes_no_report_twice_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where a round begins again with the same invitation, nor in a later round: there a device signs anew with
    an id that was used."""
    leader = Leader(plan := plan_of("shared_sum"))
    assert leader.batch(invite(plan, b"A" * 32)) == {None}
    assert leader.batch(invite(plan, b"A" * 32)) == {"E-SECAGG-ORDER"}
    real = two_server.fresh_secret
    monkeypatch.setattr(
        two_server, "fresh_secret", lambda *a: real(*((bytes(32), b"") if a[2] == "report" else a[:2]), *a[2:])
    )
    assert leader.batch(invite(plan, b"B" * 32, 1)) == {None}
    assert leader.opens(DEVICES) == ""
    assert leader.batch(invite(plan, b"C" * 32, 2)) == {"E-SECAGG-ORDER"}


def test_a_round_that_was_cut_off_may_begin_again_and_no_earlier_one() -> None:
    leader = Leader(plan := plan_of("shared_sum"))
    assert leader.batch(invite(plan, b"A" * 32, 2)) == {None}
    assert leader.batch(invite(plan, b"B" * 32, 2)) == {None}
    assert leader.batch(invite(plan, b"C" * 32, 1)) == {"E-SECAGG-ORDER"}
    assert leader.opens(DEVICES) == "E-SECAGG-ORDER"


def test_the_helper_takes_its_smallest_batch_from_its_own_plan() -> None:
    """Eight devices of whom one may be corrupt: a sum of four or more, whatever the leader would like."""
    plan = plan_of("shared_sum")
    assert plan.secagg(0).n_min == 4
    for fewer in range(4):
        leader = Leader(plan)
        assert leader.batch(invite(plan, b"A" * 32)) == {None}
        assert leader.opens(DEVICES[:fewer]) == "E-SECAGG-FEW"
        assert leader.opens(DEVICES) == ""


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"run": "f" * 64}, "E-INVITE"),
        ({"spec": "f" * 64}, "E-INVITE"),
        ({"nonce": b""}, "E-INVITE"),
        ({"nonce": b"B" * 32}, "E-SECAGG-KEYS"),
        ({"model": "f" * 64}, "E-SECAGG-KEYS"),
        ({"public": b"p" * 32}, "E-INVITE"),
        ({"clip": 2.0}, "E-INVITE"),
        ({"round": 1}, "E-INVITE"),
    ],
)
def test_the_helper_takes_no_reports_of_another_invitation(changed: dict[str, Any], code: str) -> None:
    leader = Leader(plan := plan_of("shared_sum"))
    told = invite(plan, b"A" * 32)
    assert leader.batch(told, msgspec.structs.replace(told, **changed)) == {code}
    assert leader.opens(DEVICES) != ""


def test_a_leader_that_was_told_another_population_has_no_helper() -> None:
    """Of fewer devices fewer are corrupt, and its smallest batch would be smaller."""
    recipe = make_recipe({"privacy": "hidden", "metrics": "none", "merge": {"kind": "shared_sum"}, "stage": GRID})
    other = compile(recipe, SPEC, 4, BUILT_IN)
    assert other.secagg(0).n_min < plan_of("shared_sum").secagg(0).n_min
    leader = Leader(plan_of("shared_sum"))
    leader.helper.begin(invite(other, b"A" * 32))
    assert leader.opens(DEVICES[: other.secagg(0).n_min]) == "E-INVITE"
