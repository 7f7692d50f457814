"""Frames of secure aggregation and the digests in them, with frames to refuse, for ``tests/protocol/vectors``."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
from session import ROOT

from edgewise.core import frame, vector
from edgewise.core.frame import Contribution, Invite, LocalRule, Refusal, Step
from edgewise.core.keys import derive
from edgewise.crypto import sign
from edgewise.plan import facts as plan_facts
from edgewise.secagg import messages

RECIPE = {
    "name": "caf\u00e9",
    "training": {"lr": 0.001, "steps": 8, "decay": 1.0, "small": 1e-05},
    "stage": [],
    "on": True,
}
SPEC = vector.Spec.of([("b", (2, 2), "float32"), ("a\u00e9", (), "bfloat16")])
VALUES = [0.5, -1.0, 0.0, 2.0, -0.25]
OPERATOR = sign.pair(derive(ROOT, "operator"))
FACTS = plan_facts.PlanFacts(
    format=plan_facts.FORMAT,
    recipe=json.dumps(RECIPE, sort_keys=True, separators=(",", ":")),
    spec=SPEC.digest(),
    population=100,
    n_min=50,
    corrupt=10,
    ring_bits=(12,),
    noise=plan_facts.StatedNoise(multiplier=1.5, epsilon=8.0),
    secagg=messages.PROTOCOL.decode(),
    wire=frame.VERSION,
    instance=plan_facts.Instance(server=OPERATOR.public.hex(), nonce=derive(ROOT, "instance").hex(), roster="0f" * 32),
)
MODEL = vector.digest(vector.to_bytes(np.array(VALUES, np.float32)))
RUN, PUBLIC, NONCE = FACTS.digest(), derive(ROOT, "public"), derive(ROOT, "nonce")
PLAIN = Invite(
    run=RUN, round=3, spec=SPEC.digest(), model=MODEL, public=PUBLIC, accepted=None, deadline_s=60.0,
    rule=LocalRule(steps=8, lr=0.25), nonce=NONCE,
)  # fmt: skip
RULE = LocalRule(steps=1, lr=0.001, segments=("b",))
FULL = msgspec.structs.replace(
    PLAIN, round=70000, accepted=69999, deadline_s=0.5, rule=RULE, base="b" * 64, deltas=("c" * 64, "d" * 64),
    support="e" * 64, clip=1.5,
)  # fmt: skip
STEP = Step(run=RUN, round=3, device="d000", body=messages.dump(messages.Abort(code="E-SECAGG-FEW")))
REFUSAL = Refusal(run=RUN, round=3, device="d000", code="E-INVITE", reason="another clip")
LARGE = Contribution(run=RUN, round=3, device="d000", payload=memoryview(bytes(300)))
FRAMES = (
    ("device", PLAIN),
    ("device", FULL),
    ("device", STEP),
    ("server", STEP),
    ("server", msgspec.structs.replace(STEP, rung=0)),
    ("device", msgspec.structs.replace(STEP, rung=200)),
    ("server", LARGE),
    ("server", REFUSAL),
)


def sid(invite: Invite) -> bytes:
    """The session that an invitation opens, from its fields alone."""
    rule = msgspec.msgpack.encode(invite.rule)
    config = messages.secagg_configuration(invite.spec, rule, invite.public, invite.clip, invite.support)
    assert invite.nonce is not None
    return messages.secagg_session_id(invite.run, invite.round, invite.model, config.hex(), invite.nonce)


def _plain(message: frame.Message) -> dict[str, Any]:
    fields = msgspec.msgpack.decode(frame.dump(message)[frame.HEADER_BYTES :])
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()}


def frames() -> dict[str, Any]:
    """The contents of ``frames.json``."""
    raw = plan_facts.canonical(FACTS)
    layout = json.dumps(SPEC.to_list(), separators=(",", ":"))
    return {
        "run": {
            "facts": json.loads(raw), "json": raw.decode(), "hex": RUN, "context": plan_facts.CONTEXT.hex(),
            "secret": OPERATOR.secret.hex(), "signature": plan_facts.sign(OPERATOR.secret, raw).hex(),
        },
        "layout": {"tensors": SPEC.to_list(), "json": layout, "hex": SPEC.digest()},
        "model": {"values": VALUES, "hex": MODEL},
        "frames": [
            {"to": to, "limit": len(frame.dump(m)), "fields": _plain(m), "hex": frame.dump(m).hex(),
             **({"sid": sid(m).hex()} if isinstance(m, Invite) else {})}
            for to, m in FRAMES
        ],
        "refused": [{"name": name, "by": by, "limit": limit, "hex": raw.hex(), "code": code}
                    for name, by, limit, raw, code in _refused()],
    }  # fmt: skip


def _refused() -> list[tuple[str, str, int, bytes, str]]:
    raw, step, no, big = (frame.dump(message) for message in (PLAIN, STEP, REFUSAL, LARGE))
    fields = msgspec.msgpack.decode(step[frame.HEADER_BYTES :])

    def made(changed: dict[str, Any]) -> bytes:
        return frame.MAGIC + bytes([frame.VERSION]) + msgspec.msgpack.encode(changed)

    rows = [
        ("nothing", "server", b""),
        ("a header alone", "server", step[:4]),
        ("another magic", "server", b"EWG" + step[3:]),
        ("another version", "server", step[:3] + b"\x01" + step[4:]),
        ("an invitation", "server", raw),
        ("a refusal", "device", no),
        ("cut off", "device", raw[:-1]),
        ("a trailing byte", "device", raw + b"\x00"),
        ("an unknown field", "server", made({**fields, "more": 1})),
        ("a missing field", "server", made({k: v for k, v in fields.items() if k != "round"})),
        ("fields in another order", "server", made(dict(reversed(fields.items())))),
        ("a rung of -1", "server", made({**fields, "rung": -1})),
        ("no rung, which is left out", "server", made({**fields, "rung": None})),
        ("text in place of bytes", "server", made({**fields, "body": "text"})),
        ("an integer in place of a double", "device", raw.replace(msgspec.msgpack.encode(60.0), b"\x3c", 1)),
        ("a longer integer", "server", step.replace(b"\xa5round\x03", b"\xa5round\xcc\x03", 1)),
        ("a field twice", "server", step.replace(b"\x85", b"\x86", 1) + b"\xa5round\x03"),
        ("no segments, which are left out", "device",
         raw.replace(b"\xa4rule\x82", b"\xa4rule\x83", 1).replace(b"\xa5nonce", b"\xa8segments\x90\xa5nonce", 1)),
        ("a payload with a longer prefix", "server", big.replace(b"\xc5\x01\x2c", b"\xc6\0\0\x01\x2c", 1)),
        ("a contribution and a trailing byte", "server", big + b"\0"),
        ("a contribution that is cut off", "server", big[:-1]),
        ("text that is no UTF-8", "server", step.replace(b"\xa4d000", b"\xa4d\xff00", 1)),
    ]  # fmt: skip
    limited = [("one byte above the limit", "device", len(raw) - 1, raw, "E-FRAME-SIZE"),
               ("one byte above the limit of a server", "server", len(step) - 1, step, "E-FRAME-SIZE"),
               ("a contribution one byte above the limit", "server", len(big) - 1, big, "E-FRAME-SIZE"),
               ("rubbish above the limit", "server", 3, b"\xff" * 4, "E-FRAME-SIZE")]  # fmt: skip
    return [(name, by, 1 << 20, bad, "E-FRAME") for name, by, bad in rows] + limited
