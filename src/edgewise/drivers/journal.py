"""A round's write-ahead log: one file, length- and CRC-framed records, appended before they take effect.

Record: ``u32 length | u32 crc32 of the body | u32 crc32 of these 8 bytes | body``, little endian; the body is
MessagePack ``[kind, device, frame or code, at_s, train_s, encode_s]``. A torn tail (the process died while writing) is
cut off on opening: what it held is asked again. Anything damaged before it is E-CHECKPOINT; deleting the journal is
safe, since a device asked again for the same round sends the same bytes.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from edgewise.core.errors import StoreError
from edgewise.drivers.files import FOLDER, for_owner
from edgewise.engine.ports import Arrived, Expired, Lost, Record

_LENGTHS, _CRC = struct.Struct("<II"), struct.Struct("<I")
_HEADER_BYTES = _LENGTHS.size + _CRC.size
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, str, bytes, float, float, float])


class FileJournal:
    """The journal of one round in one file; opened on first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def replay(self) -> Sequence[Record]:
        """See Journal. Raises StoreError(E-CHECKPOINT) where the file is damaged or cannot be read."""
        records: list[Record] = []
        good = 0
        try:
            raw = self._path.read_bytes() if self._path.exists() else b""
        except OSError as e:
            raise self._damaged(f"cannot be read: {e.strerror}") from None
        while good + _HEADER_BYTES <= len(raw):
            (length, crc), (header_crc,) = _LENGTHS.unpack_from(raw, good), _CRC.unpack_from(raw, good + _LENGTHS.size)
            if zlib.crc32(raw[good : good + _LENGTHS.size]) != header_crc:
                if not any(raw[good:]):  # a power cut may leave zeros where the tail was to be
                    break
                raise self._damaged(f"is damaged at byte {good}")
            start = good + _HEADER_BYTES
            body = raw[start : start + length]
            if len(body) < length:
                break
            if zlib.crc32(body) != crc:
                if start + length == len(raw):
                    break
                raise self._damaged(f"is damaged at byte {good}")
            try:
                records.append(_record(body))
            except (msgspec.DecodeError, ValueError):
                raise self._damaged(f"holds no record of this version at byte {good}") from None
            good = start + length
        if good < len(raw):
            try:
                os.truncate(self._path, good)
            except OSError as e:
                raise self._full(e) from None
        return records

    def append(self, record: Record) -> None:
        """See Journal. Survives the death of the process; a power cut may cost the tail, which is then asked again."""
        match record:
            case Arrived():
                item = ("arrived", record.device, record.frame, record.at_s, record.train_s, record.encode_s)
            case Lost():
                item = ("lost", record.device, record.code.encode(), record.at_s, 0.0, 0.0)
            case Expired():
                item = ("expired", "", b"", record.at_s, 0.0, 0.0)
        body = _encoder.encode(item)
        lengths = _LENGTHS.pack(len(body), zlib.crc32(body))
        try:
            if self._file is None:
                self._path.parent.mkdir(FOLDER, parents=True, exist_ok=True)
                self._file = open(self._path, "ab", 0, opener=for_owner)  # noqa: SIM115 (kept open for the round)
            self._write(lengths + _CRC.pack(zlib.crc32(lengths)), body)  # in two parts: the body is not copied again
        except OSError as e:
            raise self._full(e) from None

    def _write(self, *parts: bytes) -> None:
        """All of it, or nothing: a nearly full disk takes a part and then refuses."""
        start = self._file.seek(0, os.SEEK_END)
        try:
            for part in parts:
                left = memoryview(part)
                while left:
                    left = left[self._file.write(left) :]
        except OSError:
            with suppress(OSError):  # what cannot be cut off is a torn tail, cut off on opening
                self._file.truncate(start)
            raise

    def close(self) -> None:
        """Close the file; what it holds stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Close and delete: the round is committed."""
        self.close()
        self._path.unlink(missing_ok=True)

    def _damaged(self, how: str) -> StoreError:
        return StoreError("E-CHECKPOINT", f"{self._path} {how}.", f"delete {self._path}: its round is asked again.")

    def _full(self, e: OSError) -> StoreError:
        return StoreError("E-DISK", f"cannot write {self._path}: {e.strerror}.", "free space, then --resume.")


def _record(body: bytes) -> Record:
    """Raises msgspec.DecodeError or ValueError (UnicodeDecodeError is one) on anything else."""
    kind, device, data, at_s, train_s, encode_s = _decoder.decode(body)
    match kind:
        case "arrived":
            return Arrived(device, data, at_s, train_s, encode_s)
        case "lost":
            return Lost(device, data.decode(), at_s)
        case "expired":
            return Expired(at_s)
    raise ValueError(f"unknown kind {kind!r}")
