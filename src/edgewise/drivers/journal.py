"""A round's write-ahead log: one file, length- and CRC-framed records, appended before they take effect.

Record: ``u32 length | u32 crc32 | MessagePack [kind, device, frame or code, at_s, train_s, encode_s]``, little endian.
A torn tail (the process died while writing) is cut off on opening; anything damaged before it is E-CHECKPOINT.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgewise.core.errors import StoreError
from edgewise.engine.ports import Arrived, Expired, Lost, Record

_HEADER = struct.Struct("<II")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, str, bytes, float, float, float])


class FileJournal:
    """The journal of one round in one file; opened on first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def replay(self) -> Sequence[Record]:
        """See Journal."""
        records: list[Record] = []
        good = 0
        raw = self._path.read_bytes() if self._path.exists() else b""
        while good + _HEADER.size <= len(raw):
            length, crc = _HEADER.unpack_from(raw, good)
            body = raw[good + _HEADER.size : good + _HEADER.size + length]
            if len(body) < length:
                break
            if zlib.crc32(body) != crc:
                if good + _HEADER.size + length == len(raw):
                    break
                raise StoreError("E-CHECKPOINT", f"{self._path} is damaged at byte {good}.", f"delete {self._path}.")
            records.append(_record(body))
            good += _HEADER.size + length
        if good < len(raw):
            os.truncate(self._path, good)
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
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (kept open for the round)
            self._file.write(_HEADER.pack(len(body), zlib.crc32(body)) + body)
        except OSError as e:
            raise StoreError(
                "E-DISK", f"cannot write {self._path}: {e.strerror}.", "free space, then --resume."
            ) from None

    def close(self) -> None:
        """Close the file; what it holds stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Close and delete: the round is committed."""
        self.close()
        self._path.unlink(missing_ok=True)


def _record(body: bytes) -> Record:
    kind, device, data, at_s, train_s, encode_s = _decoder.decode(body)
    if kind == "arrived":
        return Arrived(device, data, at_s, train_s, encode_s)
    if kind == "lost":
        return Lost(device, data.decode(), at_s)
    return Expired(at_s)
