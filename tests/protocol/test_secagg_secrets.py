"""No printed text and no message shows a secret, over every state and message of a whole session."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from session import IDENTITIES, ROOT, SID, Session, fresh, registry

from edgewise.core import frame
from edgewise.core.keys import derive
from edgewise.core.memory import Memory
from edgewise.crypto import agree
from edgewise.drivers.workers import jobs
from edgewise.engine import device_state as states
from edgewise.secagg import client, events, messages, server, two_server
from edgewise.secagg.params import Floor, Params, TrustPolicy
from edgewise.secagg.secrets import expand_mask, shamir_coins


def _spellings(secret: bytes) -> tuple[str, ...]:
    """List the ways in which printing shows bytes."""
    return secret.hex(), repr(secret)[2:-1], str(list(secret))[1:-1]


def test_no_state_and_no_message_prints_a_secret() -> None:
    s = Session(4)
    shown: list[str] = []
    secrets = [IDENTITIES[d].secret for d in s.devices]
    for d in s.devices:
        secrets += fresh(d)
        secrets += [s.xs[d].astype("<u4").tobytes(), s.hs[d].astype("<u8").tobytes()]
    mail, kinds = [(d, raw) for d, raw in s.advertise()], set()
    shown += [repr(state) for state in s.clients.values()]
    letters = [letter for d, raw in mail for letter in s.give(d, raw)] + s.close()
    while not s.over:
        after = []
        for d, raw in letters:
            answer = s.answer(d, raw)
            for message in (messages.load_secagg_message(raw), messages.load_secagg_message(answer)):
                kinds.add(type(message))
                shown += [repr(message), str(message), f"{message}"]
                if isinstance(message, messages.RevealedMessage):
                    secrets += [*message.seeds.values(), *message.keys.values()]
            held = getattr(s.clients[d], "held", {})
            secrets += [share for pair in held.values() for share in pair]
            event = events.SecAggReceived(d, answer)
            state = states.InSecAgg(0, s.clients[d], states.Idle(d, states.After(None, Memory())), "", b"")
            kept = states.session_of(state)
            shown += [
                repr(state),
                repr(msgspec.msgpack.decode(kept, type=states._Kept)),
                repr(jobs.Handle(device=d, frame=raw)),
                repr(jobs.Handled(frame=answer)),
                repr(frame.Step(run="run", round=0, device=d, body=answer)),
            ]
            after += s.give(d, answer)
            shown += [
                repr(s.clients[d]),
                str(s.clients[d]),
                repr(s.server),
                repr(event),
                repr(getattr(s.clients[d], "own", "")),
            ]
        letters = after
    assert isinstance(s.server, server.Released)
    assert len(kinds) == 8  # All kinds but Advertise, whose parts are on the roster, and Abort.
    text = "\n".join(shown)
    assert len(secrets) > 80
    for secret in secrets:
        for spelling in _spellings(secret):
            assert spelling not in text
    for d in s.devices:
        assert str(s.xs[d].tolist()) not in text
        assert str(s.xs[d]) not in text


def test_a_search_like_this_would_find_one() -> None:
    """The test above fails for a leaking state."""
    share = derive(ROOT, "share") + b"\1"

    class Loud(msgspec.Struct):
        seeds: dict[str, bytes]

    assert any(spelling in repr(Loud({"d": share})) for spelling in _spellings(share))
    quiet = messages.RevealedMessage(seeds={"d": share}, keys={}, signature=bytes(64))
    assert not any(spelling in repr(quiet) for spelling in _spellings(share))


def test_a_session_that_has_ended_keeps_no_secret() -> None:
    s = Session(4)
    s.play()
    for d in s.devices:
        assert isinstance(s.clients[d], client.Finished)
        kept = client.save(s.clients[d])
        assert len(kept) < 64
        assert not any(secret in kept for secret in fresh(d))


def test_an_aborted_session_keeps_no_secret() -> None:
    s = Session(4)
    s.advertise()
    s.answer("d000", b"")
    assert client.save(s.clients["d000"]) == client.save(client.Aborted(device="d000", code="E-FRAME"))


def test_masks_of_another_model_do_not_cancel() -> None:
    """Devices that received different models derive different pairwise masks, even if nobody checked a signature."""
    models = ["model", "another model"]
    sids = [messages.secagg_session_id("task", 3, model, "config", bytes(32)) for model in models]
    sums = []
    for other in sids:
        total = np.zeros(5, np.uint64)
        ends = {"d000": sids[0], "d001": other}
        keys = {d: client.start(_params(), ends[d], d, IDENTITIES[d].secret, np.zeros(5, np.uint32),
                                np.zeros(0, np.uint64), derive(ROOT, d)) for d in ends}  # fmt: skip
        secret = {d: client.agree.AgreementSecret(keys[d][0].own.mask) for d in ends}  # type: ignore[union-attr]
        public = {d: client.agree.public_half(keys[d][0].own.mask) for d in ends}  # type: ignore[union-attr]
        for d, peer in (("d000", "d001"), ("d001", "d000")):
            hidden = client.Hidden(_params())
            seed = client.pair_seed(secret[d], public[peer], ends[d], d, peer)
            hidden.mask(client.pairwise_masks(d, [(peer, seed)]), ends[d])
            total += hidden.body
        sums.append(total % (1 << 20))
    assert not sums[0].any()
    assert sums[1].any()


def _params() -> Params:
    return Params(TrustPolicy(), 2, 20, 5, 0)


@pytest.mark.parametrize(
    ("floor", "allowed"),
    [
        (Floor(), True), (Floor(n_min=10), True), (Floor(n_min=11), False), (Floor(corrupt=0.1), True),
        (Floor(corrupt=0.2), False), (Floor(server="malicious"), True),
    ],
)  # fmt: skip
def test_a_device_takes_no_part_below_its_owners_floor(floor: Floor, allowed: bool) -> None:
    params = Params(TrustPolicy(), 10, 20, 5, 0)
    state, raw = client.start(params, SID, "d000", IDENTITIES["d000"].secret, np.ones(5, np.uint32),
                              np.zeros(0, np.uint64), derive(ROOT, "e"), floor)  # fmt: skip
    if allowed:
        assert isinstance(state, client.Advertised)
    else:
        assert state == client.Aborted(device="d000", code="E-SECAGG-POLICY")
        assert messages.load_secagg_message(raw) == messages.Abort(code="E-SECAGG-POLICY")
        assert client.step(params, state, raw, registry) == (state, b"")
    assert not Floor(server="malicious").allows(Params(TrustPolicy(server="curious"), 10, 20, 5, 0))
    assert not Floor().allows(Params(TrustPolicy(), 1, 20, 5, 0))


def _started(sid: bytes, device: str) -> client.Advertised:
    """The entropy is the same each time, as after a restored snapshot."""
    state, _ = client.start(_params(), sid, device, IDENTITIES[device].secret, np.ones(5, np.uint32),
                            np.zeros(0, np.uint64), derive(ROOT, "repeated"))  # fmt: skip
    assert isinstance(state, client.Advertised)
    return state


def test_entropy_that_repeats_gives_no_key_twice() -> None:
    """No key repeats in two sessions, on two devices, or for two purposes of one session."""
    other = messages.secagg_session_id("run", 4, "model", "config", bytes(32))
    drawn = [_started(sid, device).own for sid in (SID, other) for device in ("d000", "d001")]
    secrets = [getattr(own, field) for own in drawn for field in ("seal", "mask", "seed", "shares")]
    assert len(set(secrets)) == 16
    reports = [two_server.split(_params(), sid, device, IDENTITIES[device].secret, agree.public_half(bytes(range(32))),
                                agree.public_half(bytes(range(32))), np.ones(5, np.uint32), np.zeros(0, np.uint64),
                                derive(ROOT, "repeated"))
               for sid in (SID, other) for device in ("d000", "d001")]  # fmt: skip
    assert len({bytes(report[5:21]) for report in reports}) == 4  # ids
    assert len({bytes(report[-29:-16]) for report in reports}) == 4  # updates, masked and sealed


def test_a_second_roster_seals_nothing_under_an_old_key() -> None:
    """A device answers one roster. If it ever answered two (a restored snapshot), their boxes, shares and masks would
    have nothing in common."""
    s = Session(5)
    keys = messages.ordered_for_wire({d: messages.load_secagg_message(raw).keys for d, raw in s.advertise()})  # type: ignore[union-attr]
    before, after = s.clients["d000"], []
    for devices in (s.devices, s.devices[:4]):
        roster = messages.dump(messages.RosterMessage(keys={d: keys[d] for d in devices}))
        state, raw = client.step(s.params, before, roster, registry)
        assert isinstance(state, client.Sharing)
        pairs = {d: client.pair_seed(agree.AgreementSecret(state.own.mask), keys[d].mask, state.roster, "d000", d)
                 for d in state.keys}  # fmt: skip
        after.append((state.opening, pairs, messages.load_secagg_message(raw).boxes))  # type: ignore[union-attr]
    for one, two in zip(*after, strict=True):
        assert len(two) == 3
        assert all(one[d] != two[d] for d in two)
        assert len({*one.values(), *two.values()}) == 7
    own, roster = before.own, [messages.roster_digest(SID, {d: keys[d] for d in s.devices[:n]}) for n in (5, 4)]  # type: ignore[union-attr]
    assert len({shamir_coins(own.shares, r, kind) for r in roster for kind in ("seed", "key")}) == 4
    assert len({expand_mask(own.seed, r, 1)[0].tobytes() for r in roster}) == 2
