"""Messages between the two sides of split learning, and their only form on the wire.

A message is ``b"EWS" + version byte + MessagePack map``. The decoder is as strict as that of ``core.frame``: it refuses
unknown and missing fields, wrong types, trailing bytes, another magic, and anything above ``limit_bytes``.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from edgewise.core.errors import DecodeError
from edgewise.core.frame import Number, Word
from edgewise.core.safe_repr import outline

MAGIC = b"EWS"
VERSION = 1
Upward = Literal["activations", "output_gradients"]
Downward = Literal["outputs", "gradients"]


class _SplitMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    """Base of all messages. They print without their bytes."""

    __repr__ = outline


class Hello(_SplitMessage, frozen=True, tag="hello"):
    """Device -> server: go on with a session after so many steps.

    Attributes:
        session: names the session, 32 bytes.
        parts: digest of everything that both parts must share: base model, cut, shape, rounding, training.
        step: number of optimizer steps that the device's part has taken.
        attempt: number of this connection, from 1. It grows with every Hello of the session.
    """

    session: Word
    parts: Word
    step: Number
    attempt: Number


class Welcome(_SplitMessage, frozen=True, tag="welcome"):
    """Server -> device: the server's part has taken the same steps. Answers the Hello of that attempt."""

    attempt: Number


class Crossing(_SplitMessage, frozen=True, tag="crossing", omit_defaults=True):
    """Device -> server: activations of a micro-batch, or with the U shape the gradients of the server's outputs.

    Attributes:
        micro: number of the micro-batch in its step.
        body: encoded by ``codecs.wire.tokens``.
        rows, length: B and T of the micro-batch, beside activations.
        labels: next tokens, beside activations where the server has the head.
        begins: bit mask of the tokens that begin a document in a packed row, beside activations of packed rows.

    What a crossing does not have is left out of the message.
    """

    attempt: Number
    step: Number
    micro: Number
    kind: Upward
    body: bytes
    rows: Number | None = None
    length: Number | None = None
    labels: bytes | None = None
    begins: bytes | None = None


class Returned(_SplitMessage, frozen=True, tag="returned", omit_defaults=True):
    """Server -> device: outputs of the server's part, or the gradients of the device's activations.

    Attributes:
        loss: summed loss of the micro-batch in nats, beside gradients, where the server has the head.
    """

    attempt: Number
    step: Number
    micro: Number
    kind: Downward
    body: bytes
    loss: float | None = None


class Finish(_SplitMessage, frozen=True, tag="finish"):
    """Device -> server: all gradients of the step are there, so take the optimizer's step.

    Attributes:
        micros: number of the step's micro-batches.
        terms: number of tokens that the step predicts. Gradients of summed losses are divided by it.
        norm2: squared L2 norm of the gradient of the device's part, after the division.
    """

    attempt: Number
    step: Number
    micros: Number
    terms: float
    norm2: float


class StepTaken(_SplitMessage, frozen=True, tag="finished"):
    """Server -> device: the server's part has taken the step. ``norm2`` is that of its gradient."""

    attempt: Number
    step: Number
    norm2: float


class SessionRefused(_SplitMessage, frozen=True, tag="stop"):
    """Server -> device: the session cannot go on, with a registered code and the reason."""

    code: str
    reason: str


FromDevice = Hello | Crossing | Finish
FromServer = Welcome | Returned | StepTaken | SessionRefused
_encoder = msgspec.msgpack.Encoder()
_from_device: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromDevice)
_from_server: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromServer)


def dump(message: FromDevice | FromServer) -> bytes:
    """Serialise one message of split learning."""
    return MAGIC + bytes([VERSION]) + _encoder.encode(message)


def from_device(raw: bytes | memoryview, limit_bytes: int) -> FromDevice:
    """Parse a message on the server. Raises DecodeError(E-FRAME, E-FRAME-SIZE)."""
    message: FromDevice = _load(raw, limit_bytes, _from_device)
    return message


def from_server(raw: bytes | memoryview, limit_bytes: int) -> FromServer:
    """Parse a message on a device. Raises DecodeError(E-FRAME, E-FRAME-SIZE)."""
    message: FromServer = _load(raw, limit_bytes, _from_server)
    return message


def _load(raw: bytes | memoryview, limit_bytes: int, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    if len(raw) > limit_bytes:
        raise DecodeError("E-FRAME-SIZE", f"a message of {len(raw)} bytes, limit {limit_bytes}.")
    if bytes(raw[:3]) != MAGIC or len(raw) <= len(MAGIC):
        raise DecodeError("E-FRAME", "not a message of split learning.")
    if raw[3] != VERSION:
        raise DecodeError("E-FRAME", f"message version {raw[3]}, this program speaks {VERSION}.", "update one side.")
    try:
        message = decoder.decode(memoryview(raw)[4:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise DecodeError("E-FRAME", f"malformed message: {e}.") from None
    if raw != dump(message):  # Two parsers may read another encoding of a message differently.
        raise DecodeError("E-FRAME", "malformed message: not in the encoding that `dump` writes.")
    return message
