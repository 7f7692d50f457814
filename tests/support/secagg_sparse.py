"""Messages that d000 of a recorded session must refuse and accept at the very thresholds.

In a sparse graph of 66 devices each has 8 neighbours: shares of 6 of them open a secret, and 34 signatures of anybody
a list of survivors. With a curious server it has 4, of whom 2 are enough, and no more signatures are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from secagg_sessions import CASES
from session import IDENTITIES, ROOT, SID, registry

from edgewise.core.keys import derive
from edgewise.crypto import sign
from edgewise.secagg import client, messages
from edgewise.secagg.messages import BoxesMessage, DealtBox, ProofsMessage, SurvivorsMessage
from edgewise.secagg.params import Params, TrustPolicy

COMPLETE, NAME, CURIOUS = "all stay", "a sparse graph", "a sparse graph and a curious server"
JUNK, BROKEN = bytes(messages.BOX_BYTES), bytes(64)


class Sparse:
    """A recorded session and d000 in it."""

    def __init__(self, records: dict[str, dict[str, Any]], name: str) -> None:
        record = records[name]
        self.told = [bytes.fromhex(line["hex"]) for line in record["lines"] if "d000" in line.get("to", ())]
        roster = messages.load_secagg_message(self.told[0])
        survivors = messages.load_secagg_message(self.told[2])
        assert isinstance(roster, messages.RosterMessage)
        assert isinstance(survivors, messages.SurvivorsMessage)
        p, me = record["params"], record["devices"]["d000"]
        policy = CASES[name].more.get("policy", TrustPolicy())
        self.params = Params(policy, p["n_min"], p["bits"], p["dim"], p["heads"])
        self.roster, near, self.t = client.roster_neighbours(self.params, SID, roster.keys)
        self.update = np.array(me["body"], np.uint32), np.array([int(v) for v in me["head"]], np.uint64)
        self.alive = survivors.devices
        self.near = [d for d in near["d000"] if d in self.alive]
        self.far = [d for d in self.alive if d not in (*near["d000"], "d000")]
        self.quorum = policy.quorum(len(roster.keys))

    def proofs(self, near: int, far: int, bad: Sequence[str] = ()) -> ProofsMessage:
        """Signatures of so many holders and of so many other survivors, the first of each in order."""
        said = messages.survivors_digest(self.roster, self.alive)
        who = sorted([*self.near[:near], *self.far[:far], *bad])
        return ProofsMessage(signatures={d: BROKEN if d in bad else sign.sign(IDENTITIES[d].secret, said) for d in who})

    def boxes(self, count: int) -> BoxesMessage:
        """The first boxes that d000 was sent."""
        boxes = messages.load_secagg_message(self.told[1])
        assert isinstance(boxes, BoxesMessage)
        return BoxesMessage(boxes=dict(list(boxes.boxes.items())[:count]))

    def survivors(self, count: int) -> SurvivorsMessage:
        """d000, and others of its survivors, the first in order."""
        return SurvivorsMessage(devices=self.alive[:count])

    def stranger(self, roster: bytes) -> BoxesMessage:
        """All boxes, and one that a device which is no neighbour has dealt and signed."""
        every = messages.boxes_digest({"d000": JUNK})
        signature = sign.sign(IDENTITIES[self.far[0]].secret, messages.shares_digest(roster, self.far[0], every))
        boxes = {**self.boxes(99).boxes, self.far[0]: DealtBox(box=JUNK, all=every, signature=signature)}
        return BoxesMessage(boxes=messages.ordered_for_wire(boxes))

    def answer(self, step: int, raw: bytes) -> bytes:
        """Answer of d000 to a message in the place of the recorded one."""
        entropy = derive(ROOT, "entropy", "d000")
        state: client.State
        state, _ = client.start(self.params, SID, "d000", IDENTITIES["d000"].secret, *self.update, entropy)
        for told in self.told[: step - 1]:
            state, _ = client.step(self.params, state, told, registry)
        return client.step(self.params, state, raw, registry)[1]


def rejects(records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages that d000 answers with an abort."""
    s, c = Sparse(records, NAME), Sparse(records, CURIOUS)
    t, rest = s.t, s.quorum - s.t
    late = s.far[-1]  # its signature stands behind the others
    made = [
        (NAME, "a well signed box of a device that is no neighbour", 2, s.stranger(s.roster), "E-SECAGG-KEYS"),
        (NAME, "one survivor fewer than the quorum", 3, s.survivors(s.quorum - 1), "E-SECAGG-FEW"),
        (CURIOUS, "one survivor fewer than the smallest sum", 3, c.survivors(c.params.n_min - 1), "E-SECAGG-FEW"),
        (NAME, "signatures of t holders, and one fewer than the quorum", 4, s.proofs(t, rest - 1), "E-SECAGG-FEW"),
        (NAME, "the quorum, and one holder fewer than t", 4, s.proofs(t - 1, rest + 1), "E-SECAGG-FEW"),
        (NAME, "the quorum and more, and one holder fewer than t", 4, s.proofs(t - 1, 99), "E-SECAGG-FEW"),
        (NAME, "all holders and nobody else", 4, s.proofs(99, 0), "E-SECAGG-FEW"),
        (
            NAME,
            "a bad signature of no holder before the quorum",
            4,
            s.proofs(t, rest - 1, [late]),
            "E-SECAGG-SURVIVORS",
        ),
        (CURIOUS, "one holder fewer than t, and all other survivors", 4, c.proofs(c.t - 1, 99), "E-SECAGG-FEW"),
        (CURIOUS, "a box fewer than t", 2, c.boxes(c.t - 1), "E-SECAGG-FEW"),
    ]
    return [
        {"name": name, "session": session, "step": step, "code": code, "hex": messages.dump(message).hex()}
        for session, name, step, message, code in made
    ]


def answers(records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages that d000 accepts in the place of the recorded ones, and what it says."""
    s, c = Sparse(records, NAME), Sparse(records, CURIOUS)
    t, rest = s.t, s.quorum - s.t
    complete = Sparse(records, COMPLETE)
    last = sorted([*s.near[:t], *s.far[:rest]])[-1]
    behind = next(d for d in reversed(s.far) if d > last)
    gone = next(d for d in records[NAME]["devices"] if d not in s.alive)
    made = [
        (complete, COMPLETE, "exactly t - 1 boxes", 2, complete.boxes(complete.t - 1)),
        (s, NAME, "exactly t boxes", 2, s.boxes(t)),
        (s, NAME, "exactly as many survivors as the quorum", 3, s.survivors(s.quorum)),
        (c, CURIOUS, "exactly as many survivors as the smallest sum has", 3, c.survivors(c.params.n_min)),
        (s, NAME, "t holders and exactly the quorum", 4, s.proofs(t, rest)),
        (s, NAME, "a bad signature of no holder behind the quorum", 4, s.proofs(t, rest, [behind])),
        (s, NAME, "a bad signature of a device that is no survivor", 4, s.proofs(t, rest, [gone])),
        (c, CURIOUS, "exactly t boxes, with a curious server", 2, c.boxes(c.t)),
        (c, CURIOUS, "t holders and nobody else, with a curious server", 4, c.proofs(c.t, 0)),
        (c, CURIOUS, "a bad signature of no holder, with a curious server", 4, c.proofs(c.t, 0, [c.far[0]])),
    ]
    rows = []
    for d000, session, name, step, message in made:
        raw = messages.dump(message)
        answer = d000.answer(step, raw)
        assert not isinstance(messages.load_secagg_message(answer), messages.Abort), name
        rows.append({"name": name, "session": session, "step": step, "hex": raw.hex(), "answer": answer.hex()})
    return rows
