"""Messages that a device or a server must refuse, each in a recorded session (``secagg_sessions``), with the code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from secagg_sessions import KINDS
from session import IDENTITIES, ROOT, SID, fresh, registry
from session import signed as signed_by

from edgewise.core.keys import derive
from edgewise.crypto import agree, seal, shamir, sign
from edgewise.secagg import client, messages, secrets
from edgewise.secagg.messages import (
    Abort,
    BoxesMessage,
    MaskedMessage,
    ProofsMessage,
    RevealedMessage,
    RosterMessage,
    SessionKeys,
    SharesMessage,
    SurvivorsMessage,
)
from edgewise.secagg.params import Params, TrustPolicy

OTHER = messages.secagg_session_id("run", 3, "another model", "config", bytes(32))
replace, pack = msgspec.structs.replace, msgspec.msgpack.encode


class Book:
    """A recorded session, to be looked up: what each device sent, the keys, the roster's digest."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.sent: dict[tuple[str, str], Any] = {}
        for line in record["lines"]:
            if "from" in line and "hex" in line:
                message = messages.load_secagg_message(bytes.fromhex(line["hex"]))
                self.sent[str(message.__struct_config__.tag), line["from"]] = message
        self.keys = {d: m.keys for (kind, d), m in self.sent.items() if kind == "advertise"}
        self.roster = messages.roster_digest(SID, self.keys)
        self.names = tuple(self.keys)
        self.told = [bytes.fromhex(line["hex"]) for line in record["lines"] if "d000" in line.get("to", ())]

    def signed(self, device: str, keys: SessionKeys, sid: bytes = SID) -> SessionKeys:
        """Keys with the signature of an enrolled device."""
        return replace(keys, signature=sign.sign(IDENTITIES[device].secret, keys.signed(sid, device)))

    def proofs(self, survivors: Sequence[str], who: Sequence[str], roster: bytes = b"") -> ProofsMessage:
        """Signatures on a list of survivors."""
        said = messages.survivors_digest(roster or self.roster, survivors)
        return ProofsMessage(signatures={d: sign.sign(IDENTITIES[d].secret, said) for d in who})


def _unsorted(table: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(table.items()))


def _rows(session: str, made: Sequence[tuple[Any, ...]], names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for name, *rest in made:
        row = {"name": name, "session": session, **dict(zip(names, rest, strict=True))}
        raw = row.pop("message")
        rows.append({**row, "hex": (raw if isinstance(raw, bytes) else messages.dump(raw)).hex()})
    return rows


def device_rejects(records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """For d000, which was given the server's recorded messages before ``step``: it answers with an abort."""
    b = Book(records["all stay"])
    keys, names, boxes = b.keys, b.names, messages.load_secagg_message(b.told[1]).boxes  # type: ignore[union-attr]
    junk, broken, word = bytes(messages.BOX_BYTES), bytes(64), b.keys["d001"].commitment
    roster, survivors, proofs = b.told[0], b.told[2], messages.load_secagg_message(b.told[3]).signatures  # type: ignore[union-attr]

    def at(device: str, sid: bytes = SID, **changed: bytes) -> RosterMessage:
        """The roster with other keys of one device, well signed by it."""
        return RosterMessage(keys={**keys, device: b.signed(device, replace(keys[device], **changed), sid)})

    other = agree.public_half(derive(ROOT, "fresh"))
    unknown = replace(keys["d001"], seal=other, mask=agree.public_half(derive(ROOT, "fresh too")))
    unknown = replace(unknown, signature=sign.sign(derive(ROOT, "stranger"), unknown.signed(SID, "zz")))
    flipped = {**proofs, "d001": bytes([proofs["d001"][0] ^ 1]) + proofs["d001"][1:]}
    dealt = messages.shares_digest(messages.roster_digest(SID, dict(list(keys.items())[:3])), "d001", boxes["d001"].all)
    elsewhere = replace(boxes["d001"], signature=sign.sign(IDENTITIES["d001"].secret, dealt))
    first = messages.dump(SurvivorsMessage(devices=names))
    made = [
        ("roster without me", 1, RosterMessage(keys={d: k for d, k in keys.items() if d != "d000"}), "E-SECAGG-KEYS"),
        ("another sealing key of mine, signed by me", 1, at("d000", seal=other), "E-SECAGG-KEYS"),
        ("another mask key of mine, signed by me", 1, at("d000", mask=other), "E-SECAGG-KEYS"),
        ("a mask key of another device", 1,
         RosterMessage(keys={**keys, "d001": replace(keys["d001"], mask=keys["d002"].mask)}), "E-SECAGG-KEYS"),
        ("a key of another device, well signed", 1, at("d001", seal=keys["d002"].seal), "E-SECAGG-KEYS"),
        ("one key for two purposes, well signed", 1, at("d001", mask=keys["d001"].seal), "E-SECAGG-KEYS"),
        ("my keys under another name", 1, at("d001", seal=keys["d000"].seal, mask=keys["d000"].mask), "E-SECAGG-KEYS"),
        ("another commitment", 1, RosterMessage(keys={**keys, "d001": replace(keys["d001"], commitment=bytes(32))}),
         "E-SECAGG-KEYS"),
        ("keys signed for another model", 1, at("d001", OTHER), "E-SECAGG-KEYS"),
        ("a stranger's keys", 1, RosterMessage(keys={**keys, "zz": unknown}), "E-SECAGG-KEYS"),
        ("keys under a stranger's name", 1, RosterMessage(keys={**keys, "zz": keys["d001"]}), "E-SECAGG-KEYS"),
        ("a sealing key that agrees with nobody", 1, at("d001", seal=bytes(32)), "E-KEY-AGREE"),
        ("roster of one", 1, RosterMessage(keys={"d000": keys["d000"]}), "E-SECAGG-FEW"),
        ("roster of one, with keys that nobody signed", 1,
         RosterMessage(keys={"d000": replace(keys["d000"], signature=bytes(64))}), "E-SECAGG-FEW"),
        ("a sealing key that agrees with nobody, not signed", 1,
         RosterMessage(keys={**keys, "d001": replace(keys["d001"], seal=bytes(32))}), "E-SECAGG-KEYS"),
        ("a name that is no UTF-8", 1, roster.replace(b"\xa4d001", b"\xa4d\xff01", 1), "E-FRAME"),
        ("a signature of 63 bytes", 1, RosterMessage(keys={**keys, "d001": replace(keys["d001"], signature=bytes(63))}),
         "E-FRAME"),
        ("a commitment of 33 bytes", 1, RosterMessage(keys={**keys, "d001": replace(keys["d001"],
            commitment=bytes(33))}),
         "E-FRAME"),
        ("roster not sorted", 1, RosterMessage(keys=_unsorted(keys)), "E-FRAME"),
        ("a device twice", 1, roster.replace(b"\xa4d002", b"\xa4d001", 1), "E-FRAME"),
        ("the type last", 1, pack({"keys": keys, "type": "roster"}), "E-FRAME"),
        ("an unknown field", 1, pack({"type": "roster", "keys": keys, "more": 1}), "E-FRAME"),
        ("a missing field", 1, pack({"type": "roster"}), "E-FRAME"),
        ("an unknown type", 1, pack({"type": "list", "keys": keys}), "E-FRAME"),
        ("the fields of keys in another order", 1, pack({"type": "roster", "keys": {
            d: {f: getattr(k, f) for f in ("mask", "seal", "commitment", "signature")} for d, k in keys.items()}}),
         "E-FRAME"),
        ("text in place of bytes", 1, pack({"type": "roster", "keys": {"d000": {
            "seal": "s" * 32, "mask": "m" * 32, "commitment": "c" * 32, "signature": "s" * 64}}}), "E-FRAME"),
        ("a key of 31 bytes", 1, RosterMessage(keys={**keys, "d001": replace(keys["d001"], seal=bytes(31))}),
            "E-FRAME"),
        ("a name of 257 characters", 1, RosterMessage(keys={**keys, "z" * 257: keys["d001"]}), "E-FRAME"),
        ("a trailing byte", 1, roster + b"\x00", "E-FRAME"),
        ("a longer length prefix", 1, roster.replace(b"\xa4type", b"\xd9\x04type", 1), "E-FRAME"),
        ("nothing", 1, b"", "E-FRAME"),
        ("the survivors too early", 1, first, "E-SECAGG-ORDER"),
        ("a message that only devices send", 1, b.sent["shares", "d001"], "E-SECAGG-ORDER"),
        ("no boxes", 2, BoxesMessage(boxes={}), "E-SECAGG-FEW"),
        ("exactly t - 2 boxes", 2, BoxesMessage(boxes={"d001": boxes["d001"]}), "E-SECAGG-FEW"),
        ("a stranger's box", 2, BoxesMessage(boxes={**boxes, "zz": boxes["d001"]}), "E-SECAGG-KEYS"),
        ("a box from myself", 2, BoxesMessage(boxes={"d000": boxes["d001"], **boxes}), "E-SECAGG-KEYS"),
        ("a short box", 2, BoxesMessage(boxes={"d001": replace(boxes["d001"], box=junk[:-1])}), "E-FRAME"),
        ("boxes not sorted", 2, BoxesMessage(boxes=_unsorted(boxes)), "E-FRAME"),
        ("boxes that do not open", 2, BoxesMessage(boxes={d: replace(v, box=junk) for d, v in boxes.items()}),
         "E-SECAGG-FEW"),
        ("boxes of each other", 2, BoxesMessage(boxes={
            d: replace(boxes[d], box=boxes[e].box) for d, e in zip(boxes, ("d002", "d003", "d001"), strict=True)}),
         "E-SECAGG-FEW"),
        ("boxes with other digests", 2, BoxesMessage(boxes={
            d: replace(v, box=v.box[:-1] + bytes([v.box[-1] ^ 1])) for d, v in boxes.items()}), "E-SECAGG-FEW"),
        ("a box that its sender has not signed", 2,
         BoxesMessage(boxes={**boxes, "d001": replace(boxes["d001"], signature=broken)}), "E-SECAGG-KEYS"),
        ("a box signed by another device", 2, BoxesMessage(boxes={**boxes, "d001": boxes["d002"]}), "E-SECAGG-KEYS"),
        ("a signature on other boxes", 2, BoxesMessage(boxes={**boxes, "d001": replace(boxes["d001"], all=word)}),
         "E-SECAGG-KEYS"),
        ("a box dealt under another roster", 2, BoxesMessage(boxes={**boxes, "d001": elsewhere}), "E-SECAGG-KEYS"),
        ("the roster again", 2, roster, "E-SECAGG-ORDER"),
        ("survivors without me", 3, SurvivorsMessage(devices=names[1:]), "E-SECAGG-SURVIVORS"),
        ("too few survivors", 3, SurvivorsMessage(devices=names[:2]), "E-SECAGG-FEW"),
        ("a survivor nobody knows", 3, SurvivorsMessage(devices=(*names, "zz")), "E-SECAGG-SURVIVORS"),
        ("survivors not sorted", 3, SurvivorsMessage(devices=names[::-1]), "E-FRAME"),
        ("a name of 256 characters outside the basic plane", 3,
         SurvivorsMessage(devices=(*names, "\N{DOLPHIN}" * 256)), "E-SECAGG-SURVIVORS"),
        ("a name of 257 characters outside the basic plane", 3,
         SurvivorsMessage(devices=(*names, "\N{DOLPHIN}" * 257)), "E-FRAME"),
        ("names in the order of UTF-16 code units", 3,
         SurvivorsMessage(devices=(*names, "\N{DOLPHIN}", "\N{FULLWIDTH TILDE}")), "E-FRAME"),
        ("a survivor twice", 3, SurvivorsMessage(devices=("d000", *names)), "E-FRAME"),
        ("the boxes again", 3, b.told[1], "E-SECAGG-ORDER"),
        ("proofs before survivors", 3, b.proofs(names, names), "E-SECAGG-ORDER"),
        ("proofs of another list", 4, b.proofs(names[:3], names), "E-SECAGG-SURVIVORS"),
        ("proofs of another roster", 4, b.proofs(names, names, bytes(32)), "E-SECAGG-SURVIVORS"),
        ("too few proofs", 4, b.proofs(names, names[:2]), "E-SECAGG-FEW"),
        ("proofs of a stranger", 4, ProofsMessage(signatures={**b.proofs(names, names[:2]).signatures,
            "zz": bytes(64)}),
         "E-SECAGG-FEW"),
        ("one bad proof among the first", 4, ProofsMessage(signatures=flipped), "E-SECAGG-SURVIVORS"),
        ("a proof of 63 bytes", 4, ProofsMessage(signatures={**proofs, "d001": proofs["d001"][:63]}), "E-FRAME"),
        ("proofs not sorted", 4, ProofsMessage(signatures=_unsorted(proofs)), "E-FRAME"),
        ("a second survivor list", 4, SurvivorsMessage(devices=names[:3]), "E-SECAGG-ORDER"),
        ("the survivors again", 4, survivors, "E-SECAGG-ORDER"),
    ]  # fmt: skip
    rows = _rows("all stay", made, ("step", "message", "code"))

    m = Book(records["a minimum above the threshold"])
    three = {d: m.keys[d] for d in m.names[:3]}
    made = [
        ("a roster below the minimum", 1, RosterMessage(keys=three), "E-SECAGG-FEW"),
        ("survivors below the minimum", 3, SurvivorsMessage(devices=m.names[:3]), "E-SECAGG-FEW"),
    ]
    rows += _rows("a minimum above the threshold", made, ("step", "message", "code"))

    e = Book(records["one leaves before its shares"])
    made = [("a survivor with whom I share no mask", 3, SurvivorsMessage(devices=e.names), "E-SECAGG-SURVIVORS")]
    rows += _rows("one leaves before its shares", made, ("step", "message", "code"))

    u = Book(records["one leaves before its update"])
    alive = messages.load_secagg_message(u.told[2]).devices  # type: ignore[union-attr]
    made = [("a proof of a holder that is no survivor", 4, u.proofs(alive, ("d000", "d001", "d002")), "E-SECAGG-FEW")]
    rows += _rows("one leaves before its update", made, ("step", "message", "code"))

    g = Book(records["a sparse graph"])
    roster, all_ = _digest(records["a sparse graph"]), list(records["a sparse graph"]["devices"])
    near = client.graph.mask_neighbours(roster, all_, 8)["d000"]
    alive = messages.load_secagg_message(g.told[2]).devices  # type: ignore[union-attr]
    far = [d for d in alive if d not in (*near, "d000")]
    made = [("proofs of devices that are no neighbours", 4, g.proofs(
        alive, sorted([*[d for d in near if d in alive][:5], *far[:5], "d000"]), roster),
             "E-SECAGG-FEW"),
            ("a box fewer than t", 2,
                BoxesMessage(boxes=dict(list(messages.load_secagg_message(g.told[1]).boxes.items())[:5])),  # type: ignore[union-attr]
             "E-SECAGG-FEW")]  # fmt: skip
    rows += _rows("a sparse graph", made, ("step", "message", "code"))
    crowd = _roster(records["no graph of so many"])
    rows += _rows("no graph of so many", [("no graph of so many", 1, crowd, "E-SECAGG-FEW")],
                  ("step", "message", "code"))  # fmt: skip
    small = at("d001", mask=bytes(32))
    made = [("a mask key that agrees with nobody", 2, _boxes_of(small), "E-KEY-AGREE")]
    told = [messages.dump(small).hex()]
    return rows + [{**row, "told": told} for row in _rows("all stay", made, ("step", "message", "code"))]


def _roster(record: dict[str, Any]) -> RosterMessage:
    """The keys of all devices of a session, also of one that is recorded by digests."""
    p = record["params"]
    params = Params(TrustPolicy(p["corrupt"], p["dropout"], p["server"]), p["n_min"], p["bits"], p["dim"], p["heads"])
    keys = {}
    for d, v in record["devices"].items():
        _, raw = client.advertise(params, SID, d, bytes.fromhex(v["identity"]), bytes.fromhex(v["entropy"]))
        message = messages.load_secagg_message(raw)
        assert isinstance(message, messages.AdvertiseMessage)
        keys[d] = message.keys
    return RosterMessage(keys=keys)


def _boxes_of(roster: RosterMessage) -> BoxesMessage:
    """Boxes that the others send to d000. d001 sees that its own keys are not there."""
    raw, junk = messages.dump(roster), {"d000": bytes(messages.BOX_BYTES)}
    boxes = {
        "d001": _dealt(
            signed_by("d001", messages.roster_digest(SID, roster.keys), SharesMessage(boxes=junk, signature=b""))
        )
    }
    for d in ("d002", "d003"):
        update = np.zeros(6, np.uint32), np.zeros(1, np.uint64)
        params = Params(TrustPolicy(), 2, 20, 6, 1)
        state, _ = client.start(params, SID, d, IDENTITIES[d].secret, *update, derive(ROOT, "entropy", d))
        _, answer = client.step(params, state, raw, registry)
        boxes[d] = _dealt(messages.load_secagg_message(answer))
    return BoxesMessage(boxes=boxes)


def _dealt(shares: Any) -> messages.DealtBox:
    """Shares of somebody that d000 gets."""
    every = messages.boxes_digest(shares.boxes)
    return messages.DealtBox(box=shares.boxes["d000"], all=every, signature=shares.signature)


def device_answers(records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of d000 to messages that are not the recorded ones, and that it must accept all the same."""
    b = Book(records["all stay"])
    proofs = messages.load_secagg_message(b.told[3]).signatures  # type: ignore[union-attr]
    revealed = messages.dump(b.sent["revealed", "d000"]).hex()
    made = [
        ("a bad proof after enough good ones", 4, ProofsMessage(signatures={**proofs, "d003": bytes(64)}), revealed),
        (
            "a stranger's proof beside enough good ones",
            4,
            ProofsMessage(signatures={"a": bytes(64), **proofs}),
            revealed,
        ),
    ]
    rows = _rows("all stay", made, ("step", "message", "answer"))
    params = Params(TrustPolicy(), 2, 20, 6, 1)
    keys = replace(b.keys["d001"], mask=bytes(32))
    roster = RosterMessage(keys={**b.keys, "d001": b.signed("d001", keys)})
    rows += _answered("all stay", "a mask key that agrees with nobody, which counts with the boxes", params, roster)
    g, p = _roster(records["a sparse graph"]), Params(TrustPolicy(0.02, 0.02), 20, 20, 6, 1)
    for device in list(g.keys)[1:]:
        changed = b.signed(device, replace(g.keys[device], seal=bytes(32)))
        roster = RosterMessage(keys={**g.keys, device: changed})
        _, near, _ = client.roster_neighbours(p, SID, roster.keys)
        if device not in near["d000"]:
            break
    name = "a sealing key that agrees with nobody, of a device that is no neighbour"
    return rows + _answered("a sparse graph", name, p, roster)


def _answered(session: str, name: str, params: Params, roster: RosterMessage) -> list[dict[str, Any]]:
    update = np.zeros(params.dim, np.uint32), np.zeros(params.heads, np.uint64)
    state, _ = client.start(params, SID, "d000", IDENTITIES["d000"].secret, *update, derive(ROOT, "entropy", "d000"))
    _, answer = client.step(params, state, messages.dump(roster), registry)
    assert isinstance(messages.load_secagg_message(answer), SharesMessage)
    return _rows(session, [(name, 1, roster, answer.hex())], ("step", "message", "answer"))


def server_rejects(records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """For a server that was given the recorded messages of earlier steps, and then those of ``before``: it refuses the
    message, and reports its device with the code; without a code it ignores it."""
    b = Book(records["all stay"])
    sent, names, secret = b.sent, b.names, IDENTITIES["d000"].secret
    keys, shares, masked, said, told = (sent[kind, "d000"] for kind in KINDS)
    fields = ("step", "from", "before", "message", "code")

    def signed(sid: bytes = SID, **changed: bytes) -> messages.AdvertiseMessage:
        return messages.AdvertiseMessage(keys=b.signed("d000", replace(keys.keys, **changed), sid))

    boxes = messages.load_secagg_message(b.told[1]).boxes  # type: ignore[union-attr]
    fewer = messages.dump(BoxesMessage(boxes={d: boxes[d] for d in names[1:3]}))
    damaged = messages.dump(
        BoxesMessage(boxes={**boxes, "d001": replace(boxes["d001"], box=bytes(messages.BOX_BYTES))})
    )

    def again(boxes: bytes = b.told[1], roster: bytes = b.roster, **changed: Any) -> MaskedMessage:
        m = replace(masked, **changed)
        digest = messages.masked_digest(roster, "d000", messages.boxes_message_digest(boxes), m.body, m.head, m.failed)
        return replace(m, signature=sign.sign(secret, digest))

    def deals(boxes: dict[str, bytes], roster: bytes = b.roster) -> SharesMessage:
        return signed_by("d000", roster, SharesMessage(boxes=boxes, signature=b""))

    def tells(
        seeds: dict[str, bytes], keys: dict[str, bytes] | None = None, roster: bytes = b.roster
    ) -> RevealedMessage:
        return signed_by("d000", roster, RevealedMessage(seeds=seeds, keys=keys or {}, signature=b""))

    other = messages.survivors_digest(b.roster, names[:3])
    elsewhere = messages.survivors_digest(bytes(32), names)
    wrong = bytes([told.seeds["d001"][0] ^ 1]) + told.seeds["d001"][1:]
    first = [["d001", messages.dump(sent["advertise", "d001"]).hex()]]
    made = [
        ("keys of a stranger", 0, "zz", [], keys, "E-SECAGG-KEYS"),
        ("keys that another device signed", 0, "d001", [], keys, "E-SECAGG-KEYS"),
        ("keys for another model", 0, "d000", [], signed(OTHER), "E-SECAGG-KEYS"),
        ("one key for two purposes", 0, "d000", [], signed(mask=keys.keys.seal), "E-SECAGG-KEYS"),
        ("a key of another device", 0, "d000", first, signed(seal=b.keys["d001"].mask), "E-SECAGG-KEYS"),
        ("the sealing key of another device", 0, "d000", first, signed(seal=b.keys["d001"].seal), "E-SECAGG-KEYS"),
        ("the mask key of another device", 0, "d000", first, signed(mask=b.keys["d001"].mask), "E-SECAGG-KEYS"),
        ("the sealing key of another device, to mask", 0, "d000", first, signed(mask=b.keys["d001"].seal),
         "E-SECAGG-KEYS"),
        ("a roster", 0, "d000", [], b.told[0], "E-SECAGG-ORDER"),
        ("a roster, which only a server sends", 1, "d000", [], b.told[0], "E-SECAGG-ORDER"),
        ("the boxes, which only a server sends", 3, "d000", [], b.told[1], "E-SECAGG-ORDER"),
        ("the survivors, which only a server sends", 4, "d000", [], b.told[2], "E-SECAGG-ORDER"),
        ("the roster, from a stranger", 1, "zz", [], b.told[0], "E-SECAGG-ORDER"),
        ("keys in a later step, from a stranger", 1, "zz", [], keys, ""),
        ("a signature of 65 bytes", 0, "d000", [],
         pack({"type": "advertise", "keys": {"seal": bytes(32), "mask": bytes(32), "commitment": bytes(32),
                                             "signature": bytes(65)}}), "E-FRAME"),
        ("a mask key that agrees with nobody", 0, "d000", [], signed(mask=bytes(32)), "E-KEY-AGREE"),
        ("a sealing key that agrees with nobody", 0, "d000", [], signed(seal=bytes(32)), "E-KEY-AGREE"),
        ("keys a second time", 0, "d001", first, sent["advertise", "d001"], "E-SECAGG-ORDER"),
        ("shares before keys", 0, "d000", [], shares, "E-SECAGG-ORDER"),
        ("cut off", 0, "d000", [], messages.dump(keys)[:-1], "E-FRAME"),
        ("a box too few", 1, "d000", [], deals({"d001": shares.boxes["d001"]}), "E-SECAGG-ORDER"),
        ("a box for oneself", 1, "d000", [], deals({"d000": shares.boxes["d001"], **shares.boxes}), "E-SECAGG-ORDER"),
        ("shares not sorted", 1, "d000", [], deals(_unsorted(shares.boxes)), "E-FRAME"),
        ("boxes with a flipped bit", 1, "d000", [], replace(shares, boxes={
            d: bytes([box[0] ^ 1]) + box[1:] for d, box in shares.boxes.items()}), "E-SECAGG-KEYS"),
        ("boxes that nobody signed", 1, "d000", [], replace(shares, signature=bytes(64)), "E-SECAGG-KEYS"),
        ("boxes for another roster", 1, "d000", [], deals(shares.boxes, bytes(32)), "E-SECAGG-KEYS"),
        ("another device's boxes", 1, "d001", [], shares, "E-SECAGG-ORDER"),
        ("shares a second time", 1, "d000", [["d000", messages.dump(shares).hex()]], shares, "E-SECAGG-ORDER"),
        ("shares of a stranger", 1, "zz", [], shares, "E-SECAGG-ORDER"),
        ("a masked update too early", 1, "d000", [], masked, "E-SECAGG-ORDER"),
        ("keys in a later step", 1, "d000", [], keys, ""),
        ("an abort", 1, "d000", [], Abort(code="E-KEY-AGREE"), "E-KEY-AGREE"),
        ("an abort for no reason that there is", 1, "d000", [], Abort(code="E-OTHER"), "E-SECAGG-ORDER"),
        *((f"an abort with {code}", 1, "d000", [], Abort(code=code), code) for code in messages.CODES),
        *((f"an abort with {code}, which is not for devices", 1, "d000", [], Abort(code=code), "E-SECAGG-ORDER")
          for code in ("E-SECAGG-REVEAL", "E-SHARE", "E-PAYLOAD", "E-SEAL", "E-BUDGET", "E-INVITE", "E-FRAME-SIZE")),
        ("an abort with a code of 64 characters", 1, "d000", [], Abort(code="\N{DOLPHIN}" * 64), "E-SECAGG-ORDER"),
        ("an abort with a code of 65 characters", 1, "d000", [], pack({"type": "abort", "code": "E" * 65}), "E-FRAME"),
        ("a masked update with a flipped bit", 2, "d000", [],
         replace(masked, body=bytes([masked.body[0] ^ 1]) + masked.body[1:]), "E-SECAGG-KEYS"),
        ("a masked update with another head", 2, "d000", [], replace(masked, head=bytes(8)), "E-SECAGG-KEYS"),
        ("a masked update that is too short, not signed", 2, "d000", [],
         replace(masked, body=masked.body[:-1]), "E-SECAGG-KEYS"),
        ("another device's masked update", 2, "d001", [], masked, "E-SECAGG-KEYS"),
        ("a masked update for fewer peers", 2, "d000", [], again(fewer), "E-SECAGG-KEYS"),
        ("a masked update for a box that was damaged", 2, "d000", [], again(damaged), "E-SECAGG-KEYS"),
        ("a masked update for another roster", 2, "d000", [], again(roster=bytes(32)), "E-SECAGG-KEYS"),
        ("a masked update that is too short", 2, "d000", [], again(body=masked.body[:-1]), "E-PAYLOAD"),
        ("a head that is too long", 2, "d000", [], again(head=bytes(16)), "E-PAYLOAD"),
        ("a dealer accused in what is signed otherwise", 2, "d000", [], replace(masked, failed=("d001",)),
         "E-SECAGG-KEYS"),
        ("a stranger accused", 2, "d000", [], again(failed=("d001", "zz")), "E-SECAGG-ORDER"),
        ("itself accused", 2, "d000", [], again(failed=("d000",)), "E-SECAGG-ORDER"),
        ("a stranger accused, and a body that is too short", 2, "d000", [],
         again(failed=("zz",), body=masked.body[:-1]), "E-SECAGG-ORDER"),
        ("dealers accused and not sorted", 2, "d000", [], again(failed=("d002", "d001")), "E-FRAME"),
        ("a dealer accused twice", 2, "d000", [], again(failed=("d001", "d001")), "E-FRAME"),
        ("a signature on another list", 3, "d000", [], messages.ConsistentMessage(signature=sign.sign(secret, other)),
         "E-SECAGG-SURVIVORS"),
        ("a signature for another roster", 3, "d000", [], messages.ConsistentMessage(signature=sign.sign(secret,
            elsewhere)),
         "E-SECAGG-SURVIVORS"),
        ("another device's signature", 3, "d001", [], said, "E-SECAGG-SURVIVORS"),
        ("a key share of a survivor", 4, "d000", [], tells({}, {"d001": told.seeds["d001"]}), "E-SECAGG-ORDER"),
        ("a share too few", 4, "d000", [], tells({d: v for d, v in told.seeds.items() if d != "d001"}),
         "E-SECAGG-REVEAL"),
        ("a seed share of nobody", 4, "d000", [], tells({**told.seeds, "zz": wrong}), "E-SECAGG-ORDER"),
        ("a wrong share", 4, "d000", [], tells({**told.seeds, "d001": wrong}), "E-SECAGG-REVEAL"),
        ("a share with a flipped bit", 4, "d000", [], replace(told, seeds={**told.seeds, "d001": wrong}),
         "E-SECAGG-KEYS"),
        ("shares revealed for another roster", 4, "d000", [], tells(told.seeds, None, bytes(32)), "E-SECAGG-KEYS"),
        ("a share of 32 bytes", 4, "d000", [], tells({**told.seeds, "d001": wrong[:32]}), "E-FRAME"),
        ("a wrong seed of its own", 4, "d000", [], tells({**told.seeds, "d000": bytes(33)}), "E-SECAGG-REVEAL"),
        ("a seed of its own and one byte that is not zero", 4, "d000", [],
         tells({**told.seeds, "d000": told.seeds["d000"][:32] + b"\1"}), "E-SECAGG-REVEAL"),
        ("no seed of its own", 4, "d000", [], tells({d: v for d, v in told.seeds.items() if d != "d000"}),
         "E-SECAGG-REVEAL"),
        ("shares not sorted", 4, "d000", [], tells(_unsorted(told.seeds)), "E-FRAME"),
        ("the signature again", 4, "d000", [], said, ""),
    ]  # fmt: skip
    rows = _rows("all stay", made, fields)

    e = Book(records["one leaves before its shares"])
    made = [("a device that had left", 2, "d003", [], e.sent["masked", "d000"], "E-SECAGG-ORDER"),
            ("a share that it was not dealt", 4, "d000", [],
             tells(e.sent["revealed", "d000"].seeds, {"d003": bytes(33)}, e.roster), "E-SECAGG-ORDER")]  # fmt: skip
    rows += _rows("one leaves before its shares", made, fields)

    k = Book(records["one leaves before its update"])
    mine = k.sent["revealed", "d000"]
    flipped = {d: bytes([v[0] ^ 1]) + v[1:] for d, v in mine.keys.items()}
    made = [("a wrong key share", 4, "d000", [], tells(mine.seeds, flipped, k.roster), "E-SECAGG-REVEAL"),
            ("a key share in place of a seed share", 4, "d000", [],
             tells(messages.ordered_for_wire({**mine.seeds, **mine.keys}), None, k.roster),
                 "E-SECAGG-ORDER")]  # fmt: skip
    rows += _rows("one leaves before its update", made, fields)

    p = Book(records["a narrow ring"])
    narrow = p.sent["masked", "d000"]
    body = narrow.body[:-1] + bytes([narrow.body[-1] | 0x80])
    digest = messages.masked_digest(p.roster, "d000", messages.boxes_message_digest(p.told[1]), body, narrow.head, ())
    padded = replace(narrow, body=body, signature=sign.sign(secret, digest))
    rows += _rows("a narrow ring", [("bits beyond the last", 2, "d000", [], padded, "E-PAYLOAD")], fields)

    big = Book(records[at := "shares of p and more dealt, and called good"])
    large = _dealt_to_d000(big)
    made = [("a share of p and more that is the one of its check", 4, "d000", [],
             tells(messages.ordered_for_wire({**big.sent["revealed", "d000"].seeds, "d001": large}), None, big.roster),
             "E-SECAGG-REVEAL")]  # fmt: skip
    rows += _rows(at, made, fields)

    odd = Book(records["a box that does not open"])
    seeds = {**odd.sent["revealed", "d000"].seeds, "d001": bytes(33)}
    made = [("a share of a dealer that it has accused", 4, "d000", [], tells(messages.ordered_for_wire(seeds), None,
        odd.roster),
             "E-SECAGG-ORDER")]  # fmt: skip
    rows += _rows("a box that does not open", made, fields)

    g = Book(records["a sparse graph"])
    mine, alive = g.sent["revealed", "d000"], messages.load_secagg_message(g.told[2]).devices  # type: ignore[union-attr]
    near = client.graph.mask_neighbours(
        _digest(records["a sparse graph"]), list(records["a sparse graph"]["devices"]), 8
    )
    far = next(d for d in alive if d not in (*near["d000"], "d000"))
    more = tells(
        messages.ordered_for_wire({**mine.seeds, far: bytes(33)}), mine.keys, _digest(records["a sparse graph"])
    )
    made = [("a seed share of a survivor that is no neighbour", 4, "d000", [], more, "E-SECAGG-ORDER")]
    return rows + _rows("a sparse graph", made, fields)


def _digest(record: dict[str, Any]) -> bytes:
    return messages.roster_digest(SID, _roster(record).keys)


def _dealt_to_d000(book: Book) -> bytes:
    """The share of d001's seed that d000 was dealt, in a session in which it is p or more."""
    box = messages.load_secagg_message(book.told[1]).boxes["d001"].box  # type: ignore[union-attr]
    secret = agree.AgreementSecret(fresh("d000")[0])
    _, opening = secrets.sealing_keys(secret, book.keys["d001"].seal, book.roster, "d000", "d001")
    checks = box[messages.SEALED_BYTES :]
    share = seal.open_sealed(
        opening, box[: messages.SEALED_BYTES], secrets.box_binding(book.roster, "d001", "d000", checks)
    )[:33]
    assert not shamir.is_field_element(share)
    assert messages.share_check(book.roster, "d001", "d000", b"seed", share) == checks[:32]
    return share


def floors() -> list[dict[str, Any]]:
    """Policy of a device's owner, the session, and the code with which the device answers at once."""
    made = [((2, 0.0, "curious"), (2, 0.0, "curious"), ""), ((5, 0.0, "curious"), (4, 0.1, "malicious"), "-"),
            ((2, 0.1, "curious"), (9, 0.05, "malicious"), "-"), ((2, 0.0, "malicious"), (9, 0.1, "curious"), "-"),
            ((9, 0.1, "malicious"), (9, 0.1, "malicious"), "")]  # fmt: skip
    rows = []
    for (n_min, corrupt, server), (least, share, against), refused in made:
        floor = client.Floor(n_min, corrupt, server)  # type: ignore[arg-type]
        params = Params(TrustPolicy(share, 0.1, against), least, 20, 1, 0)  # type: ignore[arg-type]
        assert floor.allows(params) == (not refused)
        rows.append({"floor": {"n_min": n_min, "corrupt": corrupt, "server": server},
                     "session": {"n_min": least, "corrupt": share, "server": against},
                     "code": "E-SECAGG-POLICY" if refused else ""})  # fmt: skip
    return rows
