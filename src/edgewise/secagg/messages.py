"""Messages of secure aggregation with one server, and their only wire form: strict MessagePack maps.

    step   device -> server                      server -> device
    0      Advertise   keys, signed              Roster      the keys of all devices
    1      Shares      sealed, one per holder    Boxes       those sealed for this device, with dealers' signatures
    2      Masked      the masked update, and    Survivors   devices in the sum
                       dealers of failed boxes
    3      Consistent  signature on that list    Proofs      the others' signatures
    4      Revealed    shares, one kind of each
    any    Abort       a code                    (silence)

Device ids are strings. Maps and lists of devices are sorted by id, in the order of code points, and name no device
twice. Unknown or missing fields, other types, fields of another length than written here, another order and any other
encoding of the same message are DecodeErrors. Printing a message shows sizes only, because t printed shares would give
away a secret.
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
from edgewise.crypto.shamir import SHARE_BYTES, is_field_element
from edgewise.crypto.sign import SIGNATURE_BYTES

PROTOCOL = b"edgewise/secagg/v3"
CODES = (  # A device may end its session with one of these.
    "E-COHORT", "E-FRAME", "E-KEY-AGREE", "E-RUNG",
    "E-SECAGG-FEW", "E-SECAGG-KEYS", "E-SECAGG-ORDER", "E-SECAGG-POLICY", "E-SECAGG-SURVIVORS",
)  # fmt: skip
DIGEST_BYTES = 32
SEALED_BYTES = 2 * SHARE_BYTES + OVERHEAD_BYTES  # two sealed shares
CHECKS_BYTES = 2 * DIGEST_BYTES  # one digest for each share
BOX_BYTES = SEALED_BYTES + CHECKS_BYTES

Device = Annotated[str, msgspec.Meta(max_length=256)]
Word = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]  # a public key or a digest
Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Box = Annotated[bytes, msgspec.Meta(min_length=BOX_BYTES, max_length=BOX_BYTES)]
Share = Annotated[bytes, msgspec.Meta(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    """Base of all messages."""

    __repr__ = outline


class SessionKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Public keys of one device for one session.

    Attributes:
        seal: X25519 key that shares are sealed under, 32 bytes. mask: X25519 key of the pairwise masks, 32 bytes.
        commitment: to the seed of the device's own mask, 32 bytes. signature: Ed25519 over ``signed``.
    """

    seal: Word
    mask: Word
    commitment: Word
    signature: Signature

    def signed(self, sid: bytes, device: str) -> bytes:
        """Digest that the signature covers."""
        return secagg_digest(b"keys", sid, device.encode(), self.seal, self.mask, self.commitment)


class AdvertiseMessage(_Message, frozen=True, tag="advertise"):
    """Step 0, device: its keys."""

    keys: SessionKeys


class RosterMessage(_Message, frozen=True, tag="roster"):
    """Step 0, server: the keys of every device that sent some, sorted by device."""

    keys: dict[Device, SessionKeys]


class SharesMessage(_Message, frozen=True, tag="shares"):
    """Step 1, device: one box per neighbour. A box holds sealed shares of the sender's two secrets and their digests.

    ``signature`` covers ``shares_digest``. It shows others that the sender deals under this roster. A device signs only
    one roster of a session.
    """

    boxes: dict[Device, Box]
    signature: Signature


class DealtBox(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Box that one device dealt to another. ``all``: ``boxes_digest`` of all its boxes, which ``signature`` covers."""

    box: Box
    all: Word
    signature: Signature

    __repr__ = outline


class BoxesMessage(_Message, frozen=True, tag="boxes"):
    """Step 1, server: the boxes that neighbours sealed for this device. A missing neighbour has dropped out."""

    boxes: dict[Device, DealtBox]


class MaskedMessage(_Message, frozen=True, tag="masked"):
    """Step 2, device: the masked update.

    Attributes:
        body: residues of ``bits`` bits, packed as in ``kernels.bits``. head: little-endian uint64.
        failed: senders of boxes that did not open or whose shares did not fit. The device holds no shares of these.
        signature: over ``masked_digest``, which covers the roster and the boxes as they arrived. Any residues are a
        masked update of something, so nothing else shows damage to them or to the boxes.
    """

    body: bytes
    head: bytes
    failed: tuple[Device, ...]
    signature: Signature


class SurvivorsMessage(_Message, frozen=True, tag="survivors"):
    """Step 2, server: the devices whose masked updates arrived, sorted."""

    devices: tuple[Device, ...]


class ConsistentMessage(_Message, frozen=True, tag="consistent"):
    """Step 3, device: Ed25519 over ``survivors_digest`` of the list that it received, and of the roster."""

    signature: Signature


class ProofsMessage(_Message, frozen=True, tag="proofs"):
    """Step 3, server: signatures on the survivor list, sorted by device."""

    signatures: dict[Device, Signature]


class RevealedMessage(_Message, frozen=True, tag="revealed"):
    """Step 4, device: shares of others' secrets.

    Attributes:
        seeds: survivor -> share of the seed of its own mask. Under the device's own name stands its own seed, whole
        (``shamir.field_element``). keys: other dealer -> share of the key of its pairwise masks.
        signature: over ``revealed_digest``. Without it damage in transit would look like a lie.
    """

    seeds: dict[Device, Share]
    keys: dict[Device, Share]
    signature: Signature


class Abort(_Message, frozen=True, tag="abort"):
    """Any step, device: the reason why it ends the session."""

    code: Annotated[str, msgspec.Meta(max_length=64)]


Message = (
    AdvertiseMessage | RosterMessage | SharesMessage | BoxesMessage | MaskedMessage
    | SurvivorsMessage | ConsistentMessage | ProofsMessage | RevealedMessage | Abort
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Message)


def dump(message: Message) -> bytes:
    """Serialise one message of secure aggregation."""
    return _encoder.encode(message)


def load_secagg_message(raw: bytes) -> Message:
    """Parse one message. Raises DecodeError(E-FRAME) for anything that ``dump`` cannot have produced."""
    try:
        message: Message = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DecodeError("E-FRAME", "the message of secure aggregation is malformed.") from None
    if _encoder.encode(message) != raw or not _has_sorted_maps(message):
        raise DecodeError("E-FRAME", "the message of secure aggregation is not in the encoding that `dump` gives.")
    return message


def _has_sorted_maps(message: Message) -> bool:
    """Tell whether each map and list of devices is sorted and names no device twice."""
    tables = (getattr(message, field) for field in message.__struct_fields__)
    return all(a < b for table in tables if isinstance(table, dict | tuple) for a, b in pairwise(table))


def secagg_digest(label: bytes, *parts: bytes) -> bytes:
    """Compute SHA-256 over the protocol's name, a label and the parts, each preceded by its length."""
    h = hashlib.sha256()
    for part in (PROTOCOL, label, *parts):
        h.update(len(part).to_bytes(8, "little"))
        h.update(part)
    return h.digest()


def secagg_session_id(task: str, round: int, model: str, config: str, nonce: bytes) -> bytes:
    """Compute the id of a session. Everything in the session depends on it.

    Guarantees: devices that received different models or configurations get different masks, which do not cancel.
    Args:
        task: id of the run. model: digest of the round's model. config: ``secagg_configuration``, in hex. nonce: the
        server's 32 fresh bytes.
    """
    return secagg_digest(b"session", task.encode(), round.to_bytes(8, "little"), model.encode(), config.encode(), nonce)


def secagg_configuration(layout: str, rule: bytes, public: bytes, clip: float | None, support: str | None) -> bytes:
    """Digest of everything that the devices of a round received beside its model.

    Updates with different positions, training steps or clips would make no sense in one sum, or could be told apart.
    Args:
        layout: digest of the update's layout. rule: the round's training rule, MessagePack as in the invitation.
        public: the round's public key. clip, support: as in the invitation. None counts as 0.0 and as an empty text.
    """
    return secagg_digest(
        b"configuration", layout.encode(), rule, public, struct.pack("<d", clip or 0.0), (support or "").encode()
    )


def drawn_secagg_configuration(config: bytes, beacon: str, key: bytes) -> bytes:
    """Extend the configuration of a round whose cohort is verified.

    It then includes the digest of the run's beacon and the round's key (``core.frame.Invite``).
    """
    return secagg_digest(b"drawn", config, beacon.encode(), key)


def roster_digest(sid: bytes, keys: Mapping[str, SessionKeys]) -> bytes:
    """Digest of a session and the keys of its devices. Only the last device's signed keys fix it.

    Args: keys: sorted by device.
    """
    return secagg_digest(b"roster", sid, *(part for d, k in keys.items() for part in (k.signed(sid, d), k.signature)))


def share_check(roster: bytes, dealer: str, holder: str, kind: bytes, share: bytes) -> bytes:
    """Digest of a share, which its dealer publishes.

    The holder detects when its box has another share. The server detects when the holder reveals another share. A share
    has 256 random bits, so the digest does not show it.
    Args: kind: b"seed" or b"key".
    """
    return secagg_digest(b"share", roster, dealer.encode(), holder.encode(), kind, share)


def share_fits(check: bytes, roster: bytes, dealer: str, holder: str, kind: bytes, share: bytes) -> bool:
    """Tell whether a share fits its dealer's ``check`` and is an element of the field.

    A number of p or more is no share, whatever its check says. Its holder skips it and the server refuses it. So all
    who count the shares of a dealer count the same ones.
    """
    return is_field_element(share) and share_check(roster, dealer, holder, kind, share) == check


def boxes_digest(boxes: Mapping[str, bytes]) -> bytes:
    """Digest of all boxes that one device deals, sorted by holder."""
    return secagg_digest(b"boxes", *(part for d, box in boxes.items() for part in (d.encode(), box)))


def shares_digest(roster: bytes, device: str, all: bytes) -> bytes:
    """Digest that a device signs for the boxes that it deals. ``all``: ``boxes_digest``."""
    return secagg_digest(b"shares", roster, device.encode(), all)


def boxes_message_digest(raw: bytes) -> bytes:
    """Digest of a ``BoxesMessage`` message as it arrived."""
    return secagg_digest(b"told", raw)


def masked_digest(context: bytes, device: str, told: bytes, body: bytes, head: bytes, failed: Sequence[str]) -> bytes:
    """Digest that a device signs for its masked update. ``context``: ``Params.bound``. ``told``:
    ``boxes_message_digest``."""
    return secagg_digest(b"masked", context, device.encode(), told, body, head, *(d.encode() for d in failed))


def revealed_digest(roster: bytes, device: str, seeds: Mapping[str, bytes], keys: Mapping[str, bytes]) -> bytes:
    """Digest that a device signs for the shares that it reveals. Both maps are sorted."""
    both = (secagg_digest(kind, *(part for d, share in table.items() for part in (d.encode(), share)))
            for kind, table in ((b"seeds", seeds), (b"keys", keys)))  # fmt: skip
    return secagg_digest(b"revealed", roster, device.encode(), *both)


def survivors_digest(roster: bytes, devices: Sequence[str]) -> bytes:
    """Digest that survivors sign. It covers the roster, so that they also agree on neighbours and thresholds."""
    return secagg_digest(b"survivors", roster, *(d.encode() for d in devices))


def ordered_for_wire(table: Mapping[str, Any]) -> dict[str, Any]:
    """Sort a map by its keys, as the wire format asks."""
    return dict(sorted(table.items()))
