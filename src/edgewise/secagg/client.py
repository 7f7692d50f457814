"""Device side of secure aggregation with one server, a pure state machine.

    start ─► Advertised ─Roster─► Sharing ─Boxes─► Waiting ─Survivors─► Signed ─Proofs─► Finished
                 └──────────────────┴─────────────────┴──────────────────┴────► Aborted(code)

The masked update of device u is y = x + PRG(b) + sum_(v > u) PRG(k_uv) - sum_(v < u) PRG(k_uv) in the ring. Here v runs
over the neighbours whose boxes arrived. The signature of v on its boxes shows that v deals under this roster, and so
under no other roster of the session, where its key might be revealed.
Guarantees: nothing that a server sends can make a device reveal both secrets of another device. It answers one survivor
    list per session, which enough holders and enough devices of the roster have signed. Afterwards it has no state.
A device reveals its own seed together with its shares of other devices' secrets. So no sum depends on the shares of a
device that is still present.
Source: Bonawitz et al. 2017, ePrint 2017/281, figure 4 (malicious); Bell et al. 2020, ePrint 2020/704.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import msgspec
import numpy as np

from edgewise.core.errors import CompositionError, DecodeError
from edgewise.core.safe_repr import outline
from edgewise.crypto import agree, seal, shamir, sign
from edgewise.kernels.bits import pack_bits
from edgewise.secagg import graph, messages
from edgewise.secagg.messages import (
    DIGEST_BYTES,
    SEALED_BYTES,
    SessionKeys,
    roster_digest,
    share_check,
    share_fits,
    survivors_digest,
)
from edgewise.secagg.params import Floor, Params
from edgewise.secagg.secrets import (
    Body,
    Head,
    Hidden,
    box_binding,
    fresh_secret,
    mask_commitment,
    pair_seed,
    pairwise_masks,
    sealing_keys,
    shamir_coins,
)

Registry = Callable[[str], bytes | None]  # device -> its enrolled Ed25519 key, or None for an unknown device


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="state", kw_only=True):
    """Base of all states. Printing one shows its device and the sizes of its fields."""

    device: str

    __repr__ = outline


class OwnSecrets(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Secrets of one session. ``seed`` generates the device's own mask. ``shares`` seeds the sharing polynomials."""

    sid: bytes
    identity: bytes
    seal: bytes
    mask: bytes
    seed: bytes
    shares: bytes

    __repr__ = outline


class Advertised(_State, frozen=True, tag="advertised"):
    """State after sending keys. ``body`` (uint32) and ``head`` (uint64) are the update, little-endian. Both
    are None until ``ready`` puts them in."""

    own: OwnSecrets
    body: bytes | None = None
    head: bytes | None = None


class Sharing(_State, frozen=True, tag="sharing"):
    """State after sending shares. ``roster``: its digest. ``everybody``: the devices on it. ``keys``: neighbours'
    public keys. ``opening``: neighbour -> key that opens its box. ``threshold``: shares that give a secret back."""

    own: OwnSecrets
    body: bytes
    head: bytes
    roster: bytes
    everybody: tuple[str, ...]
    keys: dict[str, SessionKeys]
    opening: dict[str, bytes]
    threshold: int


class Waiting(_State, frozen=True, tag="waiting"):
    """State after sending the masked update. ``holders``: devices that hold shares of this device's secrets.
    ``paired``: devices that share a mask with it. ``held``: dealer -> the shares of its seed and of its key."""

    own: OwnSecrets
    roster: bytes
    everybody: tuple[str, ...]
    holders: tuple[str, ...]
    paired: tuple[str, ...]
    threshold: int
    held: dict[str, tuple[bytes, bytes]]


class Signed(_State, frozen=True, tag="signed"):
    """State after signing a survivor list, the only one of the session. Shares are revealed only after ``quorum``
    signatures of any devices and ``threshold`` signatures of holders on it."""

    own: OwnSecrets
    roster: bytes
    holders: tuple[str, ...]
    threshold: int
    quorum: int
    held: dict[str, tuple[bytes, bytes]]
    survivors: tuple[str, ...]


class Finished(_State, frozen=True, tag="finished"):
    """End state after revealing shares. It keeps none of them."""


class Aborted(_State, frozen=True, tag="aborted"):
    """End state of a device that ended its session early. ``code`` is the reason."""

    code: str


State = Advertised | Sharing | Waiting | Signed | Finished | Aborted
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[State] = msgspec.msgpack.Decoder(State)


def save(state: State) -> bytes:
    """Serialise a state, its secrets included. Keep the bytes where only the device's owner can read them."""
    return _encoder.encode(state)


def restore(raw: bytes) -> State:
    """Load a state of a device's machine that ``save`` wrote."""
    return _decoder.decode(raw)


def start(
    params: Params,
    sid: bytes,
    device: str,
    identity: bytes,
    body: Body,
    head: Head,
    entropy: bytes,
    floor: Floor = Floor(),  # noqa: B008 (immutable)
) -> tuple[Advertised | Aborted, bytes]:
    """Begin a session with its update at hand: ``advertise``, then ``ready``."""
    state, raw = advertise(params, sid, device, identity, entropy, floor)
    return (ready(params, state, body, head) if isinstance(state, Advertised) else state), raw


def advertise(
    params: Params,
    sid: bytes,
    device: str,
    identity: bytes,
    entropy: bytes,
    floor: Floor = Floor(),  # noqa: B008 (immutable)
) -> tuple[Advertised | Aborted, bytes]:
    """Begin a session whose update is not known yet.

    Args:
        identity: secret Ed25519 key of the device, 32 bytes. entropy: 32 secret bytes, fresh for every call.
        floor: the least that the device's owner accepts.
    Returns:
        The state, without an update, and the first message. Where ``params`` are below ``floor``, an end state with
        E-SECAGG-POLICY and an Abort.
    """
    if not floor.allows(params):
        return Aborted(device=device, code="E-SECAGG-POLICY"), messages.dump(messages.Abort(code="E-SECAGG-POLICY"))
    own = OwnSecrets(
        sid=sid,
        identity=identity,
        seal=fresh_secret(entropy, sid, "seal", device),
        mask=fresh_secret(entropy, sid, "mask", device),
        seed=fresh_secret(entropy, sid, "seed", device),
        shares=fresh_secret(entropy, sid, "shares", device),
    )
    keys = SessionKeys(
        seal=agree.public_half(own.seal),
        mask=agree.public_half(own.mask),
        commitment=mask_commitment(sid, device, own.seed),
        signature=b"",
    )
    keys = msgspec.structs.replace(keys, signature=sign.sign(identity, keys.signed(sid, device)))
    return Advertised(device=device, own=own), messages.dump(messages.AdvertiseMessage(keys=keys))


def ready(params: Params, state: Advertised, body: Body, head: Head) -> Advertised:
    """Put the update into a session, at the latest before the roster is answered. Body: uint32[dim] below 2^bits.
    Head: uint64[heads]. Raises ValueError for other shapes."""
    if body.shape != (params.dim,) or head.shape != (params.heads,):
        raise ValueError(f"body {body.shape} and head {head.shape} do not fit {params.dim} and {params.heads}")
    raw = body.astype("<u4", copy=False).tobytes(), head.astype("<u8", copy=False).tobytes()
    return msgspec.structs.replace(state, body=raw[0], head=raw[1])


def step(params: Params, state: State, raw: bytes, registry: Registry) -> tuple[State, bytes]:
    """Answer one message from the server. Any message but the next step of this session ends it with an Abort. A
    session that has ended answers with empty bytes."""
    if isinstance(state, Finished | Aborted):
        return state, b""
    try:
        message = messages.load_secagg_message(raw)
        match state, message:
            case Advertised(), messages.RosterMessage():
                return _share_secrets(params, state, message, registry)
            case Sharing(), messages.BoxesMessage():
                return _mask_update(params, state, message, registry, messages.boxes_message_digest(raw))
            case Waiting(), messages.SurvivorsMessage():
                return _sign_survivors(params, state, message)
            case Signed(), messages.ProofsMessage():
                return _reveal_shares(state, message, registry)
        raise DecodeError("E-SECAGG-ORDER", "the message is not the next step of this session.")
    except DecodeError as e:
        return Aborted(device=state.device, code=e.code), messages.dump(messages.Abort(code=e.code))


def _share_secrets(
    params: Params, state: Advertised, roster: messages.RosterMessage, registry: Registry
) -> tuple[State, bytes]:
    """Deal shares of both secrets to the neighbours on the roster."""
    if state.body is None or state.head is None:
        raise ValueError("the update is not in the session yet: call ready first")
    own, me, keys = state.own, state.device, roster.keys
    everybody = tuple(keys)
    if len(everybody) < params.n_min:
        raise DecodeError("E-SECAGG-FEW", f"the roster has {len(everybody)} devices. {params.n_min} are needed.")
    own_keys = keys.get(me)
    if own_keys is None or own_keys.seal != agree.public_half(own.seal) or own_keys.mask != agree.public_half(own.mask):
        raise DecodeError("E-SECAGG-KEYS", "this device's own keys are not on the roster.")
    for device, peer in keys.items():
        enrolled = registry(device)
        if enrolled is None or not sign.verify(enrolled, peer.signature, peer.signed(own.sid, device)):
            raise DecodeError("E-SECAGG-KEYS", "keys on the roster are not signed by an enrolled device.")
    if len({k.seal for k in keys.values()} | {k.mask for k in keys.values()}) != 2 * len(keys):
        raise DecodeError("E-SECAGG-KEYS", "the roster lists a key twice.")
    digest, near, threshold = roster_neighbours(params, own.sid, keys)
    secret, boxes, opening = agree.AgreementSecret(own.seal), {}, dict[str, bytes]()
    points = {device: i + 1 for i, device in enumerate(share_holders(me, near[me], len(keys)))}
    seeds = shamir.shamir_shares(own.seed, list(points.values()), threshold, shamir_coins(own.shares, digest, "seed"))
    masks = shamir.shamir_shares(own.mask, list(points.values()), threshold, shamir_coins(own.shares, digest, "key"))
    for device in near[me]:
        sealing, opening[device] = sealing_keys(secret, keys[device].seal, digest, me, device)
        both = seeds[points[device]], masks[points[device]]
        checks = _share_checks(digest, me, device, *both)
        boxes[device] = seal.seal(sealing, b"".join(both), box_binding(digest, me, device, checks)) + checks
    signed = messages.shares_digest(digest, me, messages.boxes_digest(boxes))
    # A device signs one roster per session, because no later state keeps what another roster would need.
    signature = sign.sign(own.identity, signed)
    after = Sharing(
        device=me,
        own=own,
        body=state.body,
        head=state.head,
        roster=digest,
        everybody=everybody,
        keys={d: keys[d] for d in near[me]},
        threshold=threshold,
        opening=opening,
    )
    return after, messages.dump(messages.SharesMessage(boxes=boxes, signature=signature))


def _share_checks(roster: bytes, dealer: str, holder: str, seed: bytes, key: bytes) -> bytes:
    """Compute the check values of both shares that a holder gets."""
    return share_check(roster, dealer, holder, b"seed", seed) + share_check(roster, dealer, holder, b"key", key)


def roster_neighbours(
    params: Params, sid: bytes, keys: dict[str, SessionKeys]
) -> tuple[bytes, dict[str, tuple[str, ...]], int]:
    """Compute a session's roster digest, each device's neighbours and the threshold from the signed keys.

    Raises DecodeError(E-SECAGG-FEW) where no graph of that many devices keeps the policy's promise.
    """
    try:
        k, threshold = params.policy.shape(len(keys))
    except CompositionError as e:  # The number of devices came over the wire, so it is no error of this program.
        raise DecodeError("E-SECAGG-FEW", e.what) from None
    digest = roster_digest(sid, keys)
    return digest, dict(graph.mask_neighbours(digest, tuple(keys), k)), threshold


def share_holders(device: str, near: tuple[str, ...], n: int) -> list[str]:
    """List the holders of a device's shares: its neighbours, in a complete graph of ``n`` devices also itself."""
    return sorted((*near, device)) if len(near) == n - 1 else list(near)


def _mask_update(
    params: Params, state: Sharing, message: messages.BoxesMessage, registry: Registry, boxes_received: bytes
) -> tuple[State, bytes]:
    """Open the boxes of the neighbours, and mask the update with the seeds shared with them."""
    own, me = state.own, state.device
    held, failed = dict[str, tuple[bytes, bytes]](), list[str]()
    masking = agree.AgreementSecret(own.mask)
    for sender, dealt in message.boxes.items():
        if sender not in state.keys:
            raise DecodeError("E-SECAGG-KEYS", "a box came from a device that is no neighbour.")
        enrolled, signed = registry(sender), messages.shares_digest(state.roster, sender, dealt.all)
        if enrolled is None or not sign.verify(enrolled, dealt.signature, signed):  # It would count as a survivor.
            raise DecodeError("E-SECAGG-KEYS", "the sender of a box has not signed that it deals under this roster.")
        box, checks = dealt.box, dealt.box[SEALED_BYTES:]
        try:
            plain = seal.open_sealed(
                state.opening[sender], box[:SEALED_BYTES], box_binding(state.roster, sender, me, checks)
            )
        except DecodeError:
            failed.append(sender)  # The sender has one holder fewer. The mask between the two cancels all the same.
            continue
        seed, key = plain[: shamir.SHARE_BYTES], plain[shamir.SHARE_BYTES :]
        is_seed = share_fits(checks[:DIGEST_BYTES], state.roster, sender, me, b"seed", seed)
        if is_seed and share_fits(checks[DIGEST_BYTES:], state.roster, sender, me, b"key", key):
            held[sender] = seed, key  # The server would take any other share for a lie of this device.
        else:
            failed.append(sender)
    holders = share_holders(me, tuple(state.keys), len(state.everybody))
    if len(held) + (me in holders) < state.threshold:
        raise DecodeError("E-SECAGG-FEW", f"{len(held)} neighbours sent shares. {state.threshold} are needed.")
    hidden = Hidden(params, np.frombuffer(state.body, "<u4"), np.frombuffer(state.head, "<u8"))
    context = params.bound(state.roster)
    seeds = ((v, pair_seed(masking, state.keys[v].mask, state.roster, me, v)) for v in message.boxes)
    hidden.mask(chain([(own.seed, 1)], pairwise_masks(me, seeds)), context)
    after = Waiting(
        device=me,
        own=own,
        roster=state.roster,
        everybody=state.everybody,
        holders=tuple(holders),
        paired=tuple(message.boxes),
        threshold=state.threshold,
        held=held,
    )
    packed, head = bytes(pack_bits(hidden.body, params.bits)), hidden.head.astype("<u8").tobytes()
    signature = sign.sign(own.identity, messages.masked_digest(context, me, boxes_received, packed, head, failed))
    masked = messages.MaskedMessage(body=packed, head=head, failed=tuple(failed), signature=signature)
    return after, messages.dump(masked)


def _sign_survivors(params: Params, state: Waiting, message: messages.SurvivorsMessage) -> tuple[State, bytes]:
    """Sign the survivor list, if it keeps to what this device agreed to."""
    me, survivors = state.device, message.devices
    if not set(state.everybody).issuperset(survivors):
        raise DecodeError("E-SECAGG-SURVIVORS", "the survivor list names a device that is not on the roster.")
    if me not in survivors:
        raise DecodeError("E-SECAGG-SURVIVORS", "the survivor list lacks this device.")
    if len(survivors) < (need := params.needed(len(state.everybody))):
        raise DecodeError("E-SECAGG-FEW", f"the survivor list has {len(survivors)} devices. {need} are needed.")
    if not set(state.paired).issuperset(set(survivors) & set(state.holders) - {me}):
        raise DecodeError("E-SECAGG-SURVIVORS", "a neighbour on the survivor list shares no mask with this device.")
    signature = sign.sign(state.own.identity, survivors_digest(state.roster, survivors))
    after = Signed(
        device=me,
        own=state.own,
        roster=state.roster,
        holders=state.holders,
        threshold=state.threshold,
        quorum=params.policy.quorum(len(state.everybody)),
        held=state.held,
        survivors=survivors,
    )
    return after, messages.dump(messages.ConsistentMessage(signature=signature))


def _reveal_shares(state: Signed, message: messages.ProofsMessage, registry: Registry) -> tuple[State, bytes]:
    """Reveal one share for each dealer: of its own mask if it survived, else of its key."""
    signed, alive, holders = survivors_digest(state.roster, state.survivors), set(state.survivors), set(state.holders)
    by_holders, by_anybody = 0, 0  # numbers of valid signatures
    for device, signature in message.signatures.items():
        wanted = by_anybody < state.quorum or (by_holders < state.threshold and device in holders)
        if not wanted or device not in alive:
            continue  # With enough signatures no other list can have as many. Each check costs as much as an agreement.
        enrolled = registry(device)
        if enrolled is None or not sign.verify(enrolled, signature, signed):
            raise DecodeError("E-SECAGG-SURVIVORS", "a device has signed another list of survivors.")
        by_holders, by_anybody = by_holders + (device in holders), by_anybody + 1
    if by_holders < state.threshold or by_anybody < state.quorum:
        need = f"{state.threshold} and {state.quorum} are needed"
        raise DecodeError("E-SECAGG-FEW", f"{by_holders} holders and {by_anybody} devices signed the list. {need}.")
    seeds = {d: shares[0] for d, shares in state.held.items() if d in alive}
    keys = {d: shares[1] for d, shares in state.held.items() if d not in alive}
    seeds[state.device] = shamir.field_element(state.own.seed)
    seeds, keys = messages.ordered_for_wire(seeds), messages.ordered_for_wire(keys)
    signed = messages.revealed_digest(state.roster, state.device, seeds, keys)
    revealed = messages.RevealedMessage(seeds=seeds, keys=keys, signature=sign.sign(state.own.identity, signed))
    return Finished(device=state.device), messages.dump(revealed)
