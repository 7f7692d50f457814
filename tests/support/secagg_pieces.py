"""Every derivation of secure aggregation by itself, with its inputs, for ``tests/protocol/vectors``."""

from __future__ import annotations

from typing import Any

import msgspec
from edwards import cases
from session import IDENTITIES, ROOT, SID

from edgewise.core.errors import CompositionError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import derive
from edgewise.crypto import agree, seal, shamir, sign
from edgewise.kernels.bits import pack_bits
from edgewise.secagg import client, graph, messages, secrets
from edgewise.secagg.params import Params, TrustPolicy

RULE = msgspec.msgpack.encode(LocalRule(steps=8, lr=0.25, segments=("a",)))
SHAPES = (  # n, corrupt, dropout, server
    (2, 0.1, 0.1, "malicious"), (3, 0.1, 0.1, "malicious"), (4, 0.1, 0.1, "malicious"), (64, 0.1, 0.1, "malicious"),
    (20, 0.25, 0.1, "malicious"), (20, 0.25, 0.1, "curious"),
    (65, 0.05, 0.05, "curious"), (65, 0.05, 0.05, "malicious"), (66, 0.02, 0.02, "malicious"),
    (100, 0.1, 0.1, "malicious"), (125, 0.176, 0.05, "malicious"), (200, 0.1, 0.0, "malicious"),
    (500, 0.2, 0.0, "malicious"), (1000, 0.1, 0.0, "malicious"), (1000, 0.05, 0.05, "malicious"),
    (1000, 0.2, 0.1, "malicious"), (80, 0.0, 0.1, "curious"), (1000, 0.1, 0.1, "curious"),
    # 0.29 of 100 devices are 29
    (100, 0.0, 0.29, "malicious"),
    # the condition on connected survivors decides; in the last four also that it is of sigma + 2 bits
    (100, 0.02, 0.1, "curious"), (1000, 0.0, 0.3, "curious"), (66, 0.05, 0.28, "curious"),
    (80, 0.05, 0.3, "curious"), (150, 0.0, 0.3, "curious"), (200, 0.02, 0.2, "curious"), (300, 0.01, 0.1, "curious"),
    # no sparse graph, and the complete one
    (100, 0.3, 0.0, "malicious"), (150, 0.28, 0.02, "malicious"), (256, 0.2, 0.15, "malicious"),
    # halving passes over a smaller k
    (631, 0.1, 0.05, "malicious"),
)  # fmt: skip


NONE = (  # no graph: more than a third fail, no sparse graph of so many, more than there are in any session
    (7, 0.3, 0.2, "malicious"), (64, 0.3, 0.1, "malicious"), (257, 0.3, 0.1, "malicious"),
    (1000, 0.3, 0.1, "malicious"), (65_537, 0.0, 0.0, "malicious"), (65_537, 0.0, 0.0, "curious"),
)  # fmt: skip


def _none(n: int, corrupt: float, dropout: float, server: str) -> str:
    try:
        TrustPolicy(corrupt, dropout, server).shape(n)  # type: ignore[arg-type]
    except CompositionError:
        return "E-SECAGG-FEW"  # of a session; a plan is refused with E-NMIN
    raise AssertionError(n)


def _shape(n: int, corrupt: float, dropout: float, server: str) -> dict[str, Any]:
    policy = TrustPolicy(corrupt, dropout, server)  # type: ignore[arg-type]
    k, t = policy.shape(n)
    return {"n": n, "corrupt": corrupt, "dropout": dropout, "server": server, "k": k, "t": t, "lying": policy.lying(n),
            "quorum": policy.quorum(n)}  # fmt: skip


def pieces() -> dict[str, Any]:
    """All of them; bytes as hex, numbers of 64 bits as text."""
    one, two, three = (derive(ROOT, label) for label in ("one", "two", "three"))
    hidden = {bits: secrets.Hidden(Params(TrustPolicy(), 2, bits, 6, 2)) for bits in (8, 16, 17, 20, 32)}
    for h in hidden.values():
        h.mask([(one, 1)], SID)
    names, devices = [f"d{i:03d}" for i in range(12)], ("d000", "d001", "d002")
    signed = {}
    for d, word in zip(devices, (one, two, three), strict=True):
        keys = messages.SessionKeys(seal=word, mask=word[::-1], commitment=SID, signature=bytes(64))
        signature = sign.sign(IDENTITIES[d].secret, keys.signed(SID, d))
        signed[d] = msgspec.structs.replace(keys, signature=signature)
    roster, loaded = messages.roster_digest(SID, signed), agree.AgreementSecret(one)
    coins = secrets.shamir_coins(one, roster, "seed")
    shared = shamir.shamir_shares(two, [1, 2, 3], 2, coins)
    wide = shamir.shamir_shares(two, [1, 7, 2**32], 3, coins)
    forward, backward = secrets.sealing_keys(loaded, agree.public_half(two), roster, "a", "b")
    checks = client._share_checks(roster, "a", "b", shared[1], shared[2])
    bound = secrets.box_binding(roster, "a", "b", checks)
    told, dealt = messages.dump(messages.BoxesMessage(boxes={})), {"d001": one + checks, "d002": two + checks}
    return {
        "digest": {"label": "x", "parts": ["", "616263"], "hex": messages.secagg_digest(b"x", b"", b"abc").hex()},
        "session": {"run": "run", "round": 3, "model": "model", "config": "config", "nonce": bytes(32).hex(),
                    "sid": SID.hex()},
        "configuration": [
            {"layout": "ab", "rule": RULE.hex(), "public": one.hex(), "clip": clip, "support": support,
             "hex": messages.secagg_configuration("ab", RULE, one, clip, support).hex()}
            for clip, support in ((0.5, "cd"), (0.0, ""))],
        "fresh": {"entropy": one.hex(), "sid": SID.hex(), "device": "d000",
                  **{r: secrets.fresh_secret(one, SID, r, "d000").hex()
                     for r in ("seal", "mask", "seed", "shares", "report", "share", "box")}},
        "keys": {d: {"identity": IDENTITIES[d].secret.hex(), "seal": k.seal.hex(), "mask": k.mask.hex(),
                     "commitment": k.commitment.hex(), "signed": k.signed(SID, d).hex(), "signature": k.signature.hex()}
                 for d, k in signed.items()},
        "roster": roster.hex(),
        "commitment": {"device": "d000", "seed": one.hex(), "hex": secrets.mask_commitment(SID, "d000", one).hex()},
        "polynomial": {
            "shares": one.hex(), "kind": "seed", "coins": coins.hex(), "secret": two.hex(),
            "coefficients": [c.to_bytes(33, "little").hex() for c in shamir._uniform_elements(coins, 2)],
            "2 of 3": {str(x): y.hex() for x, y in shared.items()},
            "3 of 3": {str(x): y.hex() for x, y in wide.items()},
            "key coins": secrets.shamir_coins(one, roster, "key").hex()},
        "element": {"secret": two.hex(), "hex": shamir.field_element(two).hex()},
        "box": {"dealer": "a", "holder": "b", "secret": one.hex(), "peer": agree.public_half(two).hex(),
                "key": forward.hex(), "key back": backward.hex(), "seed share": shared[1].hex(),
                "key share": shared[2].hex(), "checks": checks.hex(), "bound": bound.hex(),
                "box": (seal.seal(forward, shared[1] + shared[2], bound) + checks).hex()},
        "pair_seed": {"secret": one.hex(), "peer": agree.public_half(two).hex(), "one": "b", "other": "a",
                      "hex": secrets.pair_seed(loaded, agree.public_half(two), roster, "b", "a").hex()},
        "rung": {"roster": roster.hex(), "rung": 3, "hex": Params(TrustPolicy(), 2, 20, 1, 0, 3).bound(roster).hex()},
        "mask": [{"seed": one.hex(), "context": SID.hex(), "bits": bits, "body": h.body.tolist(),
                  "head": [str(v) for v in h.head]} for bits, h in hidden.items()],
        "pack": [{"bits": bits, "body": h.body.tolist(), "hex": bytes(pack_bits(h.body, bits)).hex()}
                 for bits, h in hidden.items()],
        "masked": {"context": roster.hex(), "device": "d000", "told": told.hex(), "body": b"body".hex(),
                   "head": b"headhead".hex(), "failed": ["d001", "d002"],
                   "hex": messages.masked_digest(
                       roster, "d000", messages.boxes_message_digest(told), b"body", b"headhead", ("d001",
                           "d002")).hex()},
        "shares": {"roster": roster.hex(), "device": "d000", "boxes": {d: box.hex() for d, box in dealt.items()},
                   "all": messages.boxes_digest(dealt).hex(),
                   "hex": messages.shares_digest(roster, "d000", messages.boxes_digest(dealt)).hex()},
        "revealed": {"roster": roster.hex(), "device": "d000", "seeds": {"d000": shared[1].hex()},
                     "keys": {"d001": shared[2].hex()},
                     "hex": messages.revealed_digest(roster, "d000", {"d000": shared[1]}, {"d001": shared[2]}).hex()},
        "survivors": {"devices": ["d000", "d002"], "hex": messages.survivors_digest(roster, ["d000", "d002"]).hex()},
        "circle": [{"roster": one.hex(), "k": k, "devices": names,
                    "neighbours": {d: list(v) for d, v in sorted(graph.mask_neighbours(one, names, k).items())}}
                   for k in (4, 11)],
        "shapes": [_shape(*shape) for shape in SHAPES],
        "no shapes": [dict(zip(("n", "corrupt", "dropout", "server", "code"), (*case, _none(*case)), strict=True))
                      for case in NONE],
        "signatures": [{"what": c.name, "public": c.public.hex(), "signature": c.signature.hex(),
                        "message": c.message.hex(), "good": c.good} for c in cases()],
        "encodings": {
            "abort": messages.dump(messages.Abort(code="E-SECAGG-FEW")).hex(),
            "boxes, none": messages.dump(messages.BoxesMessage(boxes={})).hex(),
            "survivors": messages.dump(messages.SurvivorsMessage(devices=("\N{EURO SIGN}", "\N{DOLPHIN}"))).hex()},
    }  # fmt: skip
