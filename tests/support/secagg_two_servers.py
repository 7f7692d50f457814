"""A round with two servers, and reports that one of them must refuse, for ``tests/protocol/vectors``."""

from __future__ import annotations

from typing import Any

import hpke
import msgspec
import numpy as np
from secagg_rejects import OTHER
from session import IDENTITIES, ROOT, SID, registry

from edgewise.core.keys import derive
from edgewise.crypto import seal, sign
from edgewise.secagg import secrets, two_server
from edgewise.secagg.params import Params, TrustPolicy

LEADER, HELPER = (two_server.server_pair(derive(ROOT, who)) for who in ("leader", "helper"))
PARAMS = Params(TrustPolicy(), 3, 20, 5, 1)  # 100 bits: the last byte has four to spare
DEVICES = ("d000", "d001", "d002")


def _split(device: str, label: str = "report", *, signer: str = "", context: bytes = SID, params: Params = PARAMS,
           leader: bytes = LEADER.public, helper: bytes = HELPER.public) -> bytes:  # fmt: skip
    body = np.arange(params.dim, dtype=np.uint32) + DEVICES.index(device)
    args = (IDENTITIES[signer or device].secret, leader, helper, body, np.full(params.heads, 7, np.uint64))
    return bytes(two_server.split(params, context, device, *args, derive(ROOT, label, device)))


def session() -> dict[str, Any]:
    """Three reports, both halves of their sum, and the sum, inside ``hpke.repeatable``."""
    leader = two_server.lead_two_servers(PARAMS, SID, LEADER.secret, registry)
    helper = two_server.HelperState(PARAMS, SID, HELPER.secret, registry)
    reports = {}
    for i, device in enumerate(DEVICES):
        raw, entropy = _split(device), derive(ROOT, "report", device)
        ticket, share = two_server.open_share_report(leader, device, raw)
        helper = two_server.admit_share_report(helper, ticket)
        k, content = (secrets.fresh_secret(entropy, SID, role, device) for role in ("share", "box"))
        sealed = (
            ("leader", LEADER.public, content, two_server._share_context(SID, b"leader", device, ticket.id)),
            ("helper", HELPER.public, k, two_server._share_context(SID, b"helper", device, ticket.id)),
        )
        reports[device] = {
            "identity": IDENTITIES[device].secret.hex(), "public": IDENTITIES[device].public.hex(),
            "entropy": entropy.hex(), "body": [x + i for x in range(PARAMS.dim)], "head": ["7"],
            "id": ticket.id.hex(), "k": k.hex(), "content_key": content.hex(), "report": raw.hex(),
            "ephemeral": {to: hpke.ephemeral(public, plain, info).hex() for to, public, plain, info in sealed},
            "ticket": msgspec.msgpack.encode(ticket).hex(), "leader_share": _half(share),
        }  # fmt: skip
        leader = two_server.add_leader_share(leader, ticket, share)
    half = _half(leader.total)
    _, other = two_server.open_helper_batch(helper, DEVICES)
    leader.total.add(other.body, other.head)
    return {
        "bits": PARAMS.bits, "dim": PARAMS.dim, "heads": PARAMS.heads, "n_min": PARAMS.n_min, "context": SID.hex(),
        "leader_secret": LEADER.secret.hex(), "helper_secret": HELPER.secret.hex(), "reports": reports,
        "leader": half, "helper": _half(other), "sum": _half(leader.total),
    }  # fmt: skip


def _half(hidden: secrets.Hidden) -> dict[str, Any]:
    return {"body": hidden.body.tolist(), "head": [str(v) for v in hidden.head]}


def rejects(made: dict[str, Any]) -> list[dict[str, Any]]:
    """A report that one of the two servers must refuse (``by``), after it took those of the devices ``before``."""
    raw = {d: bytes.fromhex(r["report"]) for d, r in made["reports"].items()}
    mine, n = raw["d000"], two_server._HEAD_BYTES
    head, box = msgspec.msgpack.decode(mine[:n]), mine[n:]
    flipped = box[:84] + bytes([box[84] ^ 1]) + box[85:]
    reordered = msgspec.msgpack.encode({f: head[f] for f in ("helper", "id", "signature")})
    stolen = msgspec.msgpack.encode({**head, "id": bytes.fromhex(made["reports"]["d001"]["id"])})
    leader = [
        ("of another model", "d000", [], _split("d000", context=OTHER), "E-SECAGG-KEYS"),
        ("of another device", "d001", [], mine, "E-SECAGG-KEYS"),
        ("signed by another device", "d000", [], _split("d000", signer="d001"), "E-SECAGG-KEYS"),
        ("of a stranger", "zz", [], mine, "E-SECAGG-KEYS"),
        ("a flipped bit in the box", "d000", [], mine[:n] + flipped, "E-SEAL"),
        ("another end of the box", "d000", [], mine[:-1] + bytes([mine[-1] ^ 1]), "E-SECAGG-KEYS"),
        ("another sealed key", "d000", [], mine[:n] + bytes([mine[n] ^ 1]) + mine[n + 1 :], "E-SECAGG-KEYS"),
        ("another id", "d000", [], msgspec.msgpack.encode({**head, "id": bytes(16)}) + box, "E-SECAGG-KEYS"),
        ("cut off in its head", "d000", [], mine[:40], "E-FRAME"),
        ("cut off in its box", "d000", [], mine[:-1], "E-SECAGG-KEYS"),
        ("a box without cipher text, of 95 bytes", "d000", [], mine[: n + 95], "E-FRAME"),
        ("a box without cipher text, of 96 bytes", "d000", [], mine[: n + 96], "E-SECAGG-KEYS"),
        ("no box", "d000", [], mine[:n], "E-FRAME"),
        ("a content key sealed for the helper", "d000", [], _split("d000", leader=HELPER.public), "E-SEAL"),
        ("an id of 15 bytes", "d000", [], _sizes(head, id=15, helper=81) + box, "E-FRAME"),
        ("a sealed seed of 79 bytes", "d000", [], _sizes(head, helper=79, signature=65) + box, "E-FRAME"),
        ("a field of another name", "d000", [], mine.replace(b"\xa2id", b"\xa2ix", 1), "E-FRAME"),
        ("its fields in another order", "d000", [], reordered + box, "E-FRAME"),
        (
            "a share that is too long",
            "d000",
            [],
            _split("d000", params=Params(TrustPolicy(), 3, 20, 8, 1)),
            "E-PAYLOAD",
        ),
        ("a head that is too long", "d000", [], _split("d000", params=Params(TrustPolicy(), 3, 20, 5, 2)), "E-PAYLOAD"),
        ("bits beyond the last", "d000", [], _padded(), "E-PAYLOAD"),
        ("a second report of a device", "d000", ["d000"], _split("d000", "second"), "E-SECAGG-ORDER"),
        ("the id of another device's report", "d000", ["d001"], stolen + box, "E-SECAGG-ORDER"),
    ]
    tickets = {d: msgspec.msgpack.decode(bytes.fromhex(r["ticket"])) for d, r in made["reports"].items()}
    one = tickets["d000"]

    def of(report: bytes) -> dict[str, Any]:
        known = two_server.lead_two_servers(PARAMS, SID, LEADER.secret, registry)
        return msgspec.to_builtins(two_server.open_share_report(known, "d000", report)[0], builtin_types=(bytes,))

    helper = [
        ("an id of 15 bytes", [], _sizes(one, id=15), "E-FRAME"),
        ("ends of 95 bytes", [], _sizes(one, leader=95), "E-FRAME"),
        ("a sealed seed of 81 bytes", [], _sizes(one, helper=81), "E-FRAME"),
        ("a signature of 63 bytes", [], _sizes(one, signature=63), "E-FRAME"),
        ("its fields in another order", [], msgspec.msgpack.encode(dict(reversed(one.items()))), "E-FRAME"),
        ("a missing field", [], msgspec.msgpack.encode({k: v for k, v in one.items() if k != "id"}), "E-FRAME"),
        ("a trailing byte", [], msgspec.msgpack.encode(one) + b"\0", "E-FRAME"),
        ("a name that is no UTF-8", [], msgspec.msgpack.encode(one).replace(b"\xa4d000", b"\xa4d\xff00"), "E-FRAME"),
        ("a ticket that nobody signed", [], {**one, "signature": bytes(64)}, "E-SECAGG-KEYS"),
        ("of a stranger", [], {**one, "device": "zz"}, "E-SECAGG-KEYS"),
        ("under another device's name", [], {**one, "device": "d001"}, "E-SECAGG-KEYS"),
        ("with other ends", [], {**one, "leader": bytes(96)}, "E-SECAGG-KEYS"),
        ("a seed sealed for the leader", [], of(_split("d000", "wrong", helper=LEADER.public)), "E-SEAL"),
        ("the same ticket again", ["d000"], one, "E-SECAGG-ORDER"),
        ("a second report of a device", ["d000"], of(_split("d000", "second")), "E-SECAGG-ORDER"),
        ("the id of another device's ticket", ["d000"], _same_id(one["id"]), "E-SECAGG-ORDER"),
        ("a ticket after the batch was opened", [*DEVICES, "open"], of(_split("d000", "second")), "E-SECAGG-ORDER"),
    ]
    batches = [
        ("a batch below the minimum", ["d000", "d001"], ["d000", "d001"], "E-SECAGG-FEW"),
        ("a device twice, to reach the minimum", ["d000", "d001"], ["d000", "d001", "d001"], "E-SECAGG-FEW"),
        ("a device twice, beyond the minimum", list(DEVICES), [*DEVICES, "d001"], ""),
        ("a batch with a report that never came", ["d000", "d001"], list(DEVICES), "E-SECAGG-ORDER"),
        ("a batch below the minimum, with a report that never came", ["d000"], ["d000", "zz"], "E-SECAGG-ORDER"),
        ("a second batch", [*DEVICES, "open"], list(DEVICES), "E-SECAGG-ORDER"),
    ]
    return [
        *({"name": n, "by": "leader", "device": d, "before": b, "report": r.hex(), "code": c}
          for n, d, b, r, c in leader),
        *({"name": n, "by": "helper", "before": b, "code": c,
           "ticket": (t if isinstance(t, bytes) else msgspec.msgpack.encode(t)).hex()}
          for n, b, t, c in helper),
        *({"name": n, "by": "batch", "before": b, "devices": d, "code": c} for n, b, d, c in batches),
    ]  # fmt: skip


def _sizes(fields: dict[str, Any], **sizes: int) -> bytes:
    """A report's head or a ticket with byte strings of other lengths."""
    return msgspec.msgpack.encode({**fields, **{name: bytes(n) for name, n in sizes.items()}})


def _same_id(id: bytes) -> dict[str, Any]:
    """A ticket of d001, good but for its id."""
    helper = seal.hpke_seal(HELPER.public, bytes(32), two_server._share_context(SID, b"helper", "d001", id))
    said = two_server.share_report_digest(SID, "d001", id, bytes(96), helper)
    return {"device": "d001", "id": id, "leader": bytes(96), "helper": helper,
            "signature": sign.sign(IDENTITIES["d001"].secret, said)}  # fmt: skip


def _padded() -> bytes:
    """The same 13 bytes of body, all bits set."""
    wide = Params(TrustPolicy(), 3, 8, 13, 1)
    args = (
        IDENTITIES["d000"].secret,
        LEADER.public,
        HELPER.public,
        np.full(13, 255, np.uint32),
        np.zeros(1, np.uint64),
    )
    entropy = derive(ROOT, "padded")
    # The mask of a narrower ring is another one, so what the leader sees is random: some report has a bit too many.
    for i in range(64):
        raw = bytes(two_server.split(wide, SID, "d000", *args, derive(entropy, i)))
        plain = seal.open_large_box(LEADER.secret, raw[two_server._HEAD_BYTES :], _bound(raw))
        if plain[12] >> 4:
            return raw
    raise AssertionError


def _bound(raw: bytes) -> bytes:
    return two_server._share_context(
        SID, b"leader", "d000", msgspec.msgpack.decode(raw[: two_server._HEAD_BYTES])["id"]
    )
