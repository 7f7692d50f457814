"""Random schedules and lies end with the exact sum or a named end. Servers that lie to devices learn no update."""

from __future__ import annotations

from collections import Counter
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from long import examples
from schedules import KINDS, Run, drawn
from session import IDENTITIES, SID, Session

from edgewise.crypto import sign
from edgewise.secagg import messages, server, server_states
from edgewise.secagg.params import TrustPolicy


@pytest.mark.slow
@pytest.mark.long
@settings(max_examples=examples(150), deadline=None)
@given(
    st.integers(2, 8),
    st.dictionaries(st.integers(0, 60), st.sampled_from(KINDS), max_size=5),
    st.integers(0, 2**32 - 1),
)
def test_any_schedule_gives_the_exact_sum_or_a_named_end(n: int, faults: dict[int, str], seed: int) -> None:
    Run(n, faults, seed).play()


@pytest.mark.slow
def test_schedules_reach_both_ends_and_every_fault() -> None:
    """The test above is not vacuous: many of its schedules end with a sum in spite of their faults."""
    rng, ends, done = Random(3), Counter[tuple[type, bool]](), Counter[str]()
    for _ in range(200):
        run = drawn(rng)
        end = run.play()
        ends[type(end), bool(run.done)] += 1
        done += run.done
    assert ends[server_states.Released, True] >= 40
    assert ends[server_states.Aborted, True] >= 40
    assert set(done) == set(KINDS)
    assert all(count >= 10 for count in done.values())


@pytest.mark.slow
def test_schedules_on_a_sparse_graph() -> None:
    rng = Random(4)
    for seed in range(2):
        faults = {rng.randrange(9 * 70): rng.choice(KINDS) for _ in range(4)}
        run = Run(70, faults, seed, policy=TrustPolicy(0.05, 0.05))
        run.play()


@pytest.mark.parametrize("field", ["body", "head", "signature"])
def test_a_damaged_masked_update_costs_its_sender_its_place(field: str) -> None:
    s = Session(5)
    mail = _boxes(s)
    for i, (device, raw) in enumerate(mail):
        answer = messages.load_secagg_message(s.answer(device, raw))
        assert isinstance(answer, messages.MaskedMessage)
        if i == 2:
            value = getattr(answer, field)
            answer = msgspec.structs.replace(answer, **{field: value[:-1] + bytes([value[-1] ^ 1])})
        s.give(device, messages.dump(answer))
    assert s.refused == [("d002", "E-SECAGG-KEYS")]
    assert isinstance(s.server, server.Signing)
    assert "d002" not in s.server.survivors


def test_a_device_that_was_given_fewer_boxes_is_not_in_the_sum() -> None:
    """The server leaves it out, because its masks would not cancel with the others'."""
    s = Session(6)
    for i, (device, raw) in enumerate(_boxes(s)):
        boxes = messages.load_secagg_message(raw)
        assert isinstance(boxes, messages.BoxesMessage)
        if i == 0:
            raw = messages.dump(messages.BoxesMessage(boxes=dict(list(boxes.boxes.items())[1:])))
        s.give(device, s.answer(device, raw))
    assert s.refused == [("d000", "E-SECAGG-KEYS")]


def _boxes(s: Session) -> list[tuple[str, bytes]]:
    for device, raw in s.advertise():
        s.give(device, raw)
    return [letter for d, raw in s.close() for letter in s.give(d, s.answer(d, raw))]


@pytest.mark.parametrize("field", ["seal", "mask"])
def test_one_device_with_a_key_of_small_order_cannot_end_the_session(field: str) -> None:
    s = Session(5)
    for device, raw in s.advertise():
        if device == "d001":
            keys = messages.load_secagg_message(raw).keys  # type: ignore[union-attr]
            keys = messages.msgspec.structs.replace(keys, **{field: bytes(32)})
            signature = sign.sign(IDENTITIES[device].secret, keys.signed(SID, device))
            raw = messages.dump(
                messages.AdvertiseMessage(keys=messages.msgspec.structs.replace(keys, signature=signature))
            )
        s.give(device, raw)
    assert s.refused == [("d001", "E-KEY-AGREE")]


def lying_server(n: int, seed: int) -> tuple[Counter[str], int]:
    """Play a server that sends every device another roster, boxes, survivors and proofs, with fewer than a third of any
    roster on its side. Returns the ways to unmask devices, by counting shares, and the number that revealed any."""
    rng = Random(seed)
    s = Session(n, n_min=4, policy=TrustPolicy(0.33, 0.0))
    corrupt = set(s.devices[n - (n - 1) // 3 :])
    keys = messages.ordered_for_wire({d: messages.load_secagg_message(raw).keys for d, raw in s.advertise()})  # type: ignore[union-attr]
    split, careful = rng.random() < 0.5, rng.random() < 0.5
    hidden = rng.sample(s.devices, rng.randint(0, 2))  # These are missing from some rosters.
    rosters = [keys, {d: k for d, k in keys.items() if d not in hidden}]
    told = {d: rosters[rng.random() < 0.4] if split else keys for d in s.devices}

    def answer(device: str, message: messages.Message) -> messages.Message | None:
        raw = s.answer(device, messages.dump(message))
        return messages.load_secagg_message(raw) if raw else None

    dealt: dict[str, dict[str, messages.DealtBox]] = {}
    for d in s.devices:
        said = answer(d, messages.RosterMessage(keys=told[d]))
        if isinstance(said, messages.SharesMessage):
            every = messages.boxes_digest(said.boxes)
            dealt[d] = {
                v: messages.DealtBox(box=box, all=every, signature=said.signature) for v, box in said.boxes.items()
            }
    inside = []
    for d in s.devices:
        # Boxes that were dealt under another roster end a device's session: half of these servers send none.
        mine = {
            v: dealt[v][d]
            for v in told[d]
            if d in dealt.get(v, {}) and rng.random() < 0.97 and (not careful or told[v] is told[d])
        }
        if isinstance(answer(d, messages.BoxesMessage(boxes=mine)), messages.MaskedMessage):
            inside.append(d)
    lists = [tuple(inside), tuple(d for d in inside if d != rng.choice(inside))] if inside else []
    believes, signatures = {}, [dict[str, bytes](), dict[str, bytes]()]
    for d in inside:
        believes[d] = rng.randrange(2)
        said = answer(d, messages.SurvivorsMessage(devices=lists[believes[d]]))
        if isinstance(said, messages.ConsistentMessage):
            signatures[believes[d]][d] = said.signature
    for d in corrupt & set(inside):  # Devices on the server's side sign everything.
        for i, roster in enumerate(rosters):
            view = messages.roster_digest(SID, roster)
            for j in range(2):
                if i == 0 or rng.random() < 0.5:
                    digest = messages.survivors_digest(view, lists[j])
                    signatures[j][d] = sign.sign(IDENTITIES[d].secret, digest)
    seeds, pairs, whole, answered = Counter[str](), Counter[str](), set[str](), 0
    for d in inside:
        if d in corrupt:
            continue
        mixed = (
            {**signatures[1 - believes[d]], **signatures[believes[d]]}
            if rng.random() < 0.3
            else signatures[believes[d]]
        )
        revealed = answer(d, messages.ProofsMessage(signatures=messages.ordered_for_wire(mixed)))
        if isinstance(revealed, messages.RevealedMessage):
            answered += 1
            whole.add(d)
            seeds.update(revealed.seeds.keys())
            pairs.update(revealed.keys.keys())
    both = Counter[str]()
    for d in set(s.devices) - corrupt:
        helpers, threshold = len(corrupt & set(told[d])), s.policy.shape(len(told[d]))[1]
        if 3 * helpers < len(told[d]):
            both[d] = int((d in whole or seeds[d] + helpers >= threshold) and pairs[d] + helpers >= threshold)
    return both, answered


@pytest.mark.slow
@pytest.mark.long
@settings(max_examples=examples(150), deadline=None)
@given(st.integers(4, 8), st.integers(0, 2**32 - 1))
def test_a_lying_server_never_gets_both_secrets_of_an_honest_device(n: int, seed: int) -> None:
    both, _ = lying_server(n, seed)
    assert not sum(both.values())


@pytest.mark.slow
def test_lying_servers_are_answered_sometimes() -> None:
    """The test above is not vacuous: devices do reveal shares where their messages are consistent."""
    answered = [lying_server(4 + seed % 5, seed)[1] for seed in range(60)]
    assert sum(a > 0 for a in answered) >= 5
    assert sum(a == 0 for a in answered) >= 5
