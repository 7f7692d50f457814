"""Masks with one server: devices refuse a server that lies, and devices that lie cannot spoil a sum."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from session import IDENTITIES, SID, Session, fresh, registry

from edgewise.crypto import sign
from edgewise.secagg import client, messages, server
from edgewise.secagg.params import TrustPolicy


@pytest.mark.slow
def test_sparse_graph_with_drop_outs() -> None:
    s = Session(80, n_min=40, policy=TrustPolicy(0.05, 0.05, "curious"))
    k, t = s.policy.shape(80)
    assert k < 79
    end = s.play(lambda step, d: (step == 2 and d.endswith("7")) or (step == 4 and d.endswith("03")))
    assert isinstance(end, server.Released)
    assert len(end.survivors) == 72
    assert t > 2


def _to_masks(s: Session) -> list[tuple[str, bytes]]:
    """Play a session until all masked updates are with the server. Returns the survivor lists."""
    for device, raw in s.advertise():
        s.give(device, raw)
    mail = s.close()
    for _ in range(2):
        answers = [(d, s.answer(d, raw)) for d, raw in mail]
        mail = [letter for d, raw in answers for letter in s.give(d, raw)]
    return mail


@pytest.mark.parametrize(("n", "own"), [pytest.param(66, 0, marks=pytest.mark.slow), (9, 1)])
@pytest.mark.parametrize("junk", [False, True])
def test_a_device_goes_on_with_boxes_of_t_holders_and_not_with_one_fewer(n: int, own: int, junk: bool) -> None:
    """A device holds its own shares in the complete graph only. Boxes may be missing or fail to open."""
    s = Session(n, policy=TrustPolicy(0.02, 0.02))
    k, t = s.policy.shape(n)
    assert t < k == 8
    for device, raw in s.advertise():
        s.give(device, raw)
    shares = {d: messages.load_secagg_message(s.answer(d, raw)) for d, raw in s.close()}
    state, answers = s.clients["d000"], []
    assert isinstance(state, client.Sharing)
    for good in (t - own, t - own - 1):
        boxes = {}
        for d in state.keys:
            sent = shares[d]
            assert isinstance(sent, messages.SharesMessage)
            box = sent.boxes["d000"] if len(boxes) < good else bytes(messages.BOX_BYTES)
            boxes[d] = messages.DealtBox(box=box, all=messages.boxes_digest(sent.boxes), signature=sent.signature)
        some = boxes if junk else dict(list(boxes.items())[:good])
        _, raw = client.step(s.params, state, messages.dump(messages.BoxesMessage(boxes=some)), registry)
        answers.append(messages.load_secagg_message(raw))
    assert isinstance(answers[0], messages.MaskedMessage)
    assert len(answers[0].failed) == (k - t + own if junk else 0)
    assert answers[1] == messages.Abort(code="E-SECAGG-FEW")


def _code(raw: bytes) -> str:
    message = messages.load_secagg_message(raw)
    assert isinstance(message, messages.Abort), message
    return message.code


def test_devices_given_other_models_reveal_nothing() -> None:
    """A server that gives devices different models finds their keys signed for different sessions."""
    s = Session(5)
    odd = messages.secagg_session_id("task", 3, "another model", "config", bytes(32))
    s.sid = lambda d: odd if d == "d002" else SID
    for device, raw in s.advertise():
        s.give(device, raw)
    assert s.refused == [("d002", "E-SECAGG-KEYS")]
    # A server may skip this check, but the device itself refuses keys that are signed for another session.
    keys = {d: messages.load_secagg_message(raw).keys for d, raw in s.advertise()}  # type: ignore[union-attr]
    roster = messages.dump(messages.RosterMessage(keys=messages.ordered_for_wire(keys)))
    assert _code(s.answer("d002", roster)) == "E-SECAGG-KEYS"
    assert _code(s.answer("d000", roster)) == "E-SECAGG-KEYS"


def _roster(s: Session) -> dict[str, messages.SessionKeys]:
    return messages.ordered_for_wire({d: messages.load_secagg_message(raw).keys for d, raw in s.advertise()})  # type: ignore[union-attr]


@pytest.mark.parametrize("what", ["stranger", "swapped", "forged", "without me", "too few", "unsorted", "twice"])
def test_forged_rosters_are_refused(what: str) -> None:
    s = Session(5, n_min=4)
    keys, me = _roster(s), "d001"
    code = "E-SECAGG-KEYS"
    if what == "stranger":
        keys["zz"] = keys["d000"]
    elif what == "swapped":  # The server stands between two devices.
        keys["d002"] = msgspec.structs.replace(keys["d002"], seal=keys["d003"].seal)
    elif what == "forged":
        keys["d002"] = msgspec.structs.replace(keys["d002"], signature=bytes(64))
    elif what == "without me":
        del keys[me]
    elif what == "too few":
        keys, code = dict(list(keys.items())[:3]), "E-SECAGG-FEW"
    elif what == "unsorted":
        keys, code = dict(reversed(keys.items())), "E-FRAME"
    else:  # One device has two enrolled names.
        first = keys["d000"]
        signature = sign.sign(IDENTITIES["d002"].secret, first.signed(SID, "d002"))
        keys["d002"] = msgspec.structs.replace(first, signature=signature)
    assert _code(s.answer(me, messages.dump(messages.RosterMessage(keys=keys)))) == code


@pytest.mark.parametrize("what", ["without me", "too few", "stranger", "unsorted", "twice the same"])
def test_forged_survivor_lists_are_refused(what: str) -> None:
    s = Session(6, n_min=4)
    _to_masks(s)
    all_ = tuple(s.devices)
    lists = {
        "without me": (all_[1:], "E-SECAGG-SURVIVORS"),
        "too few": (all_[:3], "E-SECAGG-FEW"),  # t = 4 of 6
        "stranger": ((*all_, "zz"), "E-SECAGG-SURVIVORS"),
        "unsorted": (tuple(reversed(all_)), "E-FRAME"),
        "twice the same": ((*all_[:5], all_[4]), "E-FRAME"),
    }
    devices, code = lists[what]
    assert _code(s.answer("d000", messages.dump(messages.SurvivorsMessage(devices=devices)))) == code


def test_two_survivor_lists_cannot_both_be_unmasked() -> None:
    """A malicious server tells half of the devices that d005 dropped out, to get its update alone."""
    s = Session(6)
    _to_masks(s)
    all_, five = tuple(s.devices), tuple(s.devices[:5])
    signed: dict[str, bytes] = {}
    for i, d in enumerate(s.devices):
        told = all_ if i % 2 or d == "d005" else five
        signed[d] = messages.load_secagg_message(
            s.answer(d, messages.dump(messages.SurvivorsMessage(devices=told)))
        ).signature  # type: ignore[union-attr]
    shown = messages.dump(messages.ProofsMessage(signatures=messages.ordered_for_wire(signed)))
    assert {_code(s.answer(d, shown)) for d in s.devices} == {"E-SECAGG-SURVIVORS"}


def test_only_one_answer_and_never_both_shares() -> None:
    s = Session(5)
    mail = _to_masks(s)
    proofs = [letter for d, raw in mail for letter in s.give(d, s.answer(d, raw))]
    for d, raw in proofs:
        revealed = messages.load_secagg_message(s.answer(d, raw))
        assert isinstance(revealed, messages.RevealedMessage)
        assert not set(revealed.seeds) & set(revealed.keys)
        assert set(revealed.seeds) | set(revealed.keys) == set(s.devices)
        assert s.answer(d, raw) == b""  # The state is gone.
        assert isinstance(s.clients[d], client.Finished)


def test_a_masked_update_looks_random() -> None:
    s = Session(4, dim=20_000, bits=8)
    s.xs = {d: np.zeros(s.dim, np.uint32) for d in s.devices}
    for device, raw in s.advertise():
        s.give(device, raw)
    mail = [(d, s.answer(d, raw)) for d, raw in s.close()]
    boxes = [letter for d, raw in mail for letter in s.give(d, raw)]
    masked = messages.load_secagg_message(s.answer(*boxes[0]))
    assert isinstance(masked, messages.MaskedMessage)
    counts = np.bincount(np.frombuffer(masked.body, np.uint8), minlength=256)
    assert float(((counts - s.dim / 256) ** 2 / (s.dim / 256)).sum()) < 360


def test_no_secret_is_ever_printed_or_sent_in_the_clear() -> None:
    s = Session(4)
    seen: list[str] = []
    for device, raw in s.advertise():
        seen.append(repr(s.clients[device]))
        s.give(device, raw)
    mail = s.close()
    wire: list[bytes] = []
    for step in range(4):
        answers = []
        for d, raw in mail:
            answers.append((d, s.answer(d, raw)))
            seen += [repr(s.clients[d]), repr(s.server)]
            wire += [answers[-1][1]] if step < 2 else []
        mail = [letter for d, raw in answers for letter in s.give(d, raw)]
    secrets = [secret for d in s.devices for secret in (*fresh(d), IDENTITIES[d].secret)]
    text, sent = "".join(seen), b"".join(wire)
    for secret in secrets:
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text
        assert secret not in sent
    for d in s.devices:  # The update itself does not leave either.
        assert s.xs[d].astype("<u4").tobytes() not in sent


def test_the_registry_is_who_may_take_part() -> None:
    assert registry("zz") is None
    s = Session(3)
    [(_, raw), *_] = s.advertise()
    s.give("zz", raw)
    s.give("d001", raw)  # The device sends another one's keys under its own name.
    assert s.refused == [("zz", "E-SECAGG-KEYS"), ("d001", "E-SECAGG-KEYS")]
