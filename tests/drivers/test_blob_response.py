"""The answer with a blob: ranges as resumed downloads ask for them, and stores that fail in between."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest
from served import code

from edgewise.core.errors import StoreError
from edgewise.drivers.http.blob_response import BlobResponse
from edgewise.drivers.storage.blobs import Blobs

RAW = bytes(range(256)) * 4096  # four pieces of the folder


def answered(blobs: Blobs, name: str, headers: Mapping[str, str]) -> tuple[int, dict[str, str], bytes, int]:
    """Status, headers, body and number of pieces of an answer."""
    sent = []

    async def call() -> None:
        async def receive() -> dict[str, str]:
            await anyio.sleep_forever()
            return {}

        async def send(message: Mapping[str, object]) -> None:
            sent.append(message)

        await BlobResponse(blobs, name, headers)({"type": "http", "method": "GET"}, receive, send)  # type: ignore[arg-type]

    anyio.run(call)
    start, *pieces = sent
    shown = {key.decode(): value.decode() for key, value in start["headers"]}
    return start["status"], shown, b"".join(p["body"] for p in pieces), sum(bool(p["body"]) for p in pieces)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path)


def test_a_whole_blob_is_sent_in_pieces(blobs: Blobs) -> None:
    name = blobs.put(RAW)
    status, headers, body, pieces = answered(blobs, name, {})
    assert (status, body, pieces) == (200, RAW, 4)
    assert headers["content-length"] == str(len(RAW))
    assert headers["etag"] == f'"{name}"'
    assert "content-range" not in headers
    assert answered(blobs, blobs.put(b""), {})[2:] == (b"", 0)


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [
        ("bytes=0-", 0, len(RAW)), ("bytes=7-7", 7, 8), ("bytes=262143-262144", 262143, 262145),
        ("bytes=1048575-", 1048575, len(RAW)), ("bytes=1000000-999999999999999", 1000000, len(RAW)),
    ],
)  # fmt: skip
def test_a_range_goes_on_where_a_download_broke_off(blobs: Blobs, text: str, start: int, stop: int) -> None:
    status, headers, body, _ = answered(blobs, blobs.put(RAW), {"range": text})
    assert (status, body) == (206, RAW[start:stop])
    assert headers["content-range"] == f"bytes {start}-{stop - 1}/{len(RAW)}"
    assert headers["content-length"] == str(stop - start)


def test_a_range_behind_the_end_and_a_malformed_one_are_refused(blobs: Blobs) -> None:
    name = blobs.put(RAW)
    status, headers, _, _ = answered(blobs, name, {"range": f"bytes={len(RAW)}-"})
    assert (status, headers["content-range"]) == (416, f"bytes */{len(RAW)}")
    for text in ("bytes=2-1", "bytes=-5", "bytes=0-1,3-4", "bytes=" + "1" * 16 + "-", "lines=1-2"):
        assert code(answered, blobs, name, {"range": text}) == "E-REQUEST"


def test_a_range_of_another_blob_gets_this_one_whole(blobs: Blobs) -> None:
    name = blobs.put(RAW)
    assert answered(blobs, name, {"range": "bytes=5-", "if-range": '"other"'})[0] == 200
    assert answered(blobs, name, {"range": "bytes=5-", "if-range": f'"{name}"'})[0] == 206


def test_a_store_that_fails_in_between_breaks_the_answer_off(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    name, read = blobs.put(RAW), Blobs.read

    def fails(self: Blobs, digest: str, start: int, stop: int) -> bytes:
        if start:
            raise StoreError("E-CHECKPOINT", "gone.")
        return read(self, digest, start, stop)

    monkeypatch.setattr(Blobs, "read", fails)
    assert code(answered, blobs, name, {}) == "E-CHECKPOINT"
    blobs.sweep(set)
    assert code(answered, blobs, name, {}) == "E-BLOB", "nothing holds it any more"
