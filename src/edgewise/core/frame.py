"""Messages that cross a Cohort port, and their only form on the wire.

A frame is ``b"EWF" + version byte + MessagePack map`` (msgspec, tagged by ``"type"``). The decoder is strict. It raises
DecodeError for unknown fields, missing fields, wrong types, trailing bytes, wrong magic, anything above
``limit_bytes``, and any encoding but that of ``dump`` (a key given twice, a longer integer). It checks the size before
it parses anything.

Each side decodes only messages that the other side may send: ``from_device`` on the server, ``from_server`` on devices.

Model vectors are not part of frames. They are content-addressed blobs (``vector.digest``). A frame names them by
digest, so that one broadcast serves a whole cohort. The blob of one round's compressed step is itself a frame,
``Delta``.
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
LIMIT_BYTES = 64 * 1024 * 1024  # Default limit of one frame, more than ten times a contribution of 5 MB.


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    """Base of all messages. They are immutable, refuse unknown fields, and print without their payload."""

    __repr__ = outline


class LocalRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Training rule of a device between download and upload, the same for every device of the round.

    Attributes:
        steps: optimizer steps, or their upper limit if ``epochs`` is above 0.
        lr: learning rate of this round (the schedule over rounds is the server's).
        segments: names of the segments that train. The others stay bit-identical. Empty means that all train, and
            nothing is written into the frame.
        epochs: passes over the device's own records. ``counted`` converts them to steps. 0 means ``steps`` unchanged.
    """

    steps: int
    lr: float
    segments: tuple[str, ...] = ()
    epochs: float = 0.0

    def counted(self, records: int, batch: int) -> LocalRule:
        """Convert epochs to steps for a device with ``records`` records.

            steps = min(steps, max(1, ceil(epochs records / min(batch, records))))

        Without epochs the rule stays as it is.
        """
        if not self.epochs:
            return self
        passes = self.epochs * records / max(1, min(batch, records))
        wanted = max(1, math.ceil(passes - 1e-9))  # 0.1 x 30 is 3.0000000000000004
        return msgspec.structs.replace(self, steps=min(self.steps, wanted), epochs=0.0)


class Draw(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Inputs of the draw of cohorts (``engine.beacon``).

    Attributes:
        beacon: digest of the run's ``Beacon``, a blob.
        key: the server's key for this round, 32 bytes.
    """

    beacon: str
    key: Word

    __repr__ = outline


class Invite(_Message, frozen=True, tag="invite", omit_defaults=True):
    """Server -> device: train on this model in this round.

    Attributes:
        run: identity of the run (``plan.facts``).
        round: number of the round, from 0.
        spec: digest of the trainable spec. The device refuses any other spec.
        model: digest of the round's parameters and of the vectors that the strategy gives devices beside them, as one
            vector. It names the snapshot's blob, and it is the result of the deltas.
        public: the round's public key, 32 bytes, for shared supports and grids.
        accepted: last round in which a contribution of this device entered a model, None if none. The device then
            commits or discards its pending codec memory.
        deadline_s: seconds from now after which a contribution is late.
        base: digest of the model that the deltas start from, which this device has. None: download ``model``.
        deltas: digests of the ``Delta`` blobs to apply to ``base``, in this order.
        support: digest of the blob with the positions of the last release (``Turn.support``). None if there are none.
        clip: the round's clip if it adapts to the updates (``Turn.clip``). None if the recipe fixes it.
        nonce: 32 fresh bytes that distinguish this round's secure aggregation from all others. None without secure
            aggregation.
        draw: inputs with which the device draws the round's cohort itself. None if the server draws it.

    Fields that are None are left out of the frame, except ``accepted``.
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

    Here and in the next three messages ``round`` is the total number of rounds. No invitation has that number.
    """

    run: str
    round: int


class Commitment(_Message, frozen=True, tag="commitment"):
    """Device -> server: the digest of a value that nobody else knows."""

    run: str
    round: int
    device: str
    commitment: Word


class Committed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A device on a list, with its commitment."""

    device: str
    commitment: Word

    __repr__ = outline


class Commitments(_Message, frozen=True, tag="commitments"):
    """Server -> device: reveal the value, for this list only.

    Attributes:
        anchor: the server's commitment to its keys of all rounds.
        listed: the devices with their commitments, sorted by device.
    """

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
    """Server -> devices, as a blob: the list, and the reveals of all its devices in the same order."""

    run: str
    anchor: Word
    listed: tuple[Committed, ...]
    values: tuple[Word, ...]
    signatures: tuple[Signature, ...]


class Delta(_Message, frozen=True, tag="delta"):
    """Server -> devices, as a blob: the step from the previous round's model to that of ``round``.

    Attributes:
        public: 32 bytes, the key of its own round, whenever it is applied. The stages of the payload drew from it.
        payload: packed by the plan's downlink. A view as in ``Contribution``.
    """

    round: int
    public: bytes
    payload: memoryview


class Contribution(_Message, frozen=True, tag="contribution"):
    """Device -> server: the packed payload of one round. It does not say how long the device took.

    ``payload`` is a view of the frame that it was read from.
    """

    run: str
    round: int
    device: str
    payload: memoryview


class Step(_Message, frozen=True, tag="step", omit_defaults=True):
    """Either direction: one message of the round's secure aggregation.

    Attributes:
        device: the device that sends or receives it.
        body: a message of ``secagg.messages``, which has a strict form of its own.
        rung: beside keys, the best rung that the device can send in time. In the server's messages, the rung of the
            device's group. None if the codec is fixed.
    """

    run: str
    round: int
    device: str
    body: bytes
    rung: Number | None = None


class Refusal(_Message, frozen=True, tag="refusal"):
    """Device -> server: no contribution in this round, with a registered code and a reason that holds no data."""

    run: str
    round: int
    device: str
    code: str
    reason: str


class Probe(_Message, frozen=True, tag="probe"):
    """Server -> device: measure this model on your held-out text. For simulations, or if the recipe allows it."""

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

_EMPTY = b"\xc4\x00"  # an empty byte string in MessagePack
_encoder = msgspec.msgpack.Encoder()
_any: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Message)
_from_server: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromServer)
_from_device: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromDevice)
_delta: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Delta)
_beacon: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Beacon)

REASON_CHARACTERS = 500


def dump(message: Message) -> bytes:
    """Serialise one message. A payload may be as large as the model, so it is copied only once."""
    if isinstance(message, Delta | Contribution):
        return b"".join((_before_payload(message), message.payload))
    return MAGIC + bytes([VERSION]) + _encoder.encode(message)


def _before_payload(message: Delta | Contribution) -> bytes:
    """Serialise the frame up to its payload, which is the last field."""
    empty = _encoder.encode(msgspec.structs.replace(message, payload=memoryview(b"")))
    n = len(message.payload)
    kind, width = (0xC4, 1) if n < 1 << 8 else (0xC5, 2) if n < 1 << 16 else (0xC6, 4)  # MessagePack bin 8, 16, 32
    return MAGIC + bytes([VERSION]) + empty[: -len(_EMPTY)] + bytes([kind]) + n.to_bytes(width, "big")


def legible(text: str) -> str:
    """Cut a reason from the other side to 500 characters, and replace unprintable characters by U+FFFD.

    Unprintable are control characters, line breaks, and marks that change the direction of writing.
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:REASON_CHARACTERS])


def from_server(raw: bytes | memoryview, limit_bytes: int) -> FromServer:
    """Parse one frame on a device. Raises DecodeError as ``load`` does, and for messages that only devices send."""
    message: FromServer = _decoded_frame(raw, limit_bytes, _from_server)
    return message


def from_device(raw: bytes | memoryview, limit_bytes: int) -> FromDevice:
    """Parse one frame on the server. Raises DecodeError as ``load`` does, and for messages that only a server sends."""
    message: FromDevice = _decoded_frame(raw, limit_bytes, _from_device)
    return message


def delta(blob: bytes | memoryview) -> Delta:
    """Parse the blob of one round's compressed step. Raises DecodeError as ``load`` does, and for other messages."""
    message: Delta = _decoded_frame(blob, len(blob), _delta)
    return message


def beacon(blob: bytes | memoryview) -> Beacon:
    """Parse the blob of a run's joint randomness. Raises DecodeError as ``load`` does, and for other messages."""
    message: Beacon = _decoded_frame(blob, len(blob), _beacon)
    return message


def load(raw: bytes | memoryview, limit_bytes: int = LIMIT_BYTES) -> Message:
    """Parse one frame of either direction, for an observer of both.

    Raises:
        DecodeError: E-FRAME-SIZE above ``limit_bytes``. E-FRAME for anything but exactly one valid message.
    """
    message: Message = _decoded_frame(raw, limit_bytes, _any)
    return message


def _decoded_frame(raw: bytes | memoryview, limit_bytes: int, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    """Check a frame's size and header, and decode its body strictly."""
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
    # Two parsers may read another encoding of a message differently, e.g. one that gives a key twice.
    if isinstance(message, Delta | Contribution):
        start = _before_payload(message)
        same = len(raw) == len(start) + len(message.payload) and raw[: len(start)] == start
    else:
        same = raw == dump(message)
    if not same:
        raise DecodeError("E-FRAME", "malformed frame: not in the encoding that `dump` writes.")
    return message
