"""Server side of secure aggregation with one server, a pure state machine.

    Advertising ─deadline─► Sharing ─all or deadline─► Masking ─► Signing ─► Unmasking ─► Released
         └──────────────────────┴──────────────────────────┴──────────┴──────────┴─────► Aborted(code)

A step ends when every device that is still in has answered, or at its deadline (``StepClosed``). A device that has not
answered by then has dropped out. Its later messages are refused. Masked updates are added on arrival, so memory is O(d)
for any number of devices. A device that breaks the protocol loses its place and is reported with a code. After its
masked update is added it is only reported.
The sum is opened only with ``Params.needed`` survivors. Every share is checked against its dealer's digest and every
secret against its device's commitment. Wrong ones are left out and cannot give a wrong sum (``recovery``). A device
signs every message. It signs its masked update together with the boxes as they arrived and with the senders of failed
boxes. So damage in transit spoils no sum and makes no honest device a liar.
Guarantees: the sum is opened, whatever liars deal and reveal, where every device that does not reveal its own seed has
    dealt right shares and at least t of its holders reveal them. While no more devices are corrupt and drop out than
    the policy says, only a device that dealt wrong shares ends a session for want of them, and it is reported.
Not checked, because nobody can: that a masked update holds what its device claims, nor, before it is too late, that
    shares which fit their checks give back a secret.
Source: Bonawitz et al. 2017, ePrint 2017/281, figure 4.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from edgewise.core.append_map import AppendMap
from edgewise.core.errors import DecodeError
from edgewise.crypto import agree, sign
from edgewise.kernels.bits import unpack_bits
from edgewise.secagg import messages, recovery
from edgewise.secagg.client import roster_neighbours, share_holders
from edgewise.secagg.events import Device, Effect, Event, SecAggDeviceGone, SecAggRefused, SecAggSend, SecAggStepClosed
from edgewise.secagg.graph import smallest_graph_part
from edgewise.secagg.messages import SEALED_BYTES, survivors_digest
from edgewise.secagg.params import Params
from edgewise.secagg.secrets import Hidden, pair_seed, pairwise_masks
from edgewise.secagg.server_states import (
    Aborted,
    Advertising,
    Masking,
    Released,
    SecAggSession,
    Sharing,
    Signing,
    State,
    Unmasking,
)

Out = tuple[State, tuple[Effect, ...]]
_STEPS = (messages.AdvertiseMessage, messages.SharesMessage, messages.MaskedMessage, messages.ConsistentMessage)
_EARLIER: Mapping[type, tuple[type, ...]] = {
    kind: _STEPS[:i] for i, kind in enumerate((Advertising, Sharing, Masking, Signing, Unmasking))
}


def start(session: SecAggSession) -> Advertising:
    """Begin an empty session. It collects keys until ``StepClosed``, because the caller knows how many are enough."""
    return Advertising(session)


def restricted_secagg_server(state: Advertising, devices: Collection[Device], params: Params) -> Advertising:
    """Restrict a session to some of its devices. They become each other's whole roster."""
    chosen = set(devices)
    keys = AppendMap((d, keys) for d, keys in state.keys.items() if d in chosen)
    return Advertising(
        replace(state.session, params=params),
        keys,
        AppendMap((key, None) for other in keys.values() for key in (other.seal, other.mask)),
    )


def secagg_waiting_for(state: State) -> frozenset[Device]:
    """List the devices that have not answered this step yet. Empty while advertising and at the end."""
    asked, answered, gone = _step_books(state)
    return frozenset(device for device in asked if device not in answered and device not in gone)


def secagg_waits_for(state: State, device: Device) -> bool:
    """Tell whether a device is in ``waiting_for(state)``, in constant time for a session of any size."""
    asked, answered, gone = _step_books(state)
    return device in asked and device not in answered and device not in gone


def _step_books(state: State) -> tuple[Mapping[Device, Any], Mapping[Device, Any], Mapping[Device, Any]]:
    """Tables of the devices that this step asked, that answered and that dropped out. The last two are disjoint."""
    match state:
        case Sharing():
            return state.keys, state.boxes, state.gone
        case Masking():
            return state.shared.boxes, state.folded, state.gone
        case Signing():
            return state.masked.folded, state.signatures, state.gone
        case Unmasking():
            return state.signed.signatures, state.revealed, state.gone
    return {}, {}, {}


def step_secagg_server(state: State, event: Event) -> Out:
    """Take one event. Returns the next state and the effects. Never raises for anything that a device does."""
    if isinstance(state, Released | Aborted):
        return state, ()
    if isinstance(event, SecAggStepClosed):
        return _close_step(state)
    if isinstance(event, SecAggDeviceGone):
        return _close_if_settled(_with_dropped_device(state, event.device), ())
    try:
        message = messages.load_secagg_message(event.raw)
        if isinstance(state, Advertising):
            return _take_keys(state, event.device, message), ()
        if type(message) in _EARLIER[type(state)]:
            return state, ()  # The network delivered an older message again.
        if not secagg_waits_for(state, event.device):
            raise DecodeError("E-SECAGG-ORDER", "this step expects no message from the device.")
        if isinstance(message, messages.Abort):
            code = message.code if message.code in messages.CODES else "E-SECAGG-ORDER"
            return _close_if_settled(_with_dropped_device(state, event.device), (SecAggRefused(event.device, code),))
        after = _take_answer(state, event.device, message)
        lied = isinstance(after, Unmasking) and after.revealed[event.device].lied
        return _close_if_settled(after, (SecAggRefused(event.device, recovery.LIED),) if lied else ())
    except DecodeError as e:
        after = _with_dropped_device(state, event.device)
        return _close_if_settled(after, (SecAggRefused(event.device, e.code),))


def _with_dropped_device(state: State, device: Device) -> State:
    """Mark a device as dropped out where this step still waits for it."""
    if isinstance(state, Sharing | Masking | Signing | Unmasking) and secagg_waits_for(state, device):
        return replace(state, gone=state.gone.plus(device, None))
    return state


def _take_keys(state: Advertising, device: Device, message: messages.Message) -> Advertising:
    if not isinstance(message, messages.AdvertiseMessage):
        raise DecodeError("E-SECAGG-ORDER", "this step expects keys.")
    if device in state.keys:
        raise DecodeError("E-SECAGG-ORDER", "the device has sent keys before.")
    keys = message.keys
    _verify(state.session, device, keys.signature, keys.signed(state.session.sid, device))
    if not (
        agree.usable_public_key(keys.seal) and agree.usable_public_key(keys.mask)
    ):  # Every neighbour would have to end its session.
        raise DecodeError("E-KEY-AGREE", "a device's public key is not usable.")
    if keys.seal in state.seen or keys.mask in state.seen or keys.seal == keys.mask:
        raise DecodeError("E-SECAGG-KEYS", "a public key stands twice in the session.")
    seen = state.seen.plus(keys.seal, None).plus(keys.mask, None)
    return replace(state, keys=state.keys.plus(device, keys), seen=seen)


def _take_answer(state: State, device: Device, message: messages.Message) -> State:
    """Check a device's answer to the step and store it. Raises DecodeError for a wrong answer."""
    match state, message:
        case Sharing(), messages.SharesMessage():
            if set(message.boxes) != set(state.near[device]):
                raise DecodeError("E-SECAGG-ORDER", "the boxes are not for exactly the device's neighbours.")
            digest = messages.boxes_digest(message.boxes)
            _verify(state.session, device, message.signature, messages.shares_digest(state.roster, device, digest))
            signatures = state.signatures.plus(device, (message.signature, digest))
            return replace(state, boxes=state.boxes.plus(device, message.boxes), signatures=signatures)
        case Masking(), messages.MaskedMessage():
            params, context = state.shared.session.params, state.shared.session.params.bound(state.shared.roster)
            failed, boxes = message.failed, state.boxes_sent[device]
            signed = messages.masked_digest(context, device, boxes, message.body, message.head, failed)
            _verify(state.shared.session, device, message.signature, signed)  # Fails also for other boxes than sent.
            if not set(_mask_partners(state.shared, device)).issuperset(failed):
                raise DecodeError("E-SECAGG-ORDER", "the device reports a failed box that it was not sent.")
            body = unpack_bits(memoryview(message.body), params.bits, params.dim)
            if body is None or len(message.head) != 8 * params.heads:
                raise DecodeError("E-PAYLOAD", "the masked update has another size than the session's.")
            state.total.add(body.astype(np.uint32, copy=False), np.frombuffer(message.head, "<u8").astype(np.uint64))
            return replace(state, folded=state.folded.plus(device, failed))
        case Signing(), messages.ConsistentMessage():
            _verify(state.masked.shared.session, device, message.signature, state.digest, "E-SECAGG-SURVIVORS")
            return replace(state, signatures=state.signatures.plus(device, message.signature))
        case Unmasking(), messages.RevealedMessage():
            shared, folded = state.signed.masked.shared, state.signed.masked.folded
            dealers = set(_mask_partners(shared, device)).difference(folded[device])
            alive = {dealer for dealer in dealers if dealer in folded}
            if not {device, *alive}.issuperset(message.seeds) or not (dealers - alive).issuperset(message.keys):
                raise DecodeError("E-SECAGG-ORDER", "shares have the wrong kind, or were not dealt to the device.")
            signed = messages.revealed_digest(shared.roster, device, message.seeds, message.keys)
            _verify(shared.session, device, message.signature, signed)  # Otherwise damage in transit would be its lie.
            sid, keys = shared.session.sid, shared.keys[device]
            checked = recovery.check_revealed(sid, shared.roster, device, keys, message, shared.boxes, len(dealers))
            return replace(state, revealed=state.revealed.plus(device, checked))
    raise DecodeError("E-SECAGG-ORDER", "the message is not the answer to this step.")


def _verify(
    session: SecAggSession, device: Device, signature: bytes, signed: bytes, code: str = "E-SECAGG-KEYS"
) -> None:
    enrolled = session.registry(device)
    if enrolled is None or not sign.verify(enrolled, signature, signed):
        raise DecodeError(code, "the message is not what an enrolled device has signed for this session.")


def _close_if_settled(state: State, effects: tuple[Effect, ...]) -> Out:
    """Close the step once every asked device has answered or dropped out."""
    asked, answered, gone = _step_books(state)
    if isinstance(state, Advertising | Released | Aborted) or len(answered) + len(gone) < len(asked):
        return state, effects
    after, more = _close_step(state)
    return after, effects + more


def _close_step(state: State) -> Out:
    match state:
        case Advertising():
            return _send_roster(state)
        case Sharing():
            return _send_boxes(state)
        case Masking():
            return _send_survivors(state)
        case Signing():
            return _send_proofs(state)
        case Unmasking():
            return _open_sum(state)
    return state, ()


def _too_few(have: int, need: int, what: str) -> Aborted:
    return Aborted("E-SECAGG-FEW", f"{have} devices {what}, {need} are needed")


def _send_roster(state: Advertising) -> Out:
    session, keys = state.session, messages.ordered_for_wire(state.keys)
    try:
        digest, near, threshold = roster_neighbours(session.params, session.sid, keys)
    except DecodeError as e:
        return Aborted(e.code, e.what), ()
    need = session.params.needed(len(keys))
    if len(keys) < need:
        return _too_few(len(keys), need, "sent keys"), ()
    raw = messages.dump(messages.RosterMessage(keys=keys))
    return Sharing(session, digest, keys, near, threshold), tuple(SecAggSend(device, raw) for device in keys)


def _send_boxes(state: Sharing) -> Out:
    params, need = state.session.params, state.session.params.needed(len(state.keys))
    if len(state.boxes) < need:
        return _too_few(len(state.boxes), need, "sent shares"), ()
    letters = []
    for device in state.boxes:
        dealt = dict[Device, messages.DealtBox]()
        for v in _mask_partners(state, device):
            signature, digest = state.signatures[v]
            dealt[v] = messages.DealtBox(box=state.boxes[v][device], all=digest, signature=signature)
        letters.append(SecAggSend(device, messages.dump(messages.BoxesMessage(boxes=dealt))))
    checks = ((device, {v: box[SEALED_BYTES:] for v, box in boxes.items()}) for device, boxes in state.boxes.items())
    shared = replace(state, boxes=AppendMap(checks), signatures=AppendMap())
    digests = {letter.device: messages.boxes_message_digest(letter.raw) for letter in letters}
    return Masking(shared, digests, Hidden(params)), tuple(letters)


def _mask_partners(state: Sharing, device: Device) -> list[Device]:
    """List the neighbours whose boxes a device is sent. It shares a mask with each."""
    return [v for v in state.near[device] if v in state.boxes]


def _send_survivors(state: Masking) -> Out:
    """Fix the devices whose masked updates are in the sum, and ask for signatures."""
    shared, need = state.shared, state.shared.session.params.needed(len(state.shared.keys))
    found = _accused_dealers(state)
    effects = _refused_devices(found.named)
    if len(state.folded) < need:
        return _too_few(len(state.folded), need, "sent a masked update"), effects
    if (part := smallest_graph_part(shared.near, state.folded)) < (least := shared.session.params.n_min):
        return _too_few(part, least, "share no mask with the other survivors"), effects
    if found.lacking:
        return Aborted("E-SECAGG-FEW", f"too few shares of {', '.join(found.lacking)}"), effects
    survivors = tuple(sorted(state.folded))
    raw, digest = (
        messages.dump(messages.SurvivorsMessage(devices=survivors)),
        survivors_digest(shared.roster, survivors),
    )
    return Signing(state, survivors, digest), (*effects, *(SecAggSend(device, raw) for device in survivors))


def _share_holders(state: Sharing) -> dict[Device, list[Device]]:
    """Map each dealer to the holders of its shares, in the order of their points."""
    return {device: share_holders(device, state.near[device], len(state.keys)) for device in state.boxes}


def _accused_dealers(state: Masking) -> recovery.AccusedDealers:
    """Find the dealers of junk among those whose updates are in the sum."""
    most = state.shared.session.params.policy.lying(len(state.shared.keys))
    return recovery.accused_devices(_share_holders(state.shared), state.folded, state.shared.threshold, most)


def _refused_devices(named: Mapping[Device, str]) -> tuple[Effect, ...]:
    return tuple(SecAggRefused(device, code) for device, code in sorted(named.items()))


def _send_proofs(state: Signing) -> Out:
    shared, signers = state.masked.shared, sorted(state.signatures)
    quorum = shared.session.params.policy.quorum(len(shared.keys))
    if len(signers) < (need := max(shared.threshold, quorum)):
        return _too_few(len(signers), need, "signed the survivors"), ()
    letters = []
    for device in signers:
        shown = set(share_holders(device, shared.near[device], len(shared.keys))).intersection(signers)
        shown |= set(islice((d for d in signers if d not in shown), max(0, quorum - len(shown))))
        proofs = messages.ProofsMessage(signatures={d: state.signatures[d] for d in sorted(shown)})
        letters.append(SecAggSend(device, messages.dump(proofs)))
    return Unmasking(state), tuple(letters)


def _open_sum(state: Unmasking) -> Out:
    masked = state.signed.masked
    shared, total, survivors = masked.shared, masked.total, state.signed.survivors
    session, alive = shared.session, frozenset(survivors)
    found = recovery.recover_secrets(
        session.sid, shared.keys, _share_holders(shared), alive, state.revealed, shared.threshold
    )
    before = _accused_dealers(masked).named  # These were reported when all masked updates had arrived.
    late = {d: code for d, code in recovery.suspect_dealers(found.lacking, masked.folded).items() if d not in before}
    effects = _refused_devices({d: c for d, c in {**late, **found.named}.items() if before.get(d) != recovery.DEALT})
    if found.lacking:
        return Aborted("E-SECAGG-FEW", f"too few right shares of {', '.join(found.lacking)}"), effects
    context = session.params.bound(shared.roster)
    total.mask(((found.secrets[v], -1) for v in survivors), context)
    for device in sorted(set(shared.boxes) - alive):  # Survivors masked with these devices, which are not in the sum.
        secret, near = agree.AgreementSecret(found.secrets[device]), [v for v in shared.near[device] if v in alive]
        pairs = ((v, pair_seed(secret, shared.keys[v].mask, shared.roster, device, v)) for v in near)
        total.mask(pairwise_masks(device, pairs), context)
    return Released(total.body, total.head, survivors), effects
