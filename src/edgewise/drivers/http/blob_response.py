"""The answer with a blob, whole or a range of it, read piece by piece from the store."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from edgewise.core.errors import TransportError
from edgewise.drivers.storage.blob_store import BlobStore

_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{0,15})")


class BlobResponse(Response):
    """A blob, whole or a range of it. It stays until it is sent, also where a new model replaces it meanwhile.

    ``headers``: those of the request. A ``range`` counts unless ``if-range`` names another blob.
    """

    def __init__(self, blobs: BlobStore, digest: str, headers: Mapping[str, str]) -> None:
        super().__init__()
        self._blobs, self._digest = blobs, digest
        self._range = headers.get("range") if headers.get("if-range") in (None, f'"{digest}"') else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it.

        Raises:
            TransportError: E-BLOB where it is gone, E-REQUEST for a malformed range.
            StoreError: of the store. Where the answer has begun, it breaks off.
        """
        digest = self._digest
        with self._blobs.held(digest):
            size = await run_in_threadpool(self._blobs.size, digest)
            if size is None:  # a new model has just replaced it
                raise TransportError("E-BLOB", f"blob {digest:.64} is gone.", "wait for the next invitation.")
            await self._answer(size)(scope, receive, send)

    def _answer(self, size: int) -> Response:
        start, stop = _span(self._range, size)
        if self._range is not None and start >= size:
            error = TransportError("E-OFFSET", f"the blob has {size} bytes.", "use the complete file, or begin again.")
            body = {"code": error.code, "what": error.what, "fix": error.fix}
            return JSONResponse(body, 416, {"content-range": f"bytes */{size}"})
        headers = {
            "etag": f'"{self._digest}"', "cache-control": "private, max-age=31536000, immutable",
            "accept-ranges": "bytes", "content-length": str(stop - start),
        }  # fmt: skip
        if self._range is not None:
            headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
        status = 200 if self._range is None else 206
        return StreamingResponse(self._pieces(start, stop), status, headers, "application/octet-stream")

    async def _pieces(self, start: int, stop: int) -> AsyncIterator[bytes]:
        while start < stop:
            end = min(start + self._blobs.piece_bytes, stop)
            yield await run_in_threadpool(self._blobs.read, self._digest, start, end)
            start = end


def _span(text: str | None, size: int) -> tuple[int, int]:
    """Return the first byte of a range and the one after its last. Raises TransportError(E-REQUEST)."""
    if text is None:
        return 0, size
    if (given := _RANGE.fullmatch(text)) is None or (given[2] and int(given[2]) < int(given[1])):
        raise TransportError(
            "E-REQUEST", "range is not one range of bytes.", "send `bytes=FIRST-` or `bytes=FIRST-LAST`."
        )
    return int(given[1]), min(size, int(given[2]) + 1) if given[2] else size
