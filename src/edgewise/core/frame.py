"""The messages that cross a Cohort port, and their only form on the wire.

A frame is ``b"EWF" + version byte + MessagePack map`` (msgspec, tagged by ``"type"``). The decoder is strict: unknown
fields, missing fields, wrong types, trailing bytes, wrong magic, any encoding but ``dump``'s own (a key given twice, a
longer integer) and anything above ``limit_bytes`` are DecodeErrors, and the size is checked before anything is parsed.
Each side decodes what the other may send and nothing else: ``from_device`` on the server, ``from_server`` on devices.
Model vectors do not ride in frames: they are content-addressed blobs (``vector.digest``), named here by their digest,
so that one broadcast serves a whole cohort. The blob of one round's compressed step is itself a frame, ``Delta``.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec

from edgewise.core.errors import DecodeError
from edgewise.core.safe_repr import outline

MAGIC = b"EWF"
VERSION = 2
HEADER_BYTES = len(MAGIC) + 1
Number = Annotated[int, msgspec.Meta(ge=0)]
Word = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]  # a key, a value or a digest
Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
LIMIT_BYTES = 64 * 1024 * 1024  # default ceiling of one frame; a contribution of 5 MB leaves room for ten


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    """Base of all messages: immutable, no unknown fields; printing shows no payload."""

    __repr__ = outline


class LocalRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What the device does between download and upload; the same for every device of the round.

    Attributes:
        steps: optimizer steps, or the most of them where ``epochs`` is above 0.
        lr: learning rate of this round (the schedule over rounds is the server's).
        segments: names of the segments that train, the others stay as they are to the bit; empty = all train, and
            nothing is written into the frame.
        epochs: passes over the device's own records, which ``counted`` turns into steps; 0 = ``steps`` as they are.
    """

    steps: int
    lr: float
    segments: tuple[str, ...] = ()
    epochs: float = 0.0

    def counted(self, records: int, batch: int) -> LocalRule:
        """The rule of a device with so many records, in steps alone.

            steps = min(steps, max(1, ceil(epochs records / min(batch, records))))

        As it is where there are no epochs.
        """
        if not self.epochs:
            return self
        passes = self.epochs * records / max(1, min(batch, records))
        wanted = max(1, math.ceil(passes - 1e-9))  # 0.1 x 30 is 3.0000000000000004
        return msgspec.structs.replace(self, steps=min(self.steps, wanted), epochs=0.0)


class Draw(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What cohorts are drawn from (``engine.beacon``). ``beacon``: digest of the run's ``Beacon``, a blob. ``key``: of
    the server, for this round; 32 bytes."""

    beacon: str
    key: Word

    __repr__ = outline


class Invite(_Message, frozen=True, tag="invite", omit_defaults=True):
    """Server -> device: train on this model in this round.

    Attributes:
        run: identity of the run (``plan.facts``). round: from 0.
        spec: digest of the trainable spec; the device refuses to answer another one.
        model: digest of the round's parameters, and of what the strategy gives devices beside them, as one vector: of
            the snapshot's blob, and of what the deltas lead to.
        public: the round's public key, 32 bytes, for shared supports and grids.
        accepted: last round in which a contribution of this device entered a model, None if none; the device commits
            or discards its pending codec memory by it.
        deadline_s: seconds from now after which a contribution is late.
        base: digest of the model that the deltas start from, one that this device has; None = download ``model``.
        deltas: digests of the ``Delta`` blobs to apply to ``base``, in this order.
        support: digest of the blob with the positions of the last release (``Turn.support``); None = there are none.
        clip: the round's clip where it follows the updates (``Turn.clip``); None = fixed by the recipe.
        nonce: 32 fresh bytes that tell this round's secure aggregation from all others; None where there is none.
        draw: how the device draws the round's cohort itself; None where the server draws it.

    What is None is left out of the frame, but for ``accepted``.
    """

    run: str
    round: int
    spec: str
    model: str
    public: bytes
    accepted: Number | None
    deadline_s: float
    rule: LocalRule
    base: str | None = None
    deltas: tuple[str, ...] = ()
    support: str | None = None
    nonce: bytes | None = None
    clip: float | None = None
    draw: Draw | None = None


class Call(_Message, frozen=True, tag="call"):
    """Server -> device, before the first round: commit to a random value for the run's cohorts (``engine.beacon``).
    ``round`` is the number of the run's rounds in this and in the next three: no invitation has it."""

    run: str
    round: int


class Commitment(_Message, frozen=True, tag="commitment"):
    """Device -> server: the digest of a value that nobody else knows."""

    run: str
    round: int
    device: str
    commitment: Word


class Committed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A device on a list, and what it committed to."""

    device: str
    commitment: Word

    __repr__ = outline


class Commitments(_Message, frozen=True, tag="commitments"):
    """Server -> device: reveal the value, for this list alone. ``anchor``: the server's commitment to its keys of all
    rounds. ``listed``: sorted by device."""

    run: str
    round: int
    anchor: Word
    listed: tuple[Committed, ...]


class Reveal(_Message, frozen=True, tag="reveal"):
    """Device -> server: the value, and an Ed25519 signature that binds it to the list."""

    run: str
    round: int
    device: str
    value: Word
    signature: Signature


class Beacon(_Message, frozen=True, tag="beacon"):
    """Server -> devices, as a blob: the list, and in its order the reveals of all who are on it."""

    run: str
    anchor: Word
    listed: tuple[Committed, ...]
    values: tuple[Word, ...]
    signatures: tuple[Signature, ...]


class Delta(_Message, frozen=True, tag="delta"):
    """Server -> devices, as a blob: the step from the model of the round before to that of ``round``.

    Attributes:
        public: 32 bytes, what the payload's stages drew from; the key of its own round, whenever it is applied.
        payload: packed by the plan's downlink; a view as in ``Contribution``.
    """

    round: int
    public: bytes
    payload: memoryview


class Contribution(_Message, frozen=True, tag="contribution"):
    """Device -> server: the packed payload of one round. How long it took is the device's own business.
    ``payload`` is a view of the frame that it was read from."""

    run: str
    round: int
    device: str
    payload: memoryview


class Step(_Message, frozen=True, tag="step", omit_defaults=True):
    """Either way: one message of the round's secure aggregation. ``body`` is a message of ``secagg.messages``, with a
    strict form of its own; ``device`` is who sends or is sent it. ``rung``: with keys, the best that the device can
    send in time; with the server's messages, that of the device's group; None where the codec is fixed."""

    run: str
    round: int
    device: str
    body: bytes
    rung: Number | None = None


class Refusal(_Message, frozen=True, tag="refusal"):
    """Device -> server: no contribution this round, with a registered code and a reason (never data)."""

    run: str
    round: int
    device: str
    code: str
    reason: str


class Probe(_Message, frozen=True, tag="probe"):
    """Server -> device: measure this model on your held-out text (simulation, or where the recipe allows it)."""

    run: str
    round: int
    model: str


class Measurement(_Message, frozen=True, tag="measurement"):
    """Device -> server: summed negative log-likelihood in nats over ``tokens`` held-out predictions."""

    run: str
    round: int
    device: str
    nll: float
    tokens: int


FromServer = Invite | Step | Probe | Call | Commitments
FromDevice = Contribution | Step | Refusal | Measurement | Commitment | Reveal
Message = FromServer | FromDevice | Delta | Beacon

_EMPTY = b"\xc4\x00"  # no bytes, in MessagePack
_encoder = msgspec.msgpack.Encoder()
_any: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Message)
_from_server: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromServer)
_from_device: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromDevice)
_delta: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Delta)
_beacon: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Beacon)

REASON_CHARACTERS = 500


def dump(message: Message) -> bytes:
    """Serialise one message. A payload, which may be as large as the model, is copied once."""
    if isinstance(message, Delta | Contribution):
        return b"".join((_before_payload(message), message.payload))
    return MAGIC + bytes([VERSION]) + _encoder.encode(message)


def _before_payload(message: Delta | Contribution) -> bytes:
    """The frame up to its payload, which is the last of the fields."""
    empty = _encoder.encode(msgspec.structs.replace(message, payload=memoryview(b"")))
    n = len(message.payload)
    kind, width = (0xC4, 1) if n < 1 << 8 else (0xC5, 2) if n < 1 << 16 else (0xC6, 4)  # MessagePack bin 8, 16, 32
    return MAGIC + bytes([VERSION]) + empty[: -len(_EMPTY)] + bytes([kind]) + n.to_bytes(width, "big")


def legible(text: str) -> str:
    """Cut a reason from the other side to 500 characters. U+FFFD replaces each character that is not printable:
    control characters, line breaks, marks that turn the direction of writing."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:REASON_CHARACTERS])


def from_server(raw: bytes | memoryview, limit_bytes: int) -> FromServer:
    """Parse one frame on a device. Raises DecodeError as ``load``, also for what only devices send."""
    message: FromServer = _load(raw, limit_bytes, _from_server)
    return message


def from_device(raw: bytes | memoryview, limit_bytes: int) -> FromDevice:
    """Parse one frame on the server. Raises DecodeError as ``load``, also for what only a server sends."""
    message: FromDevice = _load(raw, limit_bytes, _from_device)
    return message


def delta(blob: bytes | memoryview) -> Delta:
    """Parse the blob of one round's compressed step. Raises DecodeError as ``load``, also for every other message."""
    message: Delta = _load(blob, len(blob), _delta)
    return message


def beacon(blob: bytes | memoryview) -> Beacon:
    """Parse the blob of a run's joint randomness. Raises DecodeError as ``load``, also for every other message."""
    message: Beacon = _load(blob, len(blob), _beacon)
    return message


def load(raw: bytes | memoryview, limit_bytes: int = LIMIT_BYTES) -> Message:
    """Parse one frame of either direction, for whoever watches both.

    Raises:
        DecodeError: E-FRAME-SIZE above ``limit_bytes``; E-FRAME for anything that is not exactly one valid message.
    """
    message: Message = _load(raw, limit_bytes, _any)
    return message


def _load(raw: bytes | memoryview, limit_bytes: int, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    if len(raw) > limit_bytes:
        raise DecodeError("E-FRAME-SIZE", f"frame of {len(raw)} bytes, limit {limit_bytes}.")
    if bytes(raw[:3]) != MAGIC or len(raw) < HEADER_BYTES:
        raise DecodeError("E-FRAME", "not an edgewise frame.")
    if raw[3] != VERSION:
        raise DecodeError("E-FRAME", f"frame version {raw[3]}, this program speaks {VERSION}.", "update one side.")
    try:
        message = decoder.decode(memoryview(raw)[HEADER_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise DecodeError("E-FRAME", f"malformed frame: {e}.") from None
    # Another encoding of the same message, e.g. a key given twice: two parsers may differ.
    if isinstance(message, Delta | Contribution):
        start = _before_payload(message)
        same = len(raw) == len(start) + len(message.payload) and raw[: len(start)] == start
    else:
        same = raw == dump(message)
    if not same:
        raise DecodeError("E-FRAME", "malformed frame: not in the one encoding that `dump` gives.")
    return message
