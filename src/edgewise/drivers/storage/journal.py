"""A round's write-ahead log: one file, length- and CRC-framed records, appended before they take effect.

Record: ``u32 length | u32 crc32 of the body | u32 crc32 of these 8 bytes | body``, little endian; the body is a box
(``crypto.seal.BoxKey``) for the checkpoint that the round started from and the record's place in the file, of
MessagePack ``[kind, name, bytes, number, train_s, encode_s]``. The frame of an arrival, which may be as long as the
model, is in a second box, so that it is never copied beside its sealed form: ``u32 length of the first box | first box
| second box``, where records without a frame have an empty second one.

    kind       name        bytes                                  number
    began      attempt     MessagePack [dealing, nonce, cohort]   at_s
    arrived    device      frame                                  at_s
    lost       device      code                                   at_s
    expired                                                       at_s
    pinned                 MessagePack [group, survivors]
    resumed                                                       by_s

A journal of another checkpoint does not open, nor does a record in another place. A torn tail (the process died while
writing) is cut off on opening: what it held is asked again. Anything damaged before it is E-CHECKPOINT. Without its
journal a round is begun anew: a device asked again for the same round sends the same bytes, or, where its update may
leave once only, nothing.

The key of the boxes is the round's own. It ends with the round (``RunStore.commit``), so a copy of the file that a disk
or a backup keeps shows nothing once the round is over. Before that, who has the file and the key sees what the server
does: the updates of the round where it sees them. Where it does not, what devices sent: masked updates, sealed boxes
and shares, from which the sum follows once the shares are in; sealed reports, from which nothing does. No key of the
server is in it.

A replay holds one record at a time, so that a run goes on in the memory in which it began.
"""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from edgewise.core.errors import DecodeError, StoreError
from edgewise.crypto.seal import NONCE_BYTES, BoxKey
from edgewise.drivers.storage.files import FOLDER, discard, for_owner, sync_folder
from edgewise.engine.ports import Absent, Arrived, Began, Expired, Pinned, Record, Resumed

_LENGTHS, _CRC = struct.Struct("<II"), struct.Struct("<I")
_HEADER_BYTES = _LENGTHS.size + _CRC.size
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, str, bytes, float, float, float])
_began = msgspec.msgpack.Decoder(tuple[bytes, bytes | None, tuple[str, ...]])
_pinned = msgspec.msgpack.Decoder(tuple[int, tuple[str, ...]])


class FileJournal:
    """The journal of one round in one file; opened on first use.

    Args:
        of: names the checkpoint that it extends. key: 32 secret bytes, of this round only.

    Attributes:
        synced: whether ``sync`` was called: the round hides its updates.
    """

    def __init__(self, path: Path, of: str, key: bytes) -> None:
        self._path, self._of, self._boxes = path, of, BoxKey(key)
        self._file: Any = None
        self.synced = False

    def replay(self) -> Iterator[Record]:
        """See Journal. Raises StoreError(E-CHECKPOINT) where the file is damaged, cannot be read, or extends another
        checkpoint; E-DISK where its torn tail cannot be cut off."""
        good = 0
        try:
            with open(self._path, "rb") as f:
                size = os.fstat(f.fileno()).st_size
                while (body := self._body(f, good, size)) is not None:
                    length = len(body)
                    try:
                        plain, frame = self._opened(body, good)
                    except (DecodeError, struct.error):
                        raise self._damaged("is of another checkpoint or run") from None
                    del body
                    try:
                        record = _record(plain, frame)
                    except (msgspec.DecodeError, ValueError):
                        raise self._damaged(f"holds no record of this version at byte {good}") from None
                    good += _HEADER_BYTES + length
                    del frame
                    yield record
        except FileNotFoundError:
            return
        except OSError as e:
            raise self._damaged(f"cannot be read: {e.strerror}") from None
        if good < size:
            try:
                os.truncate(self._path, good)
            except OSError as e:
                raise self._full(e) from None

    def _body(self, f: BinaryIO, at: int, size: int) -> bytes | None:
        """The body of the record at byte ``at``, where the file stands; None at the end or at a torn tail."""
        header = f.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES:
            return None
        (length, crc), (header_crc,) = _LENGTHS.unpack_from(header), _CRC.unpack_from(header, _LENGTHS.size)
        if zlib.crc32(header[: _LENGTHS.size]) != header_crc:
            if not any(header) and not any(any(chunk) for chunk in iter(lambda: f.read(2**20), b"")):
                return None  # a power cut may leave zeros where the tail was to be
            raise self._damaged(f"is damaged at byte {at}")
        end = at + _HEADER_BYTES + length
        if end > size:
            return None
        body = f.read(length)
        if zlib.crc32(body) != crc:
            if end == size:
                return None
            raise self._damaged(f"is damaged at byte {at}")
        return body

    def _opened(self, body: bytes, at: int) -> tuple[bytes, bytes]:
        """The item and the frame of the record at byte ``at``. Raises DecodeError(E-SEAL), struct.error."""
        view, (first,) = memoryview(body), _CRC.unpack_from(body)
        start, end = _CRC.size, _CRC.size + first
        item, rest = self._boxes.open(view[start:end], self._place(at)), view[end:]
        return item, self._boxes.open(rest, self._place(at, "frame")) if rest else b""

    def append(self, record: Record) -> None:
        """See Journal. Survives the death of the process; a power cut may cost the tail, which is then asked again."""
        match record:
            case Arrived():
                item = ("arrived", record.device, b"", record.at_s, record.train_s, record.encode_s)
            case Absent():
                item = ("lost", record.device, record.code.encode(), record.at_s, 0.0, 0.0)
            case Began():
                drawn = (record.dealing, record.nonce, record.invited)
                item = ("began", record.attempt, _encoder.encode(drawn), record.at_s, 0.0, 0.0)
            case Expired():
                item = ("expired", "", b"", record.at_s, 0.0, 0.0)
            case Pinned():
                item = ("pinned", "", _encoder.encode((record.group, record.survivors)), 0.0, 0.0, 0.0)
            case Resumed():
                item = ("resumed", "", b"", record.by_s, 0.0, 0.0)
        try:
            self._open()
            self._write(_encoder.encode(item), record.frame if isinstance(record, Arrived) else b"")
        except OSError as e:
            raise self._full(e) from None

    def _open(self) -> None:
        if self._file is None:
            self._path.parent.mkdir(FOLDER, parents=True, exist_ok=True)
            self._file = open(self._path, "ab", 0, opener=for_owner)  # noqa: SIM115 (kept open for the round)

    def _place(self, at: int, what: str = "item") -> bytes:
        return f"{self._of} {at} {what}".encode()

    def _sealed(self, plain: bytes, place: bytes) -> list[bytes]:
        """A box, as its nonce and the rest, so that the rest is not copied again."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return [nonce, self._boxes.seal(nonce, plain, place)]

    def _write(self, item: bytes, frame: bytes) -> None:
        """All of it, or nothing: a nearly full disk takes a part and then refuses."""
        start = self._file.seek(0, os.SEEK_END)
        first = self._sealed(item, self._place(start))
        second = self._sealed(frame, self._place(start, "frame")) if frame else []
        body = [_CRC.pack(sum(map(len, first))), *first, *second]
        crc = 0
        for part in body:
            crc = zlib.crc32(part, crc)
        lengths = _LENGTHS.pack(sum(map(len, body)), crc)
        parts = [lengths + _CRC.pack(zlib.crc32(lengths)), *body]
        try:
            for part in parts:
                left = memoryview(part)
                while left:
                    left = left[self._file.write(left) :]
        except OSError:
            with suppress(OSError):  # what cannot be cut off is a torn tail, cut off on opening
                self._file.truncate(start)
            raise

    def sync(self) -> None:
        """See Journal. Raises StoreError(E-DISK)."""
        try:
            self._open()
            os.fsync(self._file.fileno())
            self.synced = True
        except OSError as e:
            raise self._full(e) from None
        sync_folder(self._path.parent)

    def close(self) -> None:
        """Close the file; what it holds stays."""
        if self._file is not None:
            with suppress(OSError):  # every record was written when it was appended
                self._file.close()
            self._file = None

    def discard(self) -> None:
        """Close and delete: the round is committed. One that cannot be deleted is skipped: its round is over."""
        self.close()
        discard(self._path)

    def _damaged(self, how: str) -> StoreError:
        return StoreError("E-CHECKPOINT", f"{self._path} {how}.", f"delete {self._path}: its round is asked again.")

    def _full(self, e: OSError) -> StoreError:
        return StoreError("E-DISK", f"cannot write {self._path}: {e.strerror}.", "free space, then --resume.")


def _record(body: bytes, frame: bytes) -> Record:
    """Raises msgspec.DecodeError or ValueError (UnicodeDecodeError is one) on anything else."""
    kind, device, data, at_s, train_s, encode_s = _decoder.decode(body)
    match kind:
        case "arrived":
            return Arrived(device, frame, at_s, train_s, encode_s)
        case "lost":
            return Absent(device, data.decode(), at_s)
        case "began":
            dealing, nonce, invited = _began.decode(data)
            return Began(at_s, device, nonce, dealing, invited)
        case "expired":
            return Expired(at_s)
        case "pinned":
            return Pinned(*_pinned.decode(data))
        case "resumed":
            return Resumed(at_s)
    raise ValueError(f"unknown kind {kind!r}")
