"""A gateway between devices and their server. It passes signed requests on unchanged and caches blobs.

A signature covers method, path, query, body and the server's name, so a gateway can change none of them. It can read
what a TLS proxy reads: frames as they are. Blobs are fetched once and cached by digest. Before a device gets a cached
blob, the gateway asks the server with the device's own request for the blob's first byte. So only the server decides to
refuse a revoked device or a blob that is not published any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress

import httpx2
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from edgewise.core.digests import is_digest
from edgewise.core.errors import TransportError
from edgewise.drivers.http import answers, certificates, rules
from edgewise.drivers.http.answers import Answer, Wait
from edgewise.drivers.http.blob_cache import BlobCache
from edgewise.drivers.http.guard import caller
from edgewise.drivers.http.home import Home
from edgewise.drivers.http.limits import LaterError
from edgewise.drivers.http.link import FRAME_BYTES
from edgewise.drivers.http.named_locks import NamedLocks
from edgewise.drivers.http.naming import CONNECT_S
from edgewise.drivers.http.rules import ANYONE, Rule
from edgewise.drivers.http.service import Service

ANSWER_S = 65.0  # the limit for an answer, longer than a long poll
PATIENCE_S = 10.0  # the longest wait of a device for a blob that is being fetched
_BLOBS = "/v1/blobs/{digest}"
_UP = ("content-digest", "content-type", "edgewise-key", "edgewise-round", "edgewise-run", "range", "signature",
       "signature-input")  # fmt: skip
_DOWN = ("cache-control", "content-range", "content-type", "edgewise-number", "etag", "retry-after")
_DEVICES = frozenset({"device", "joining"})

RULES = tuple(
    Rule(rule.method, rule.path, ANYONE, rule.body_bytes)  # the server checks the signature
    for rule in rules.RULES
    if rule.roles & _DEVICES or rule.path == "/v1/server"
)


class Relay:
    """The routes of devices on a gateway that belongs to the server of ``home``.

    Attributes:
        down_bytes: bytes of answers that came from the server.
        hits: number of blobs that were answered from the cache.
    """

    def __init__(self, service: Service, home: Home, cache: BlobCache) -> None:
        self._service, self._home, self._cache = service, home, cache
        self.down_bytes, self.hits = 0, 0
        self._client: httpx2.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fetching = NamedLocks()

    def routes(self) -> list[Route]:
        """Return the routes for a router behind the guard."""
        methods: dict[str, list[str]] = {}
        for rule in RULES:
            methods.setdefault(rule.path, []).append(rule.method)
        return [
            Route(path, self.blob if path == _BLOBS else self.passed, methods=found) for path, found in methods.items()
        ]

    def close(self) -> None:
        """Close the connections to the server, before the listener ends."""
        if self._client is not None and self._loop is not None:
            with suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result(2.0)

    def counters(self) -> str:
        """Return the counters in Prometheus' text format."""
        return (
            f"edgewise_gateway_down_bytes_total {self.down_bytes}\n"
            f"edgewise_gateway_blob_hits_total {self.hits}\n"
            f"edgewise_gateway_cache_bytes {self._cache.size_bytes}\n"
        )

    async def passed(self, request: Request) -> Response:
        """Pass a request on to the server, and its answer back."""
        return self._answer(request, await self._sent(request, caller(request).body, _headers(request)))

    async def blob(self, request: Request) -> Response:
        """Answer with a blob: from the cache where it has the blob and the server lets this device have it."""
        digest = request.path_params["digest"]
        if not is_digest(digest):
            return await self.passed(request)
        try:
            async with self._fetching.of(digest, PATIENCE_S):
                # It runs in a thread, because it may read the whole file.
                path = await self._service.aside(lambda: self._cache.path(digest))
                if path is None:
                    refusal = await self._fetched(request, digest)
                    path = self._cache.path(digest)
                    if refusal is not None or path is None:
                        return refusal or await self._streamed(request)
                    return _file(path, digest)
        except TimeoutError:
            raise LaterError("E-BUSY", "the gateway is fetching this blob.", "come back.", 2.0) from None
        if (refusal := await self._asked(request)) is not None:
            return refusal
        self.hits += 1
        return _file(path, digest)

    async def _asked(self, request: Request) -> Response | None:
        """Ask the server for the blob's first byte, as the device. Return its refusal, or None."""
        answer = await self._sent(request, b"", {**_headers(request), "range": "bytes=0-0"})
        if answer.status in (206, 416):  # 416: an empty blob has no first byte
            self.down_bytes += len(answer.content)
            return None
        return self._answer(request, answer)

    async def _fetched(self, request: Request, digest: str) -> Response | None:
        """Fetch a blob into the cache, from where an earlier attempt broke off. Return the server's refusal, or None.

        A blob that is larger than the cache is not fetched.
        """
        part, headers = self._cache.part(digest), _headers(request)
        have = part.stat().st_size if part.exists() else 0
        headers.pop("range", None)
        if have:
            headers["range"] = f"bytes={have}-"
        try:
            async with self._http().stream("GET", _target(request), headers=headers) as answer:
                if answer.status_code == 416 and have:  # all bytes are here but their digest is not checked yet
                    await self._service.aside(lambda: self._cache.keep(digest))
                    return None
                if answer.status_code not in (200, 206):
                    return self._answer(request, await answers.received_answer_async(answer, FRAME_BYTES))
                goes_on = answer.status_code == 206
                length = int(answer.headers.get("content-length", "0"))
                if (have if goes_on else 0) + length > self._cache.limit_bytes:
                    return None
                first = not goes_on
                self._cache.append(digest, b"", first)
                async for piece in answer.aiter_raw():
                    self.down_bytes += len(piece)
                    self._cache.append(digest, piece, False)
        except httpx2.TransportError as e:
            raise self._silent(e) from None
        except Wait as e:
            raise e.error from None
        await self._service.aside(lambda: self._cache.keep(digest))
        return None

    async def _streamed(self, request: Request) -> Response:
        """Pass a large answer back while it comes."""
        client = self._http()
        asked = client.build_request("GET", _target(request), headers=_headers(request))
        try:
            answer = await client.send(asked, stream=True)
        except httpx2.TransportError as e:
            raise self._silent(e) from None

        async def pieces() -> AsyncIterator[bytes]:
            try:
                async for piece in answer.aiter_raw():
                    self.down_bytes += len(piece)
                    yield piece
            finally:
                await answer.aclose()

        headers = _kept(answer.headers, (*_DOWN, "content-length"))
        return StreamingResponse(pieces(), answer.status_code, headers)

    async def _sent(self, request: Request, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a request to the server and read its answer, which a frame's size bounds."""
        try:
            async with self._http().stream(request.method, _target(request), content=body, headers=headers) as answer:
                return await answers.received_answer_async(answer, FRAME_BYTES)
        except httpx2.TransportError as e:
            raise self._silent(e) from None
        except Wait as e:
            raise e.error from None

    def _answer(self, request: Request, answer: Answer) -> Response:
        if answer.status == 401 and request.client is not None:  # who sends forgeries uses up the rate of all who pass
            self._service.gate.fine(request.client.host, time.monotonic())
        self.down_bytes += len(answer.content)
        return Response(answer.content, answer.status, _kept(answer.headers, _DOWN))

    def _silent(self, e: Exception) -> TransportError:
        return LaterError(
            "E-CONNECT", f"the gateway does not reach the server: {type(e).__name__}.", "wait a moment.", 2.0
        )

    def _http(self) -> httpx2.AsyncClient:
        if self._client is None:
            self._loop = asyncio.get_running_loop()
            verify = certificates.client_context(self._home.authority.encode()) if self._home.secure else False
            timeout = httpx2.Timeout(ANSWER_S, connect=CONNECT_S)
            limits = httpx2.Limits(max_connections=None)
            self._client = httpx2.AsyncClient(base_url=self._home.url, verify=verify, timeout=timeout, limits=limits)
        return self._client


def _target(request: Request) -> str:
    """Return path and query in their signed form. The guard accepts no path with escapes."""
    query = request.scope["query_string"].decode("latin-1")
    return f"{request.scope['path']}?{query}" if query else str(request.scope["path"])


def _headers(request: Request) -> dict[str, str]:
    return _kept(request.headers, _UP)


def _kept(headers: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: headers[name] for name in names if name in headers}


def _file(path: object, digest: str) -> Response:
    headers = {"etag": f'"{digest}"', "cache-control": "private, max-age=31536000, immutable"}
    return FileResponse(str(path), headers=headers, media_type="application/octet-stream")
