"""Messages between a server and its process with the rests of split models. Length-prefixed MessagePack, as ``jobs``.

The server asks, and the process answers each message once, in order. Nothing is pickled.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import msgspec

from edgewise.core.errors import DecodeError
from edgewise.core.safe_repr import outline

LIMIT_BYTES = 1 << 36


class _Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    __repr__ = outline


class RevokeJob(_Item, frozen=True, tag="revoked"):
    """Refuse these members from now on, and cut off their sessions."""

    names: frozenset[str]


class HoldRestJob(_Item, frozen=True, tag="hold"):
    """Load the rest of a run's model.

    Attributes:
        recipe: resolved, as JSON. recipe_dir: where ``model.base`` starts. cache: folder for copies of the base.
        devices: of the run, name -> public key. values: raw float32 of the rest.
    """

    run: str
    recipe: str
    recipe_dir: str
    cache: str
    devices: dict[str, bytes]
    values: memoryview


class BeginSessions(_Item, frozen=True, tag="round"):
    """Take the sessions of this round of a run, and of no other."""

    run: str
    round: int


class EndSessions(_Item, frozen=True, tag="end"):
    """Take no more sessions of a run, and count those of its round."""

    run: str


class DropRestJob(_Item, frozen=True, tag="drop"):
    """Forget the rest of a run's model."""

    run: str


class ListenJob(_Item, frozen=True, tag="listen"):
    """Listen for devices at an address, with a certificate and its key (paths).

    ``server``: fingerprint of the server's key.
    """

    host: str
    port: int
    certificate: str
    key: str
    server: str


class SessionCount(msgspec.Struct, frozen=True):
    """A device's session: optimizer steps, and bytes of its messages."""

    device: str
    steps: int
    up_bytes: int
    down_bytes: int


class SplitJobDone(_Item, frozen=True, tag="done"):
    """Answer. ``sessions``: of ``EndSessions``. ``port``: of ``ListenJob``."""

    sessions: tuple[SessionCount, ...] = ()
    port: int = 0


class SplitJobFailed(_Item, frozen=True, tag="failed"):
    """Answer to a message that met an error of edgewise."""

    code: str
    what: str
    fix: str


Asked = RevokeJob | HoldRestJob | BeginSessions | EndSessions | DropRestJob | ListenJob
Answer = SplitJobDone | SplitJobFailed
_encoder = msgspec.msgpack.Encoder()
_asked: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Asked)
_answers: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Answer)


def write_split_job(stream: BinaryIO, item: Asked | Answer) -> None:
    """Write one item and flush. Raises OSError where the other side is gone."""
    raw = _encoder.encode(item)
    stream.write(len(raw).to_bytes(8, "little"))
    stream.write(raw)
    stream.flush()


def read_asked(stream: BinaryIO) -> Asked | None:
    """Read the next message in the process. None at the end of the stream. Raises DecodeError on other bytes."""
    found: Asked | None = _read(stream, _asked)
    return found


def read_answer(stream: BinaryIO) -> Answer | None:
    """Read the next answer in the server. None at the end of the stream. Raises DecodeError on other bytes."""
    found: Answer | None = _read(stream, _answers)
    return found


def _read(stream: BinaryIO, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    header = stream.read(8)
    size = int.from_bytes(header, "little")
    if len(header) < 8:
        return None
    if size > LIMIT_BYTES:
        raise DecodeError("E-FRAME-SIZE", "the stream of a process is out of step.")
    raw = stream.read(size)
    if len(raw) < size:
        return None
    try:
        return decoder.decode(raw)
    except msgspec.DecodeError as e:
        raise DecodeError("E-FRAME", f"malformed message of a process: {e}.") from None
