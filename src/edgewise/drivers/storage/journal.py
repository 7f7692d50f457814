"""A round's write-ahead log: one file of records with length and checksum, each appended before it takes effect.

Record: ``u32 length | u32 crc32 of the body | u32 crc32 of these 8 bytes | body``, little endian. The body is a box
(``crypto.seal.SealingKey``) of MessagePack ``[kind, name, bytes, number, train_s, encode_s]``. The box is bound to the
checkpoint that the round started from and to the record's place in the file. The frame of an arrival may be as long as
the model. It is in a second box, so that it is never copied beside its sealed form: ``u32 length of the first box |
first box | second box``. Records without a frame have an empty second box.

    kind       name        bytes                                  number
    began      attempt     MessagePack [dealing, nonce, cohort]   at_s
    arrived    device      frame                                  at_s
    lost       device      code                                   at_s
    expired                                                       at_s
    pinned                 MessagePack [group, survivors]
    resumed                                                       by_s

A journal of another checkpoint does not open, and neither does a record in another place. A torn tail, left by a
process that died while writing, is cut off on opening, and the server asks again for its content. Damage before the
tail is E-CHECKPOINT. Without its journal a round begins again. A device that is asked again for the same round sends
the same bytes. It sends nothing where its update may leave only once.

The key of the boxes belongs to one round and ends with it (``RunStore.commit``). So a copy of the file on a disk or in
a backup shows nothing once the round is over. Before that, a person with the file and the key sees what the server
sees. Where updates are visible, these are the updates of the round. Where they are hidden, these are the messages of
devices. Masked updates, sealed boxes and shares give the sum once the shares have arrived. Sealed reports give nothing.
The file holds no key of the server.

A replay holds one record at a time, so a resumed run needs no more memory than the run needed before.
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
from edgewise.crypto.seal import NONCE_BYTES, SealingKey
from edgewise.drivers.storage.files import FOLDER, discard, for_owner, sync_folder
from edgewise.engine.ports import Absent, Arrived, Began, Expired, Pinned, Record, Resumed

_LENGTHS, _CRC = struct.Struct("<II"), struct.Struct("<I")
_HEADER_BYTES = _LENGTHS.size + _CRC.size
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, str, bytes, float, float, float])
_began = msgspec.msgpack.Decoder(tuple[bytes, bytes | None, tuple[str, ...]])
_pinned = msgspec.msgpack.Decoder(tuple[int, tuple[str, ...]])


class FileJournal:
    """The journal of one round in one file, opened on first use.

    Args:
        path: the file.
        of: name of the checkpoint that the journal extends.
        key: 32 secret bytes, used for this round only.
    Attributes:
        synced: whether ``sync`` was called, which means that the round hides its updates.
    """

    def __init__(self, path: Path, of: str, key: bytes) -> None:
        self._path, self._of, self._boxes = path, of, SealingKey(key)
        self._file: Any = None
        self.synced = False

    def replay(self) -> Iterator[Record]:
        """See Journal.

        Raises:
            StoreError: E-CHECKPOINT where the file is damaged, cannot be read, or extends another checkpoint. E-DISK
                where its torn tail cannot be cut off.
        """
        sound_bytes = 0
        try:
            with open(self._path, "rb") as f:
                size = os.fstat(f.fileno()).st_size
                while (body := self._record_body(f, sound_bytes, size)) is not None:
                    length = len(body)
                    try:
                        plain, frame = self._open_record(body, sound_bytes)
                    except (DecodeError, struct.error):
                        raise self._damaged_journal("is of another checkpoint or run") from None
                    del body
                    try:
                        record = _decoded_record(plain, frame)
                    except (msgspec.DecodeError, ValueError):
                        raise self._damaged_journal(f"holds no record of this version at byte {sound_bytes}") from None
                    sound_bytes += _HEADER_BYTES + length
                    del frame
                    yield record
        except FileNotFoundError:
            return
        except OSError as e:
            raise self._damaged_journal(f"cannot be read: {e.strerror}") from None
        if sound_bytes < size:
            try:
                os.truncate(self._path, sound_bytes)
            except OSError as e:
                raise self._full_disk(e) from None

    def _record_body(self, f: BinaryIO, at: int, size: int) -> bytes | None:
        """Read the body of the record at byte ``at``, the file's position; None at the end or at a torn tail."""
        header = f.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES:
            return None
        (length, crc), (header_crc,) = _LENGTHS.unpack_from(header), _CRC.unpack_from(header, _LENGTHS.size)
        if zlib.crc32(header[: _LENGTHS.size]) != header_crc:
            if not any(header) and not any(any(chunk) for chunk in iter(lambda: f.read(2**20), b"")):
                return None  # a power cut may leave zeros in place of the tail
            raise self._damaged_journal(f"is damaged at byte {at}")
        end = at + _HEADER_BYTES + length
        if end > size:
            return None
        body = f.read(length)
        if zlib.crc32(body) != crc:
            if end == size:
                return None
            raise self._damaged_journal(f"is damaged at byte {at}")
        return body

    def _open_record(self, body: bytes, at: int) -> tuple[bytes, bytes]:
        """Open the item and the frame of the record at byte ``at``. Raises DecodeError(E-SEAL), struct.error."""
        view, (first,) = memoryview(body), _CRC.unpack_from(body)
        start, end = _CRC.size, _CRC.size + first
        item, rest = self._boxes.open(view[start:end], self._sealing_context(at)), view[end:]
        return item, self._boxes.open(rest, self._sealing_context(at, "frame")) if rest else b""

    def append(self, record: Record) -> None:
        """See Journal.

        The record survives the death of the process. A power cut may remove the tail, which is then asked again.
        """
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
            self._open_journal()
            self._write_record(_encoder.encode(item), record.frame if isinstance(record, Arrived) else b"")
        except OSError as e:
            raise self._full_disk(e) from None

    def _open_journal(self) -> None:
        """Open the file for appending, if it is not open."""
        if self._file is None:
            self._path.parent.mkdir(FOLDER, parents=True, exist_ok=True)
            self._file = open(self._path, "ab", 0, opener=for_owner)  # noqa: SIM115 (kept open for the round)

    def _sealing_context(self, at: int, what: str = "item") -> bytes:
        """Context that binds a sealed box to its place in the file."""
        return f"{self._of} {at} {what}".encode()

    def _sealed_box(self, plain: bytes | memoryview, place: bytes) -> list[bytes]:
        """Seal a box; return its nonce and the rest apart, so that the rest is not copied again."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return [nonce, self._boxes.seal(nonce, plain, place)]

    def _write_record(self, item: bytes, frame: bytes | memoryview) -> None:
        """Write a record completely or not at all. A nearly full disk takes a part and then refuses."""
        start = self._file.seek(0, os.SEEK_END)
        first = self._sealed_box(item, self._sealing_context(start))
        second = self._sealed_box(frame, self._sealing_context(start, "frame")) if frame else []
        body = [_CRC.pack(sum(map(len, first))), *first, *second]
        crc = 0
        for part in body:
            crc = zlib.crc32(part, crc)
        lengths = _LENGTHS.pack(sum(map(len, body)), crc)
        parts = [lengths + _CRC.pack(zlib.crc32(lengths)), *body]
        try:
            for part in parts:
                unwritten = memoryview(part)
                while unwritten:
                    unwritten = unwritten[self._file.write(unwritten) :]
        except OSError:
            with suppress(OSError):  # a part that stays is a torn tail, which the next opening cuts off
                self._file.truncate(start)
            raise

    def sync(self) -> None:
        """See Journal.

        Raises:
            StoreError: E-DISK.
        """
        try:
            self._open_journal()
            os.fsync(self._file.fileno())
            self.synced = True
        except OSError as e:
            raise self._full_disk(e) from None
        sync_folder(self._path.parent)

    def close(self) -> None:
        """Close the file and keep its content."""
        if self._file is not None:
            with suppress(OSError):  # nothing is lost: every record was written when it was appended
                self._file.close()
            self._file = None

    def discard(self) -> None:
        """Close and delete the file after its round was committed.

        A file that cannot be deleted is skipped by later replays.
        """
        self.close()
        discard(self._path)

    def _damaged_journal(self, how: str) -> StoreError:
        """Make the error for a file that is no journal of this run."""
        return StoreError(
            "E-CHECKPOINT", f"{self._path} {how}.", f"delete {self._path}. The run then repeats its round."
        )

    def _full_disk(self, e: OSError) -> StoreError:
        """Make the error for a disk that takes no more."""
        return StoreError("E-DISK", f"cannot write {self._path}: {e.strerror}.", "free space, then --resume.")


def _decoded_record(body: bytes, frame: bytes) -> Record:
    """Decode a record. Raises msgspec.DecodeError or ValueError (also UnicodeDecodeError) on other bytes."""
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
