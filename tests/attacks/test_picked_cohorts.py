"""A malicious server that wants its accomplices in one cohort, where devices verify cohorts (``engine.beacon``).

Each attack is tried twice: on devices without the check that stands against it, where it works, and on devices as they
are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import beacons
import numpy as np
import pytest
from beacons import CORRUPT, DEVICES, TRUST, Mail, Shelf, cohort, forged, gathering, honest, plan_of, revealed
from invited import invited

from edgewise.core import frame
from edgewise.core.errors import DecodeError, EdgewiseError, RoundError
from edgewise.core.training import Update
from edgewise.crypto import sign
from edgewise.engine import beacon, beacon_device, beacon_server, device, device_events, device_state
from edgewise.engine.loop import receive
from edgewise.engine.ports import Absent
from edgewise.plan.plan import Plan
from edgewise.secagg import client, messages

PLAN, ALONE = plan_of(), plan_of(**{"trust.cohorts": "server"})
HONEST = DEVICES[-1]


@pytest.fixture(scope="module")
def blob() -> bytes:
    return honest(PLAN)[0]


def ground(values: Iterator[int], seen: frame.Reveal) -> bytes:
    """A beacon with the one honest reveal that a server has seen, and accomplices' values tried until at least five of
    the six are drawn."""
    honest_part = {HONEST: beacon.commitment(PLAN.run, HONEST, seen.value)}
    for i in values:
        value = i.to_bytes(32, "big")
        listed = honest_part | {d: beacon.commitment(PLAN.run, d, value) for d in CORRUPT}
        found = forged(PLAN, listed, [seen, *(revealed(PLAN, d, value, listed) for d in CORRUPT)])
        if len(cohort_unchecked(found) & set(CORRUPT)) >= 5:
            return found
    raise AssertionError


def cohort_unchecked(found: bytes) -> frozenset[str]:
    """Cohort that a device draws which does not look at signatures."""
    with pytest.MonkeyPatch.context() as blind:
        blind.setattr(sign, "verify", lambda *_: True)
        beacon.joint.cache_clear()
        drawn = cohort(PLAN, found)
    beacon.joint.cache_clear()
    return drawn


def test_a_server_grinds_with_values_that_it_knows() -> None:
    """It shows an honest device one list, sees its value, and then looks for commitments that go well with it."""
    mail = Mail(PLAN)
    listed = {d: beacon.commitment(PLAN.run, d, bytes(32)) for d in CORRUPT}
    said = mail.ask(HONEST, frame.Call(run=PLAN.run, round=PLAN.rounds))
    assert isinstance(said, frame.Commitment)
    entries = tuple(
        frame.Committed(device=d, commitment=c) for d, c in sorted({**listed, HONEST: said.commitment}.items())
    )
    asked = frame.Commitments(
        run=PLAN.run, round=PLAN.rounds, anchor=beacon.anchor(beacons.TOP, PLAN.rounds), listed=entries
    )
    seen = mail.ask(HONEST, asked)
    assert isinstance(seen, frame.Reveal)
    picked = ground(count(), seen)
    assert len(cohort_unchecked(picked) & set(CORRUPT)) >= 5
    with pytest.raises(DecodeError, match="for this list") as e:
        cohort(PLAN, picked)
    assert e.value.code == "E-BEACON"
    # Nor does the device reveal a second time, also after its state went to the disk and back.
    kept = mail.states[HONEST]
    session = device_state.session_of(kept)
    mail.states[HONEST] = device_state.resumed(device_state.join(PLAN, HONEST), session)
    others = tuple(e if e.device == HONEST else replace_commitment(e) for e in entries)
    other = frame.Commitments(run=PLAN.run, round=PLAN.rounds, anchor=asked.anchor, listed=others)
    refusal = mail.ask(HONEST, other)
    assert isinstance(refusal, frame.Refusal)
    assert refusal.code == "E-BEACON"
    assert mail.ask(HONEST, asked) == seen  # the same list gets the same answer


def replace_commitment(entry: frame.Committed) -> frame.Committed:
    return frame.Committed(device=entry.device, commitment=bytes(32))


def test_a_server_without_an_honest_contributor_draws_nothing() -> None:
    """All of its accomplices together are one too few."""
    listed = {d: beacon.commitment(PLAN.run, d, bytes(32)) for d in CORRUPT}
    picked = forged(PLAN, listed, [revealed(PLAN, d, bytes(32), listed) for d in CORRUPT])
    with pytest.raises(DecodeError, match="7 are needed"):
        cohort(PLAN, picked)


def test_who_withholds_a_reveal_ends_the_list_and_chooses_nothing(blob: bytes) -> None:
    """Were the others' values enough, whoever reveals last would choose between two cohorts."""
    whole = frame.beacon(blob)
    without = frame.dump(
        frame.Beacon(
            run=whole.run, anchor=whole.anchor, listed=whole.listed[1:], values=whole.values[1:],
            signatures=whole.signatures[1:],
        )
    )  # fmt: skip
    lenient = plan_of(**{"trust.malicious_fraction": 0.09})  # six contributors
    assert lenient.contributors == len(whole.listed) - 1
    with pytest.raises(DecodeError, match="6 devices are on its list"):
        cohort(PLAN, without)
    missing = frame.dump(frame.Beacon(
        run=whole.run, anchor=whole.anchor, listed=whole.listed, values=whole.values[1:],
        signatures=whole.signatures[1:],
    ))  # fmt: skip
    with pytest.raises(DecodeError, match="not every device"):
        cohort(PLAN, missing)
    with pytest.MonkeyPatch.context() as blind:  # the choice that there would be
        blind.setattr(beacon, "check_list", lambda *_: None)
        blind.setattr(sign, "verify", lambda *_: True)
        beacon.joint.cache_clear()
        assert cohort(PLAN, without) != cohort(PLAN, blob)
    beacon.joint.cache_clear()


@pytest.mark.parametrize("how", ["refuses", "is lost", "is silent", "lies"])
def test_an_honest_server_begins_another_list_of_other_devices(how: str) -> None:
    bad = DEVICES[3]

    def lie(name: str, said: frame.FromDevice) -> frame.FromDevice | Absent | None:
        if name != bad or not isinstance(said, frame.Reveal):
            return said
        if how == "refuses":
            return frame.Refusal(run=PLAN.run, round=PLAN.rounds, device=name, code="E-OWNER", reason="")
        if how == "lies":
            return frame.Reveal(run=PLAN.run, round=PLAN.rounds, device=name, value=bytes(32), signature=bytes(64))
        return Absent(name, "dropped", 0.0) if how == "is lost" else None

    mail, shelf, told = Mail(PLAN, lie), Shelf(), list[object]()
    receive(mail, gathering(PLAN, mail, shelf, told))  # type: ignore[arg-type]
    found = beacon_server.stored(shelf)
    assert found is not None
    assert len(cohort(PLAN, found)) == PLAN.sampling.invite
    first, second = mail.lists
    assert bad in first
    assert not set(first) & set(second)
    assert [e.device for e in told] == [bad]  # type: ignore[attr-defined]


def test_a_server_that_stopped_goes_on_with_its_list() -> None:
    """It has the list before devices reveal for it, so its devices are not lost to it."""
    mail, shelf = Mail(PLAN, lambda _, said: None if isinstance(said, frame.Reveal) else said), Shelf()
    first = gathering(PLAN, mail, shelf)
    while (item := mail.receive(0.0)) is not None:
        first.take(item)
    mail.lie = lambda _, said: said
    receive(mail, gathering(PLAN, mail, shelf))  # type: ignore[arg-type]
    assert beacon_server.stored(shelf) is not None
    assert len(mail.lists) == 1


def test_lists_come_to_an_end() -> None:
    """Devices that were on a list are used up: no server has more lists than ``plan.trust`` counts."""
    mail = Mail(PLAN, lambda _, said: None if isinstance(said, frame.Reveal) else said)
    with pytest.raises(RoundError, match="fewer than 7") as e:
        receive(mail, gathering(PLAN, mail, Shelf()))  # type: ignore[arg-type]
    assert e.value.code == "E-BEACON"
    assert len(mail.lists) == len(DEVICES) // 7


def test_a_server_swaps_the_roster(blob: bytes) -> None:
    """A roster of other devices gives another cohort; devices have theirs from the facts of the run."""
    strangers = tuple(sorted({*DEVICES[7:], *(f"x{i}" for i in range(7))}))
    other = beacons.Trust(TRUST.registry, TRUST.identity, None, None, strangers)
    with pytest.raises(DecodeError, match="not on the run's roster"):
        cohort(PLAN, blob, trust=other)
    listed = {d: beacon.commitment(PLAN.run, d, bytes(32)) for d in (*CORRUPT, "x1")}
    stranger = frame.Reveal(run=PLAN.run, round=PLAN.rounds, device="x1", value=bytes(32), signature=bytes(64))
    picked = forged(PLAN, listed, [stranger, *(revealed(PLAN, d, bytes(32), listed) for d in CORRUPT)])
    with pytest.raises(DecodeError, match="not on the run's roster"):
        cohort(PLAN, picked)


def test_a_server_replays_an_old_beacon(blob: bytes) -> None:
    """One of another run, in which the accomplices were lucky; also its commitments alone."""
    lucky = plan_of(name="another-run")
    old, _ = honest(lucky)
    with pytest.raises(DecodeError, match="another run"):
        cohort(PLAN, old)
    whole = frame.beacon(old)
    renamed = frame.dump(frame.Beacon(
        run=PLAN.run, anchor=whole.anchor, listed=whole.listed, values=whole.values, signatures=whole.signatures,
    ))  # fmt: skip
    with pytest.raises(DecodeError, match="what it committed to"):
        cohort(PLAN, renamed)
    with pytest.MonkeyPatch.context() as blind:
        blind.setattr(beacon, "valid_reveal", lambda *_: True)
        beacon.joint.cache_clear()
        assert cohort(PLAN, renamed) != cohort(PLAN, blob)
    beacon.joint.cache_clear()
    mail = Mail(PLAN)
    mail.ask(DEVICES[0], frame.Call(run=PLAN.run, round=PLAN.rounds))
    asked = frame.Commitments(run=PLAN.run, round=PLAN.rounds, anchor=whole.anchor, listed=whole.listed)
    refusal = mail.ask(DEVICES[0], asked)
    assert isinstance(refusal, frame.Refusal)
    assert refusal.code == "E-BEACON"


def test_a_round_has_one_cohort(blob: bytes) -> None:
    """A server that claims a cohort away, and draws again, would need another key of the round."""
    last = PLAN.rounds - 1
    drawn = cohort(PLAN, blob, round=0)
    with pytest.raises(DecodeError, match="committed to"):
        cohort(PLAN, blob, round=0, key=beacon.key(beacons.TOP, PLAN.rounds, last))
    seed = beacon.seed(PLAN.sampling, bytes(32), 0, beacon.key(beacons.TOP, PLAN.rounds, last))
    assert beacon.drawn(PLAN.sampling, DEVICES, seed, 0) != drawn


def said_by(plan: Plan, blob: bytes) -> dict[str, object]:
    """Message of an invitation to the first round on its cohort."""
    return {"draw": beacons.draw(plan, blob)} if plan.contributors else {}


def started(plan: Plan, blob: bytes, name: str, **changes: object) -> tuple[device.State, messages.SessionKeys | str]:
    """A device that has trained, and the keys that it sent; or the code by which it refused."""
    event = replace(invited(plan, **{**said_by(plan, blob), **changes}), beacon=blob)  # type: ignore[arg-type]
    state, effects = device.step(plan, device_state.join(plan, name), event, TRUST)
    if isinstance(state, device.Training):
        update = Update(np.ones(beacons.DIM, np.float32), {"loss_first": 1.0, "loss_last": 1.0}, 10.0)
        state, effects = device.step(plan, state, device_events.Trained(update), TRUST)
    (raw,) = (e.frame for e in effects if isinstance(e, device_events.SendFrame))
    sent = frame.from_device(raw, len(raw))
    if isinstance(sent, frame.Refusal):
        return state, sent.code
    assert isinstance(sent, frame.Step)
    return state, advertised(sent.body)


def advertised(raw: bytes) -> messages.SessionKeys:
    message = messages.load_secagg_message(raw)
    assert isinstance(message, messages.AdvertiseMessage)
    return message.keys


def other_keys(plan: Plan, blob: bytes, name: str) -> messages.SessionKeys:
    """Keys for the session: of an accomplice they come for any session that its server likes."""
    sid = plan.session(invited(plan, **said_by(plan, blob)).invite)  # type: ignore[arg-type]
    entropy = name.encode().ljust(32, b".")
    return advertised(client.advertise(plan.secagg(0), sid, name, beacons.IDENTITIES[name].secret, entropy)[1])


def given(plan: Plan, state: device.State, keys: dict[str, messages.SessionKeys]) -> str:
    """The code with which a device ends its session under this roster of keys; empty where it goes on. What a store
    keeps of the device is enough to refuse."""
    assert isinstance(state, device_state.InSecAgg)
    state = device_state.resumed(state.idle, device_state.session_of(state))
    body = messages.dump(messages.RosterMessage(keys=dict(sorted(keys.items()))))
    step = frame.Step(run=plan.run, round=0, device=state.device, body=body)
    after, effects = device.step(plan, state, device_events.Delivered(step), TRUST)
    if isinstance(after, device_state.InSecAgg) and isinstance(after.client, client.Sharing):
        return ""
    (raw,) = (e.frame for e in effects if isinstance(e, device_events.SendFrame))
    said = frame.from_device(raw, len(raw))
    assert isinstance(said, frame.Step)
    abort = messages.load_secagg_message(said.body)
    assert isinstance(abort, messages.Abort)
    return abort.code


@pytest.mark.parametrize(("plan", "code"), [(ALONE, ""), (PLAN, "E-COHORT")], ids=["server", "verified"])
def test_a_server_puts_its_accomplices_in_the_place_of_honest_devices(plan: Plan, code: str, blob: bytes) -> None:
    """It says that drawn devices are away, and has others instead. Where it draws alone, that works."""
    drawn = sorted(cohort(PLAN, blob))
    me = next(d for d in drawn if d not in CORRUPT)
    others = [*(d for d in CORRUPT if d not in drawn), *(d for d in drawn if d != me)]
    state, mine = started(plan, blob, me)
    assert isinstance(mine, messages.SessionKeys)
    keys = {me: mine} | {d: other_keys(plan, blob, d) for d in others[: plan.sampling.invite - 1]}
    assert given(plan, state, keys) == code


def test_a_device_that_was_not_drawn_takes_no_part(blob: bytes) -> None:
    outside = next(d for d in DEVICES if d not in cohort(PLAN, blob))
    assert started(PLAN, blob, outside)[1] == "E-COHORT"
    assert started(PLAN, b"another blob", outside, draw=beacons.draw(PLAN, b"another blob"))[1] == "E-FRAME"
    assert started(PLAN, b"another blob", outside, draw=beacons.draw(PLAN, blob))[1] == "E-BEACON"
    assert started(PLAN, blob, outside, draw=None)[1] == "E-INVITE"
    assert started(ALONE, blob, outside, draw=beacons.draw(PLAN, blob))[1] == "E-INVITE"
    assert isinstance(started(ALONE, blob, outside)[1], messages.SessionKeys)


def test_who_is_claimed_away_leaves_a_smaller_cohort_with_no_more_corrupt_devices() -> None:
    """Below the smallest sum devices refuse; above it the corrupt ones are those of the draw."""
    plan = plan_of(**{"round.minimum": 0.9, "trust.malicious_fraction": 0.05})
    mine, _ = honest(plan)
    drawn = sorted(cohort(plan, mine))
    me = next(d for d in drawn if d not in CORRUPT)
    state, said = started(plan, mine, me)
    assert isinstance(said, messages.SessionKeys)
    here = {me: said} | {d: other_keys(plan, mine, d) for d in [d for d in drawn if d != me][: plan.facts.n_min - 1]}
    assert given(plan, state, here) == ""
    here.pop(next(d for d in here if d != me))
    assert given(plan, state, here) == "E-SECAGG-FEW"


def test_a_device_answers_no_call_where_the_server_draws_alone() -> None:
    state = device_state.join(ALONE, HONEST)
    call = frame.Call(run=ALONE.run, round=ALONE.rounds)
    assert beacon_device.answer(ALONE, state, call, TRUST, bytes(32)) == (state, ())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"trust.server": "curious"}, "none does"),
        ({"round.sampling": "all", "round.cohort": 0}, "nothing to verify"),
        ({"privacy": "none", "merge": {"kind": "sum"}, "stage": [], "trust.malicious_fraction": 0.1}, "hide"),
    ],
)
def test_recipes_in_which_nothing_could_be_verified_are_refused(changes: dict[str, object], why: str) -> None:
    with pytest.raises(EdgewiseError, match=why) as e:
        plan_of(**changes)
    assert e.value.code == "E-COMBO"
