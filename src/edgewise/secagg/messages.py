"""The messages of single-server secure aggregation, and their only form on the wire: MessagePack maps, strict.

    step   device -> server                      server -> device
    0      Advertise   keys, signed              Roster      everybody's keys
    1      Shares      sealed, one per holder    Boxes       those sealed for this device, and who signed for them
    2      Masked      the hidden update, and    Survivors   who is in the sum
                       whose boxes failed
    3      Consistent  signature on that list    Proofs      the others' signatures
    4      Revealed    shares, one kind of each
    any    Abort       a code                    (silence)

Device ids are strings. Maps and lists of devices are sorted by them, in the order of code points, and name nobody
twice. Unknown or missing fields, other types, fields of another length than written here, another order and any other
encoding of the same message are DecodeErrors. Printing a message shows sizes alone: t
shares printed by accident would be somebody's secret.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

import msgspec

from edgewise.core.errors import DecodeError
from edgewise.core.safe_repr import outline
from edgewise.crypto.seal import OVERHEAD_BYTES
from edgewise.crypto.shamir import SHARE_BYTES, is_element
from edgewise.crypto.sign import SIGNATURE_BYTES

PROTOCOL = b"edgewise/secagg/v3"
CODES = (  # with which a device may end its session
    "E-COHORT", "E-FRAME", "E-KEY-AGREE", "E-RUNG",
    "E-SECAGG-FEW", "E-SECAGG-KEYS", "E-SECAGG-ORDER", "E-SECAGG-POLICY", "E-SECAGG-SURVIVORS",
)  # fmt: skip
DIGEST_BYTES = 32
SEALED_BYTES = 2 * SHARE_BYTES + OVERHEAD_BYTES  # two shares, sealed
CHECKS_BYTES = 2 * DIGEST_BYTES  # a digest of either share
BOX_BYTES = SEALED_BYTES + CHECKS_BYTES

Device = Annotated[str, msgspec.Meta(max_length=256)]
Word = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]  # a public key or a digest
Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Box = Annotated[bytes, msgspec.Meta(min_length=BOX_BYTES, max_length=BOX_BYTES)]
Share = Annotated[bytes, msgspec.Meta(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    """Base of all messages."""

    __repr__ = outline


class Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A device's public keys of one session.

    Attributes:
        seal: X25519, 32 bytes: shares are sealed under it. mask: X25519, 32 bytes: pairwise masks come from it.
        commitment: 32 bytes, of the seed of the device's own mask. signature: Ed25519 over ``signed``.
    """

    seal: Word
    mask: Word
    commitment: Word
    signature: Signature

    def signed(self, sid: bytes, device: str) -> bytes:
        """What the signature is on."""
        return digest(b"keys", sid, device.encode(), self.seal, self.mask, self.commitment)


class Advertise(_Message, frozen=True, tag="advertise"):
    """0, device: my keys."""

    keys: Keys


class Roster(_Message, frozen=True, tag="roster"):
    """0, server: the keys of all who sent some, sorted by device."""

    keys: dict[Device, Keys]


class Shares(_Message, frozen=True, tag="shares"):
    """1, device: for each neighbour one box: its shares of my two secrets, sealed, and a digest of either.

    ``signature``: over ``shares_digest``. It shows others that I deal under this roster, and of a session's rosters a
    device signs one.
    """

    boxes: dict[Device, Box]
    signature: Signature


class Dealt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one device dealt to another. ``all``: ``boxes_digest`` of all that it dealt, which ``signature`` is on."""

    box: Box
    all: Word
    signature: Signature

    __repr__ = outline


class Boxes(_Message, frozen=True, tag="boxes"):
    """1, server: the boxes that others sealed for this device; who is missing has dropped out."""

    boxes: dict[Device, Dealt]


class Masked(_Message, frozen=True, tag="masked"):
    """2, device: body, residues of ``bits`` bits packed as in ``kernels.bits``; head, little-endian uint64; and the
    senders of boxes that failed, did not open or fit: the device holds no shares of these.

    Signed, with the roster and the boxes as they came (``masked_digest``): any residues are a masked update of
    something, so nothing else shows damage to it, or to what the device was told before.
    """

    body: bytes
    head: bytes
    failed: tuple[Device, ...]
    signature: Signature


class Survivors(_Message, frozen=True, tag="survivors"):
    """2, server: whose masked updates it has, sorted."""

    devices: tuple[Device, ...]


class Consistent(_Message, frozen=True, tag="consistent"):
    """3, device: Ed25519 over ``survivors_digest`` of the list that I was told, and the roster."""

    signature: Signature


class Proofs(_Message, frozen=True, tag="proofs"):
    """3, server: the signatures that it has, sorted by device."""

    signatures: dict[Device, Signature]


class Revealed(_Message, frozen=True, tag="revealed"):
    """4, device: of survivors the share of their own mask's seed, of the others that of the key behind pairwise masks.
    Under its own name stands its own seed, whole (``shamir.element``). ``signature``: over ``revealed_digest``, without
    which damage on the way would look like a lie."""

    seeds: dict[Device, Share]
    keys: dict[Device, Share]
    signature: Signature


class Abort(_Message, frozen=True, tag="abort"):
    """Device: I end the session, because of this."""

    code: Annotated[str, msgspec.Meta(max_length=64)]


Message = (
    Advertise | Roster | Shares | Boxes | Masked | Survivors | Consistent | Proofs | Revealed | Abort
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Message)


def dump(message: Message) -> bytes:
    """Serialise one message."""
    return _encoder.encode(message)


def load(raw: bytes) -> Message:
    """Parse one message. Raises DecodeError(E-FRAME) for anything that ``dump`` cannot have produced."""
    try:
        message: Message = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DecodeError("E-FRAME", "malformed message of secure aggregation.") from None
    if _encoder.encode(message) != raw or not _sorted(message):
        raise DecodeError("E-FRAME", "a message of secure aggregation in another encoding than `dump` gives.")
    return message


def _sorted(message: Message) -> bool:
    """Whether each map and list of devices is in order, without one twice."""
    tables = (getattr(message, field) for field in message.__struct_fields__)
    return all(a < b for table in tables if isinstance(table, dict | tuple) for a, b in pairwise(table))


def digest(label: bytes, *parts: bytes) -> bytes:
    """SHA-256 over the protocol's name, a label and the parts, each with its length before it."""
    h = hashlib.sha256()
    for part in (PROTOCOL, label, *parts):
        h.update(len(part).to_bytes(8, "little"))
        h.update(part)
    return h.digest()


def session_id(task: str, round: int, model: str, config: str, nonce: bytes) -> bytes:
    """What all of a session hangs on: devices that were given another model or configuration get other masks, which do
    not cancel.

    Args:
        task: the run. model: digest of the round's model. config: ``configuration``, in hex. nonce: the server's 32
        fresh bytes.
    """
    return digest(b"session", task.encode(), round.to_bytes(8, "little"), model.encode(), config.encode(), nonce)


def configuration(layout: str, rule: bytes, public: bytes, clip: float | None, support: str | None) -> bytes:
    """What devices of a round were told beside its model: of other positions, steps or clips sums would make no sense,
    or could be told apart.

    Args:
        layout: digest of the update's. rule: the round's training rule, MessagePack as in the invitation. public: the
        round's public key. clip, support: as in the invitation; None counts as 0.0, and as an
        empty text.
    """
    return digest(
        b"configuration", layout.encode(), rule, public, struct.pack("<d", clip or 0.0), (support or "").encode()
    )


def drawn(config: bytes, beacon: str, key: bytes) -> bytes:
    """The configuration of a round whose cohort is verified: with the digest of the run's beacon, and the round's key
    (``core.frame.Invite``)."""
    return digest(b"drawn", config, beacon.encode(), key)


def roster_digest(sid: bytes, keys: Mapping[str, Keys]) -> bytes:
    """What a session hangs on once its devices are known: fixed only when the last of them has signed its keys.

    ``keys``: sorted by device.
    """
    return digest(b"roster", sid, *(part for d, k in keys.items() for part in (k.signed(sid, d), k.signature)))


def share_check(roster: bytes, dealer: str, holder: str, kind: bytes, share: bytes) -> bytes:
    """What a dealer says of a share to everybody: its holder sees when it was given another one, and the server when
    the holder reveals another one. ``kind``: b"seed" or b"key". A share has 256 random bits, so this does not show it.
    """
    return digest(b"share", roster, dealer.encode(), holder.encode(), kind, share)


def fits(check: bytes, roster: bytes, dealer: str, holder: str, kind: bytes, share: bytes) -> bool:
    """Whether a share is the one that its dealer's check names, and an element of the field.

    A number of p or more is no share, whatever its check says. Its holder passes it over and the server does not take
    it, so everybody who counts the shares of a dealer counts the same ones.
    """
    return is_element(share) and share_check(roster, dealer, holder, kind, share) == check


def boxes_digest(boxes: Mapping[str, bytes]) -> bytes:
    """All boxes that one device deals, sorted by holder."""
    return digest(b"boxes", *(part for d, box in boxes.items() for part in (d.encode(), box)))


def shares_digest(roster: bytes, device: str, all: bytes) -> bytes:
    """What a device signs of what it deals. ``all``: ``boxes_digest``."""
    return digest(b"shares", roster, device.encode(), all)


def told_digest(raw: bytes) -> bytes:
    """The ``boxes`` message as it came."""
    return digest(b"told", raw)


def masked_digest(context: bytes, device: str, told: bytes, body: bytes, head: bytes, failed: Sequence[str]) -> bytes:
    """What a device signs of its masked update. ``context``: ``Params.bound``. ``told``: ``told_digest``."""
    return digest(b"masked", context, device.encode(), told, body, head, *(d.encode() for d in failed))


def revealed_digest(roster: bytes, device: str, seeds: Mapping[str, bytes], keys: Mapping[str, bytes]) -> bytes:
    """What a device signs of the shares that it reveals, both maps sorted."""
    both = (digest(kind, *(part for d, share in table.items() for part in (d.encode(), share)))
            for kind, table in ((b"seeds", seeds), (b"keys", keys)))  # fmt: skip
    return digest(b"revealed", roster, device.encode(), *both)


def survivors_digest(roster: bytes, devices: Sequence[str]) -> bytes:
    """What survivors sign: with the roster, so that they agree on neighbours and thresholds too."""
    return digest(b"survivors", roster, *(d.encode() for d in devices))


def ordered(table: Mapping[str, Any]) -> dict[str, Any]:
    """A map with sorted keys, as it travels."""
    return dict(sorted(table.items()))
