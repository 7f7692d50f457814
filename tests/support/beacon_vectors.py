"""Vectors of verified cohorts (``docs/cohorts.md``): ``python tests/support/beacon_vectors.py`` writes the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgewise.core import frame, vector
from edgewise.core.keys import derive
from edgewise.crypto import sign
from edgewise.engine import beacon
from edgewise.engine.ports import Trust
from edgewise.plan.sampling import Sampling

HERE = Path(__file__).parents[1] / "protocol" / "vectors" / "cohorts.json"
RUN, ROUNDS, CONTRIBUTORS = "ab" * 32, 4, 3
DEVICES = tuple(f"{i:064x}" for i in range(12))
TOP = bytes(range(32))
IDENTITIES = {d: sign.pair(derive(TOP, "identity", d)) for d in DEVICES}
TRUST = Trust(lambda d: IDENTITIES[d].public, lambda d: IDENTITIES[d].secret, roster=DEVICES)
FIXED = Sampling("fixed", 12, 5, 5, 5, 5, 60.0, 5 / 12)
CYCLIC = Sampling("cyclic", 12, 4, 4, 4, 4, 60.0, 4 / 12, 3)


def whole() -> frame.Beacon:
    """A beacon of the first devices."""
    values = {d: derive(TOP, "value", d) for d in DEVICES[:CONTRIBUTORS]}
    listed = tuple(frame.Committed(device=d, commitment=beacon.commitment(RUN, d, v)) for d, v in values.items())
    anchor = beacon.anchor(TOP, ROUNDS)
    fixed = beacon.list_digest(RUN, anchor, listed)
    signed = (sign.sign(IDENTITIES[d].secret, beacon.reveal_digest(fixed, d, v)) for d, v in values.items())
    return frame.Beacon(run=RUN, anchor=anchor, listed=listed, values=tuple(values.values()), signatures=tuple(signed))


def _refused(good: frame.Beacon) -> dict[str, frame.Beacon]:
    def one(change: Callable[[frame.Beacon], dict[str, Any]]) -> frame.Beacon:
        return msgspec.structs.replace(good, **change(good))

    return {
        "of another run": one(lambda b: {"run": "cd" * 32}),
        "a device is missing": one(
            lambda b: {"listed": b.listed[1:], "values": b.values[1:], "signatures": b.signatures[1:]}
        ),
        "a device too many": one(
            lambda b: {
                "listed": (*b.listed, frame.Committed(device=DEVICES[CONTRIBUTORS], commitment=bytes(32))),
                "values": (*b.values, bytes(32)),
                "signatures": (*b.signatures, bytes(64)),
            }
        ),
        "a reveal is missing": one(lambda b: {"values": b.values[:-1], "signatures": b.signatures[:-1]}),
        "another value": one(lambda b: {"values": (bytes(32), *b.values[1:])}),
        "another order": one(lambda b: {"listed": b.listed[::-1], "values": b.values[::-1]}),
        "a device twice": one(lambda b: {"listed": (b.listed[0], b.listed[0], b.listed[2])}),
        "a stranger": one(
            lambda b: {"listed": (*b.listed[:2], frame.Committed(device="f" * 64, commitment=b.listed[2].commitment))}
        ),
        "another anchor": one(lambda b: {"anchor": bytes(32)}),
        "a signature for another list": one(lambda b: {"signatures": (bytes(64), *b.signatures[1:])}),
    }


def made() -> dict[str, Any]:
    """The contents of the file."""
    good = whole()
    fixed = beacon.list_digest(RUN, good.anchor, good.listed)
    joint, _ = beacon.joint(RUN, CONTRIBUTORS, TRUST, frame.dump(good))
    keys = [beacon.key(TOP, ROUNDS, r) for r in range(ROUNDS)]
    drawn = {}
    for sampling in (FIXED, CYCLIC):
        seeds = [beacon.seed(sampling, joint, r, key) for r, key in enumerate(keys)]
        drawn[sampling.kind] = {
            "invite": sampling.invite, "groups": sampling.groups, "seeds": [s.hex() for s in seeds],
            "cohorts": [sorted(beacon.drawn(sampling, DEVICES, s, r)) for r, s in enumerate(seeds)],
        }  # fmt: skip
    return {
        "run": RUN, "rounds": ROUNDS, "contributors": CONTRIBUTORS,
        "devices": {d: IDENTITIES[d].public.hex() for d in DEVICES}, "top": TOP.hex(), "keys": [k.hex() for k in keys],
        "anchor": good.anchor.hex(), "values": [v.hex() for v in good.values],
        "commitments": [c.commitment.hex() for c in good.listed], "list": fixed.hex(),
        "signatures": [s.hex() for s in good.signatures], "joint": joint.hex(), "beacon": frame.dump(good).hex(),
        "digest": vector.digest(frame.dump(good)), "drawn": drawn,
        "refused": {name: frame.dump(bad).hex() for name, bad in _refused(good).items()},
    }  # fmt: skip


if __name__ == "__main__":
    HERE.write_text(json.dumps(made(), indent=1) + "\n")
