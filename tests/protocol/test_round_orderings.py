"""The whole loop over a hostile mailbox: any order, loss, duplication, rubbish; the books and the sum stay right."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from long import examples
from mailbox_of import CRASH, Crashed, Mailbox
from toy_recipe import make_recipe

from edgewise.codecs.wire import pack
from edgewise.core import events, frame, vector
from edgewise.core.errors import REGISTRY, DataError, RoundError
from edgewise.core.keys import Turn, derive
from edgewise.core.memory import Memory
from edgewise.core.vector import Spec
from edgewise.drivers.simulation.probes import Probes
from edgewise.engine import broadcast
from edgewise.engine.checkpoint import Change, Checkpoint, Standing
from edgewise.engine.coordinator import Coordinator
from edgewise.engine.ports import Absent, Arrived
from edgewise.engine.sampling import draw
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan

DIM, DEVICES = 20, tuple(f"d{i}" for i in range(6))
PLAN = compile_plan(
    make_recipe({"round.rounds": 1, "stage": [{"kind": "weigh", "cap": 10}], "strategy": {"kind": "fedavg"}}),
    Spec.of([("w", (DIM,), "float32")]),
    len(DEVICES),
    BUILT_IN,
)


def update(device):
    return np.random.default_rng(int(device[1:])).normal(size=DIM).astype(np.float32)


def weight(device):
    return min(10.0, 4.0 + int(device[1:])) / 10


def contribution(device, number=0, run=PLAN.run, claimed=""):
    turn = Turn(number, PLAN.public(number), derive(PLAN.key, device))
    head = {"loss_first": 2.0, "loss_last": 1.0}
    payload, _ = PLAN.at(0).encode(update(device), head, weight(device) * 10, Memory(), turn)
    body = pack.pack(payload, PLAN.at(0).encoded)
    return frame.dump(frame.Contribution(run=run, round=number, device=claimed or device, payload=body))


class MemoryStore:
    """Store in lists, whose journal survives the loop that wrote it."""

    def __init__(self):
        self.checkpoint, self.events, self.records = None, [], []
        self.accepted, self.held = {}, {}

    def standing(self, devices):
        return {d: Standing(self.accepted.get(d), self.held.get(d)) for d in devices}

    def load(self):
        return self.checkpoint

    def journal(self, round):
        return self

    def replay(self):
        return list(self.records)

    def sync(self):
        self.synced = len(self.records)

    def append(self, item):
        (self.events if isinstance(item, events.Event) else self.records).append(item)

    def commit(self, checkpoint, told, change=Change(), total=None):  # noqa: B008
        self.checkpoint, self.records = checkpoint, []
        self.events.extend(told)
        played = checkpoint.next_round - 1
        self.accepted.update(dict.fromkeys(change.accepted, played))
        self.held.update(dict.fromkeys(change.had, played))
        reach = checkpoint.down.anchor_round if checkpoint.down else played + 1
        self.held = {d: r for d, r in self.held.items() if d not in change.stale and r >= reach}

    def evaluated(self, model, round):
        return True

    def evaluations(self):
        return ()


def federation(mailbox, store):
    return Coordinator(
        PLAN,
        DEVICES,
        mailbox,
        store,
        tell=lambda e: None,
        now_s=lambda: 0.0,
        entropy=lambda n: bytes(32),
        sampling_key=PLAN.key,
    )


def play(script, store=None):
    store = store or MemoryStore()
    mailbox = Mailbox(script)
    loop = federation(mailbox, store)
    after = loop.round(loop.begin(np.zeros(DIM, np.float32)))
    return after, store, mailbox


def good(device):
    return Arrived(device, contribution(device), 1.0)


GOOD = [good(d) for d in DEVICES]

NASTY = st.sampled_from(DEVICES).flatmap(
    lambda d: st.sampled_from(
        [
            good(d),
            good(d),
            good(d),
            Absent(d, "dropped", 1.0),
            Arrived(d, b"EWF\x02rubbish", 1.0),
            Arrived(d, contribution(d)[:-3], 1.0),
            Arrived(d, contribution(d, number=3), 1.0),
            Arrived(d, contribution(d, run="another run"), 1.0),
            Arrived(d, contribution(d, claimed="d5" if d != "d5" else "d0"), 1.0),
            Arrived(d, frame.dump(frame.Refusal(run=PLAN.run, round=0, device=d, code="E-NAN", reason="x")), 1.0),
            Arrived("stranger", contribution(d), 1.0),
            Arrived(d, frame.dump(frame.Probe(run=PLAN.run, round=0, model="")), 1.0),
        ]
    )
)


def expected(accepted):
    total = sum(weight(d) for d in accepted)
    return sum(update(d).astype(np.float64) * weight(d) for d in accepted) / total


def accepted_in(store):
    return [e.device for e in store.events if isinstance(e, events.Accepted)]


@pytest.mark.slow
@pytest.mark.long
@settings(max_examples=examples(150))
@given(st.lists(NASTY, max_size=25))
def test_any_schedule_gives_the_exact_mean_of_who_was_accepted(script):
    after, store, _ = play(script)
    accepted = accepted_in(store)
    assert len(set(accepted)) == len(accepted)
    (end,) = [e for e in store.events if isinstance(e, events.RoundFinished)]
    assert end.accepted == len(accepted)
    assert end.accepted + end.lost + end.late == len(DEVICES)
    sent_well = {item.device for item in script if item in GOOD}
    assert set(accepted) <= sent_well
    if end.met:
        assert len(accepted) >= PLAN.sampling.minimum
        np.testing.assert_allclose(after.state.params, expected(accepted), atol=1e-6)
        assert store.accepted == dict.fromkeys(accepted, 0)
    else:
        assert not after.state.params.any()
        assert store.accepted == {}


@pytest.mark.slow
@pytest.mark.long
@settings(max_examples=examples(60))
@given(st.lists(NASTY, max_size=20), st.integers(0, 20))
def test_a_crash_between_any_two_arrivals_changes_nothing(script, cut):
    calm, calm_store, _ = play(script)
    store = MemoryStore()
    try:
        play([*script[:cut], *([CRASH] if cut < len(script) else script[cut:])], store)
    except Crashed:
        # Delivered frames are in the journal. The others are still to come.
        mailbox = Mailbox(script[cut:])
        loop = federation(mailbox, store)
        loop.round(loop.begin(np.zeros(DIM, np.float32)))
    assert store.accepted == calm_store.accepted
    np.testing.assert_array_equal(store.checkpoint.state.params, calm.state.params)
    assert accepted_in(store) == accepted_in(calm_store)


@given(st.permutations(DEVICES))
def test_the_sum_is_bit_identical_in_every_order(order):
    first, _, _ = play([good(d) for d in DEVICES])
    after, _, _ = play([good(d) for d in order])
    np.testing.assert_array_equal(after.state.params, first.state.params)


def test_late_mail_is_not_an_answer_and_is_not_written_down():
    """Mail of an older round arrives, then the process dies: on resume the device is still asked."""
    store = MemoryStore()
    late = [Arrived(d, contribution(d, number=5), 1.0) for d in DEVICES[:2]]
    with pytest.raises(Crashed):
        play([*late, CRASH], store)
    assert not any(isinstance(record, Arrived) for record in store.records)
    mailbox = Mailbox([good(d) for d in DEVICES])
    loop = federation(mailbox, store)
    loop.round(loop.begin(np.zeros(DIM, np.float32)))
    assert {to for to, _ in mailbox.sent} == set(DEVICES)
    assert accepted_in(store) == list(DEVICES)


def test_an_unregistered_refusal_code_is_not_passed_on():
    refusal = frame.Refusal(run=PLAN.run, round=0, device="d0", code="<script>", reason="x")
    _, store, _ = play([Arrived("d0", frame.dump(refusal), 1.0), *(good(d) for d in DEVICES[1:])])
    assert [e.code for e in store.events if isinstance(e, events.Lost)] == ["E-FRAME"]


def test_a_cohort_that_sampling_drew_too_small_is_no_failure():
    plan = compile_plan(
        make_recipe(
            {
                "round.sampling": "poisson",
                "round.cohort": 1,
                "round.rounds": 60,
                "stage": [{"kind": "weigh", "cap": 10}],
            }
        ),
        PLAN.spec,
        len(DEVICES),
        BUILT_IN,
    )
    store, sizes = MemoryStore(), []
    mailbox = Mailbox([])
    loop = Coordinator(plan, DEVICES, mailbox, store, lambda e: None, lambda: 0.0, lambda n: bytes(32), plan.key)
    checkpoint = loop.begin(np.zeros(DIM, np.float32))
    for _ in range(60):
        invited = draw(plan.sampling, DEVICES, plan.key, checkpoint.next_round)
        sizes.append(len(invited))
        if invited:
            checkpoint = Checkpoint(checkpoint.next_round + 1, checkpoint.state, checkpoint.unmet)
            continue
        checkpoint = loop.round(checkpoint)
        assert checkpoint.unmet == 0
    assert sizes.count(0) > 3


DIRTY = "\x1b[31m\r\n\u202e" + "A" * 60_000
OVERSIZE = PLAN.frame_limit_bytes + 1


def refusal(reason, number=0, device="d0"):
    return frame.dump(frame.Refusal(run=PLAN.run, round=number, device=device, code="E-NAN", reason=reason))


def lost_in(store):
    return [e for e in store.events if isinstance(e, events.Lost)]


def test_a_reason_is_kept_short_and_legible():
    _, store, _ = play([Arrived("d0", refusal(DIRTY), 1.0), *(good(d) for d in DEVICES[1:])])
    (lost,) = lost_in(store)
    assert (lost.code, len(lost.reason), lost.reason.isprintable()) == ("E-NAN", 500, True)
    assert lost.reason.startswith("\ufffd[31m\ufffd\ufffd\ufffdAAA")


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(refusal("A" * OVERSIZE), id="too large, and then read again"),
        pytest.param(refusal("x").replace(b"\xa6reason", b"\xda\xea\x60" + b"\x1b" * 60_000), id="an unknown field"),
        pytest.param(frame.dump(frame.Probe(run=PLAN.run, round=0, model="m")), id="what only a server sends"),
        pytest.param(frame.dump(frame.Delta(round=0, public=bytes(32), payload=b"")), id="a blob"),
        pytest.param(
            frame.dump(frame.Measurement(run=PLAN.run, round=0, device="d0", nll=1.0, tokens=1)), id="a measurement"
        ),
    ],
)
def test_what_is_no_answer_says_so_in_few_words(raw):
    _, store, _ = play([Arrived("d0", raw, 1.0), *(good(d) for d in DEVICES[1:])])
    (lost,) = lost_in(store)
    assert lost.code == ("E-FRAME-SIZE" if len(raw) > PLAN.frame_limit_bytes else "E-FRAME")
    assert lost.reason is not None
    assert "\x1b" not in lost.reason
    assert len(lost.reason) <= 500
    assert "A" * 20 not in lost.reason


INTEGERS = st.sampled_from([0, -1, 1, 2**63, -(2**63), 10**15]) | st.integers(-(2**63), 2**64 - 1)
NAMES = st.sampled_from(["d0", "d1", "stranger", "", "\x1b"]) | st.text(max_size=3)
COMMON = {"run": st.just(PLAN.run) | NAMES, "round": st.just(0) | INTEGERS, "device": NAMES}
ANSWERS = st.one_of(
    st.builds(frame.Contribution, **COMMON, payload=st.binary(max_size=400)),
    st.builds(frame.Step, **COMMON, body=st.binary(max_size=50), rung=INTEGERS),
    st.builds(frame.Refusal, **COMMON, code=st.text(max_size=9) | st.just("E-STALE"), reason=st.text(max_size=600)),
    st.builds(frame.Measurement, **COMMON, nll=st.floats(), tokens=INTEGERS),
    st.builds(frame.Probe, run=NAMES, round=INTEGERS, model=NAMES),
).map(frame.dump)


@pytest.mark.slow
@given(raws=st.lists(st.tuples(NAMES, ANSWERS | st.binary(max_size=40)), max_size=6))
def test_whatever_devices_send_the_round_ends_with_the_others(raws):
    script = [Arrived(device, raw, 1.0) for device, raw in raws]
    _, store, _ = play([*script, *(good(d) for d in DEVICES)])
    assert accepted_in(store)
    for lost in lost_in(store):
        assert lost.device in DEVICES
        assert lost.code in REGISTRY
        assert lost.reason is None or (len(lost.reason) <= 500 and lost.reason.isprintable())
    mailbox = Mailbox([*script, Arrived("d1", refusal("no text", -1, "d1"), 1.0)])
    with suppress(DataError, RoundError):
        Probes(mailbox, PLAN, DEVICES, lambda: 0.0).evaluate("base", -1, np.zeros(DIM, np.float32))


def test_invitations_name_the_last_accepted_round():
    store = MemoryStore()
    store.accepted["d1"] = 7
    _, _, mailbox = play([good(d) for d in DEVICES], store)
    assert {to: m.accepted for to, m in mailbox.sent} == {**dict.fromkeys(DEVICES), "d1": 7}


DOWN = compile_plan(
    make_recipe(
        {
            "round.rounds": 1,
            "stage": [{"kind": "weigh", "cap": 10}],
            "strategy": {"kind": "fedavg"},
            "downlink": [{"kind": "quantize", "bits": 4}],
        }
    ),
    Spec.of([("w", (300,), "float32")]),
    len(DEVICES),
    BUILT_IN,
)


def downloaded(device, number, code=""):
    """Make an answer to an invitation of the plan with a downlink: a contribution, or a refusal."""
    if code:
        raw = frame.dump(frame.Refusal(run=DOWN.run, round=number, device=device, code=code, reason=""))
        return Arrived(device, raw, 1.0)
    x = np.random.default_rng([number, int(device[1:])]).normal(size=300).astype(np.float32)
    turn = Turn(number, DOWN.public(number), derive(DOWN.key, device))
    payload, _ = DOWN.at(number).encode(x, {"loss_first": 2.0, "loss_last": 1.0}, 10.0, Memory(), turn)
    body = pack.pack(payload, DOWN.at(number).encoded)
    return Arrived(device, frame.dump(frame.Contribution(run=DOWN.run, round=number, device=device, payload=body)), 1.0)


@pytest.mark.slow
@pytest.mark.long
@settings(max_examples=examples(40))
@given(st.lists(st.lists(st.sampled_from(["answers", "answers", "stale", "NaN", "silent"]), min_size=6, max_size=6),
                min_size=2, max_size=6))  # fmt: skip
def test_devices_get_deltas_from_the_model_they_certainly_hold(rounds):
    """A device that answered holds that round's model, in met and abandoned rounds. A stale device holds nothing."""
    store, holds, shadows = MemoryStore(), {}, []
    mailbox = Mailbox([])
    loop = Coordinator(DOWN, DEVICES, mailbox, store, lambda e: None, lambda: 0.0, lambda n: bytes(32), DOWN.key)
    checkpoint = loop.begin(np.zeros(300, np.float32))
    for number, fates in enumerate(rounds):
        checkpoint = replace(checkpoint, unmet=0)
        shadows.append(checkpoint.down.model)
        codes = {"answers": "", "stale": "E-STALE", "NaN": "E-NAN"}
        told = [(d, codes[f]) for d, f in zip(DEVICES, fates, strict=True) if f != "silent"]
        mailbox.sent.clear()
        mailbox.script[:] = [downloaded(d, number, code) for d, code in told]
        before, at = dict(holds), len(store.events)
        after = loop.round(checkpoint)
        blobs = {vector.digest(b): b for b in mailbox.blobs}
        for device, letter in mailbox.sent:
            since = before.get(device, -1)
            reach = since >= checkpoint.down.anchor_round
            assert letter.model == shadows[number]
            ring = broadcast.deltas_since(checkpoint.down, since)
            assert len(ring) == (number - since if reach else 0)
            whole = msgspec.structs.replace(letter, base=None, deltas=())
            way = (
                msgspec.structs.replace(letter, base=shadows[since], deltas=tuple(d.digest for d in ring))
                if reach
                else whole
            )
            shorter = len(frame.dump(way)) + sum(len(d.blob) for d in ring) < len(frame.dump(whole)) + 4 * 300
            assert letter == (way if reach and shorter else whole)
            assert all(d in blobs for d in letter.deltas or (letter.model,))
        for e in store.events[at:]:
            if isinstance(e, events.Accepted):
                holds[e.device] = number
            elif isinstance(e, events.Lost) and e.code == "E-STALE":
                holds.pop(e.device, None)
        checkpoint = after
        assert store.held == {d: r for d, r in holds.items() if r >= checkpoint.down.anchor_round}


def test_a_crash_in_a_round_with_deltas_changes_nothing():
    def play_two(cut):
        store, mailbox = MemoryStore(), Mailbox([downloaded(d, 0) for d in DEVICES])
        loop = Coordinator(DOWN, DEVICES, mailbox, store, lambda e: None, lambda: 0.0, lambda n: bytes(32), DOWN.key)
        checkpoint = loop.round(loop.begin(np.zeros(300, np.float32)))
        answers = [downloaded(d, 1) for d in DEVICES]
        if cut:
            mailbox.script[:] = [*answers[:cut], CRASH]
            with pytest.raises(Crashed):
                loop.round(checkpoint)
            answers = answers[cut:]
            mailbox = Mailbox([])
            loop = Coordinator(
                DOWN, DEVICES, mailbox, store, lambda e: None, lambda: 0.0, lambda n: bytes(32), DOWN.key
            )
            checkpoint = store.load()
        mailbox.script[:] = answers
        return loop.round(checkpoint), store, mailbox.blobs

    calm, told, blobs = play_two(0)
    for cut in (1, 3, 5):
        stormy, again, same = play_two(cut)
        assert same == blobs
        assert again.events == told.events
        assert (again.held, stormy.down.ring) == (told.held, calm.down.ring)
        np.testing.assert_array_equal(stormy.state.params, calm.state.params)


def test_three_unmet_rounds_in_a_row_stop_the_run():
    store = MemoryStore()
    loop = federation(Mailbox([]), store)
    checkpoint = loop.begin(np.zeros(DIM, np.float32))
    checkpoint = loop.round(Checkpoint(0, checkpoint.state, unmet=1))
    assert checkpoint.unmet == 2
    with pytest.raises(RoundError, match=r"E-ROUND"):
        loop.round(Checkpoint(0, checkpoint.state, unmet=2))


MOST = 200_000  # A loop that does not end is stopped after this many frames.


class Endless(Exception):
    """Error of a loop that does not end."""


class Flooded(Mailbox):
    """Mailbox that delivers a script, and then rubbish of one device for ever, a hundred frames a second."""

    def __init__(self, script, device, raw=b"rubbish"):
        super().__init__(script)
        self._flood, self.read = (device, raw), 0

    def receive(self, timeout_s):
        if self.script:
            return super().receive(timeout_s)
        self.clock, self.read = self.clock + 0.01, self.read + 1
        if self.read > MOST:
            raise Endless
        return Arrived(self._flood[0], self._flood[1], self.clock)


@pytest.mark.slow
def test_a_round_ends_at_its_deadline_under_a_flood():
    """Five of six devices answer, the sixth floods."""
    store = MemoryStore()
    mailbox = Flooded([good(d) for d in DEVICES[:4]], DEVICES[5])
    loop = federation(mailbox, store)
    loop.round(loop.begin(np.zeros(20, np.float32)))
    assert loop.plan.sampling.deadline_s <= mailbox.clock < loop.plan.sampling.deadline_s + 1.0


@pytest.mark.slow
def test_frames_of_a_device_that_has_answered_are_not_written_down():
    written = []

    class Counting(MemoryStore):
        def append(self, item):
            written.append(item)
            super().append(item)

    mailbox = Flooded([good(d) for d in DEVICES[:4]], DEVICES[0], good(DEVICES[0]).frame)
    loop = federation(mailbox, Counting())
    loop.round(loop.begin(np.zeros(20, np.float32)))
    assert mailbox.read > 1000
    assert sum(isinstance(item, Arrived) for item in written) == 4
