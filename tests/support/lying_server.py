"""A server of secure aggregation that lies: about rosters, about who dealt, about survivors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from session import IDENTITIES, SID, Session

from edgewise.crypto import agree, sign
from edgewise.secagg import messages, recovery
from edgewise.secagg.client import roster_neighbours, share_holders


class Server:
    """One that lies. ``s``: the devices' machines, also those of corrupt devices, which do as honest ones."""

    def __init__(self, s: Session, invited: Sequence[str]) -> None:
        self.s, self.keys = s, {d: messages.load_secagg_message(raw).keys for d, raw in s.advertise(invited)}  # type: ignore[union-attr]
        self.aborted = Counter[str]()
        self.signatures: dict[str, tuple[bytes, bytes]] = {}  # of R2, to be shown again

    def ask(self, device: str, message: messages.Message, kind: type) -> dict[str, messages.Message]:
        """The answer, if it is of this kind."""
        raw = self.s.answer(device, messages.dump(message))
        answer = messages.load_secagg_message(raw) if raw else None
        if isinstance(answer, messages.Abort):
            self.aborted[answer.code] += 1
        return {device: answer} if isinstance(answer, kind) else {}  # type: ignore[dict-item]

    def play(
        self,
        told: Sequence[str],
        roster: Sequence[str],
        survivors: Sequence[str],
        forge: str = "",
        corrupt: Sequence[str] = (),
    ) -> tuple[dict[str, messages.MaskedMessage], dict[str, messages.RevealedMessage]]:
        """A session under ``roster`` with those of it who are told of it; the boxes of the rest are invented. The
        ``corrupt`` ones sign the list, whatever they have seen."""
        keys = {d: self.keys[d] for d in sorted(roster)}
        digest, near, _ = roster_neighbours(self.s.params, SID, keys)
        boxes: dict[str, dict[str, bytes]] = {}
        signed: dict[str, tuple[bytes, bytes]] = {}
        for d in told:
            for said in self.ask(d, messages.RosterMessage(keys=keys), messages.SharesMessage).values():
                boxes[d] = said.boxes  # type: ignore[union-attr]
                signed[d] = messages.boxes_digest(boxes[d]), said.signature  # type: ignore[union-attr]
        for d in set(roster) - set(told):
            boxes[d] = {v: bytes(messages.BOX_BYTES) for v in near[d]}
            every = messages.boxes_digest(boxes[d])
            mine = sign.sign(IDENTITIES["d119"].secret, messages.shares_digest(digest, d, every))
            signed[d] = self.signatures[d] if forge == "again" else (every, mine if forge == "own" else bytes(64))
        if forge != "none":
            self.signatures |= signed
        else:
            boxes = {d: box for d, box in boxes.items() if d in told}
        masked: dict[str, messages.MaskedMessage] = {}
        for d in told:
            dealt = {
                v: messages.DealtBox(box=boxes[v][d], all=signed[v][0], signature=signed[v][1])
                for v in near[d] if v in boxes
            }  # fmt: skip
            masked |= self.ask(d, messages.BoxesMessage(boxes=dealt), messages.MaskedMessage)  # type: ignore[arg-type]
        consistent: dict[str, messages.ConsistentMessage] = {}
        for d in set(masked) & set(survivors):
            consistent |= self.ask(
                d, messages.SurvivorsMessage(devices=tuple(sorted(survivors))), messages.ConsistentMessage
            )  # type: ignore[arg-type]
        said = messages.survivors_digest(digest, sorted(survivors))
        consistent |= {d: messages.ConsistentMessage(signature=sign.sign(IDENTITIES[d].secret, said)) for d in corrupt}
        revealed: dict[str, messages.RevealedMessage] = {}
        for d in set(consistent).difference(corrupt):
            proofs = messages.ProofsMessage(signatures={v: consistent[v].signature for v in sorted(consistent)})
            revealed |= self.ask(d, proofs, messages.RevealedMessage)  # type: ignore[arg-type]
        return masked, revealed

    def secret(
        self, device: str, roster: Sequence[str], revealed: dict[str, messages.RevealedMessage]
    ) -> agree.AgreementSecret:
        """The one behind a device's pairwise masks, from the shares that others revealed."""
        keys = {d: self.keys[d] for d in sorted(roster)}
        _, near, threshold = roster_neighbours(self.s.params, SID, keys)
        holders = enumerate(share_holders(device, near[device], len(keys)), 1)
        shares = {i: revealed[h].keys[device] for i, h in holders if h in revealed and device in revealed[h].keys}
        return agree.AgreementSecret(recovery.recover_key(self.keys[device], shares, threshold))
