"""The device's side of single-server secure aggregation, a pure machine.

    start ─► Advertised ─Roster─► Sharing ─Boxes─► Waiting ─Survivors─► Signed ─Proofs─► Finished
                 └──────────────────┴─────────────────┴──────────────────┴────► Aborted(code)

The masked update is y = x + PRG(b) + sum_(v > u) PRG(k_uv) - sum_(v < u) PRG(k_uv) in the ring, v over the neighbours
whose boxes came, each with its signature: v deals under this roster, and so under no other one of the session, where
its key might be revealed. Nothing that a server sends can make a device reveal both secrets of another one: it answers
one survivor list per session, which enough holders and enough devices of the roster have signed, and then has no state
left. It reveals its own seed when it reveals its shares of others', so that no sum depends on the shares of a device
that is still there.
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
    Keys,
    fits,
    roster_digest,
    share_check,
    survivors_digest,
)
from edgewise.secagg.params import Floor, Params
from edgewise.secagg.secrets import (
    Body,
    Head,
    Hidden,
    bound,
    coins,
    commitment,
    fresh,
    pair_seed,
    pairwise,
    sealing_keys,
)

Registry = Callable[[str], bytes | None]  # device -> its enrolled Ed25519 key, None for a stranger


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="state", kw_only=True):
    """Base; printing shows whose state it is, and sizes."""

    device: str

    __repr__ = outline


class Own(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A device's secrets of one session. ``seed``: of its own mask. ``shares``: polynomials are drawn from it."""

    sid: bytes
    identity: bytes
    seal: bytes
    mask: bytes
    seed: bytes
    shares: bytes

    __repr__ = outline


class Advertised(_State, frozen=True, tag="advertised"):
    """Keys are sent; ``body`` (uint32) and ``head`` (uint64) are the update, little-endian."""

    own: Own
    body: bytes
    head: bytes


class Sharing(_State, frozen=True, tag="sharing"):
    """Shares are sent. ``roster``: its digest. ``keys``: of the neighbours. ``everybody``: who is on the roster.
    ``opening``: the keys of the boxes that they send."""

    own: Own
    body: bytes
    head: bytes
    roster: bytes
    everybody: tuple[str, ...]
    keys: dict[str, Keys]
    opening: dict[str, bytes]
    threshold: int


class Waiting(_State, frozen=True, tag="waiting"):
    """The masked update is sent. ``holders``: of this device's secrets. ``paired``: with whom it shares a mask.
    ``held``: whose shares this device holds, seed and key."""

    own: Own
    roster: bytes
    everybody: tuple[str, ...]
    holders: tuple[str, ...]
    paired: tuple[str, ...]
    threshold: int
    held: dict[str, tuple[bytes, bytes]]


class Signed(_State, frozen=True, tag="signed"):
    """A survivor list is signed, this one and no other. ``quorum``: signatures on it that open it, of any devices."""

    own: Own
    roster: bytes
    holders: tuple[str, ...]
    threshold: int
    quorum: int
    held: dict[str, tuple[bytes, bytes]]
    survivors: tuple[str, ...]


class Finished(_State, frozen=True, tag="finished"):
    """Shares are revealed and forgotten."""


class Aborted(_State, frozen=True, tag="aborted"):
    """The session is over for this device."""

    code: str


State = Advertised | Sharing | Waiting | Signed | Finished | Aborted
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[State] = msgspec.msgpack.Decoder(State)


def save(state: State) -> bytes:
    """The state as bytes, secrets and all: for a store that its owner alone can read."""
    return _encoder.encode(state)


def restore(raw: bytes) -> State:
    """Inverse of ``save``."""
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
    """``advertise`` with an update that is ``ready``."""
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
    """Begin a session.

    Args:
        identity: secret Ed25519 key of the device, 32 bytes. entropy: 32 secret bytes, fresh for every call. floor:
        what the device's owner asks for.
    Returns:
        The state, without an update, and the first message; an end with E-SECAGG-POLICY where ``params`` are below
        ``floor``.
    """
    if not floor.allows(params):
        return Aborted(device=device, code="E-SECAGG-POLICY"), messages.dump(messages.Abort(code="E-SECAGG-POLICY"))
    own = Own(
        sid=sid,
        identity=identity,
        seal=fresh(entropy, sid, "seal", device),
        mask=fresh(entropy, sid, "mask", device),
        seed=fresh(entropy, sid, "seed", device),
        shares=fresh(entropy, sid, "shares", device),
    )
    keys = Keys(
        seal=agree.public(own.seal),
        mask=agree.public(own.mask),
        commitment=commitment(sid, device, own.seed),
        signature=b"",
    )
    keys = msgspec.structs.replace(keys, signature=sign.sign(identity, keys.signed(sid, device)))
    return Advertised(device=device, own=own, body=b"", head=b""), messages.dump(messages.Advertise(keys=keys))


def ready(params: Params, state: Advertised, body: Body, head: Head) -> Advertised:
    """The session with its update: body uint32[dim] below 2^bits, head uint64[heads]. At the latest before the roster
    is answered. Raises ValueError for other shapes."""
    if body.shape != (params.dim,) or head.shape != (params.heads,):
        raise ValueError(f"body {body.shape} and head {head.shape} do not fit {params.dim} and {params.heads}")
    raw = body.astype("<u4", copy=False).tobytes(), head.astype("<u8", copy=False).tobytes()
    return msgspec.structs.replace(state, body=raw[0], head=raw[1])


def step(params: Params, state: State, raw: bytes, registry: Registry) -> tuple[State, bytes]:
    """One message from the server. What is not the next step of this session ends it: the answer then is an Abort; a
    session that has ended answers nothing (empty bytes)."""
    if isinstance(state, Finished | Aborted):
        return state, b""
    try:
        message = messages.load(raw)
        match state, message:
            case Advertised(), messages.Roster():
                return _share(params, state, message, registry)
            case Sharing(), messages.Boxes():
                return _mask(params, state, message, registry, messages.told_digest(raw))
            case Waiting(), messages.Survivors():
                return _sign(params, state, message)
            case Signed(), messages.Proofs():
                return _reveal(state, message, registry)
        raise DecodeError("E-SECAGG-ORDER", "a message that is not the next step.")
    except DecodeError as e:
        return Aborted(device=state.device, code=e.code), messages.dump(messages.Abort(code=e.code))


def _share(params: Params, state: Advertised, roster: messages.Roster, registry: Registry) -> tuple[State, bytes]:
    own, me, keys = state.own, state.device, roster.keys
    everybody = tuple(keys)
    if len(everybody) < params.n_min:
        raise DecodeError("E-SECAGG-FEW", f"{len(everybody)} devices, at least {params.n_min} are needed.")
    mine = keys.get(me)
    if mine is None or mine.seal != agree.public(own.seal) or mine.mask != agree.public(own.mask):
        raise DecodeError("E-SECAGG-KEYS", "my own keys are not on the roster.")
    for device, theirs in keys.items():
        enrolled = registry(device)
        if enrolled is None or not sign.verify(enrolled, theirs.signature, theirs.signed(own.sid, device)):
            raise DecodeError("E-SECAGG-KEYS", "keys on the roster are not signed by an enrolled device.")
    if len({k.seal for k in keys.values()} | {k.mask for k in keys.values()}) != 2 * len(keys):
        raise DecodeError("E-SECAGG-KEYS", "a key stands twice on the roster.")
    digest, near, threshold = circle(params, own.sid, keys)
    secret, boxes, opening = agree.Secret(own.seal), {}, dict[str, bytes]()
    points = {device: i + 1 for i, device in enumerate(holding(me, near[me], len(keys)))}
    seeds = shamir.share(own.seed, list(points.values()), threshold, coins(own.shares, digest, "seed"))
    masks = shamir.share(own.mask, list(points.values()), threshold, coins(own.shares, digest, "key"))
    for device in near[me]:
        sealing, opening[device] = sealing_keys(secret, keys[device].seal, digest, me, device)
        both = seeds[points[device]], masks[points[device]]
        checks = _checks(digest, me, device, *both)
        boxes[device] = seal.seal(sealing, b"".join(both), bound(digest, me, device, checks)) + checks
    said = messages.shares_digest(digest, me, messages.boxes_digest(boxes))
    signature = sign.sign(own.identity, said)  # of a session's rosters this one alone: no step leads back to its keys
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
    return after, messages.dump(messages.Shares(boxes=boxes, signature=signature))


def _checks(roster: bytes, dealer: str, holder: str, seed: bytes, key: bytes) -> bytes:
    return share_check(roster, dealer, holder, b"seed", seed) + share_check(roster, dealer, holder, b"key", key)


def circle(params: Params, sid: bytes, keys: dict[str, Keys]) -> tuple[bytes, dict[str, tuple[str, ...]], int]:
    """The roster's digest, everybody's neighbours and the threshold, from the signed keys of a session.

    Raises DecodeError(E-SECAGG-FEW): no graph of that many devices keeps the policy's promise.
    """
    try:
        k, threshold = params.policy.shape(len(keys))
    except CompositionError as e:  # how many devices there are came over the wire
        raise DecodeError("E-SECAGG-FEW", e.what) from None
    digest = roster_digest(sid, keys)
    return digest, dict(graph.neighbours(digest, tuple(keys), k)), threshold


def holding(device: str, near: tuple[str, ...], n: int) -> list[str]:
    """Who holds shares of a device's secrets: its neighbours; where these are all others, also itself."""
    return sorted((*near, device)) if len(near) == n - 1 else list(near)


def _mask(
    params: Params, state: Sharing, message: messages.Boxes, registry: Registry, told: bytes
) -> tuple[State, bytes]:
    own, me = state.own, state.device
    held, failed = dict[str, tuple[bytes, bytes]](), list[str]()
    masking = agree.Secret(own.mask)
    for sender, dealt in message.boxes.items():
        if sender not in state.keys:
            raise DecodeError("E-SECAGG-KEYS", "a box from a device that is no neighbour.")
        enrolled, said = registry(sender), messages.shares_digest(state.roster, sender, dealt.all)
        if enrolled is None or not sign.verify(enrolled, dealt.signature, said):  # it would count as a survivor
            raise DecodeError("E-SECAGG-KEYS", "a box whose sender has not signed that it deals under this roster.")
        box, checks = dealt.box, dealt.box[SEALED_BYTES:]
        try:
            plain = seal.open(state.opening[sender], box[:SEALED_BYTES], bound(state.roster, sender, me, checks))
        except DecodeError:
            failed.append(sender)  # one holder fewer for it; the mask between the two cancels all the same
            continue
        seed, key = plain[: shamir.SHARE_BYTES], plain[shamir.SHARE_BYTES :]
        is_seed = fits(checks[:DIGEST_BYTES], state.roster, sender, me, b"seed", seed)
        if is_seed and fits(checks[DIGEST_BYTES:], state.roster, sender, me, b"key", key):
            held[sender] = seed, key  # any other share would be taken for this device's lie
        else:
            failed.append(sender)
    holders = holding(me, tuple(state.keys), len(state.everybody))
    if len(held) + (me in holders) < state.threshold:
        raise DecodeError("E-SECAGG-FEW", f"{len(held)} neighbours sent shares, {state.threshold} are needed.")
    hidden = Hidden(params, np.frombuffer(state.body, "<u4"), np.frombuffer(state.head, "<u8"))
    context = params.bound(state.roster)
    seeds = ((v, pair_seed(masking, state.keys[v].mask, state.roster, me, v)) for v in message.boxes)
    hidden.mask(chain([(own.seed, 1)], pairwise(me, seeds)), context)
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
    signature = sign.sign(own.identity, messages.masked_digest(context, me, told, packed, head, failed))
    masked = messages.Masked(body=packed, head=head, failed=tuple(failed), signature=signature)
    return after, messages.dump(masked)


def _sign(params: Params, state: Waiting, message: messages.Survivors) -> tuple[State, bytes]:
    me, survivors = state.device, message.devices
    if not set(state.everybody).issuperset(survivors):
        raise DecodeError("E-SECAGG-SURVIVORS", "the survivors are no part of the roster.")
    if me not in survivors:
        raise DecodeError("E-SECAGG-SURVIVORS", "the survivors are without me.")
    if len(survivors) < params.needed(len(state.everybody)):
        raise DecodeError("E-SECAGG-FEW", f"{len(survivors)} survivors are too few.")
    if not set(state.paired).issuperset(set(survivors) & set(state.holders) - {me}):
        raise DecodeError("E-SECAGG-SURVIVORS", "a neighbour survived with whom I share no mask.")
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
    return after, messages.dump(messages.Consistent(signature=signature))


def _reveal(state: Signed, message: messages.Proofs, registry: Registry) -> tuple[State, bytes]:
    said, alive, holders = survivors_digest(state.roster, state.survivors), set(state.survivors), set(state.holders)
    near, good = 0, 0  # signatures of holders, and of anybody
    for device, signature in message.signatures.items():
        wanted = good < state.quorum or (near < state.threshold and device in holders)
        if not wanted or device not in alive:
            continue  # enough to be sure that no other list can have as many; each costs as much as a key agreement
        enrolled = registry(device)
        if enrolled is None or not sign.verify(enrolled, signature, said):
            raise DecodeError("E-SECAGG-SURVIVORS", "a device has signed another list of survivors.")
        near, good = near + (device in holders), good + 1
    if near < state.threshold or good < state.quorum:
        need = f"{state.threshold} and {state.quorum} are needed"
        raise DecodeError("E-SECAGG-FEW", f"{near} holders and {good} devices signed the survivors, {need}.")
    seeds = {d: shares[0] for d, shares in state.held.items() if d in alive}
    keys = {d: shares[1] for d, shares in state.held.items() if d not in alive}
    seeds[state.device] = shamir.element(state.own.seed)
    seeds, keys = messages.ordered(seeds), messages.ordered(keys)
    said = messages.revealed_digest(state.roster, state.device, seeds, keys)
    revealed = messages.Revealed(seeds=seeds, keys=keys, signature=sign.sign(state.own.identity, said))
    return Finished(device=state.device), messages.dump(revealed)
