"""The routes of the data plane: identity, inbox, outbox, uploads, blobs. They use bare Starlette for speed.

device                                     server
GET  /v1/inbox?after=7&wait=25    ──►      the next frame, or 204 with Retry-After
POST /v1/counter   number, digest ──►      the last frame of the device that the server remembers now, signed
POST /v1/outbox            frame  ──►      stored durably, then acknowledged; once for each phase of a round
POST /v1/uploads   digest, size   ──►      the number of bytes that it has already
PUT  /v1/uploads/ID?offset=0      ──►      a chunk, durable when it is acknowledged
POST /v1/outbox?upload=ID         ──►      the uploaded frame, as above
GET  /v1/blobs/SHA256             ──►      a model or a delta; Range continues a broken download
"""

from __future__ import annotations

import asyncio
import json
import secrets
from contextlib import suppress
from math import ceil
from typing import Any

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgewise.core import frame
from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import counters, mailboxes, uploads
from edgewise.drivers.fleet.counters import LastFrame
from edgewise.drivers.fleet.members import Member
from edgewise.drivers.fleet.uploads import Room, Upload
from edgewise.drivers.http import certificates, frame_counter
from edgewise.drivers.http.blob_response import BlobResponse
from edgewise.drivers.http.guard import caller, parsed_body, refused_route
from edgewise.drivers.http.health import Health
from edgewise.drivers.http.named_locks import NamedLocks
from edgewise.drivers.http.rules import VIEWER
from edgewise.drivers.http.service import Service
from edgewise.drivers.http.signatures import Proof
from edgewise.drivers.storage import counter_file
from edgewise.engine import pacing

ASSEMBLING = 2  # number of uploads joined at a time, because each is in memory as a whole
IN_ROUND_S = 30.0  # longest wait of a device in an open round that may not wait in a long poll


class DataPlane:
    """The routes of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._assembling = asyncio.Semaphore(ASSEMBLING)
        self._turns = NamedLocks()

    def routes(self) -> list[Route]:
        """Return the routes for a router behind the guard."""
        return [
            *Health(self._service).routes(),
            Route("/v1/server", self.server, methods=["GET"]),
            Route("/v1/inbox", self.inbox, methods=["GET"]),
            Route("/v1/counter", self.count, methods=["POST"]),
            Route("/v1/outbox", self.outbox, methods=["POST"]),
            Route("/v1/uploads", self.begin, methods=["POST"]),
            Route("/v1/uploads/{upload}", self.upload, methods=["GET"]),
            Route("/v1/uploads/{upload}", self.chunk, methods=["PUT"]),
            Route("/v1/blobs/{digest}", self.blob, methods=["GET"]),
        ]

    async def server(self, request: Request) -> Response:
        """Tell the server's identity, signed for a nonce of the caller."""
        service, nonce = self._service, request.query_params.get("nonce", "")
        return JSONResponse(certificates.introduced_server(service.identity, service.authority, nonce))

    async def inbox(self, request: Request) -> Response:
        """Return the oldest frame with a number above ``after``. Waits up to ``wait`` seconds for it."""
        service, (member, _) = self._service, caller(request).signed()
        after, wait_s = _whole(request, "after"), min(float(_whole(request, "wait")), service.limits.wait_s)
        with service.listening(member.id, member.id) as bell:
            letter = await service.read(lambda c: mailboxes.next_letter(c, member.id, after))
            if letter is None and bell is not None and wait_s > 0.0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pacing.poll_s(wait_s, _draw())):
                        await bell.wait()
                letter = await service.read(lambda c: mailboxes.next_letter(c, member.id, after))
        if letter is None:
            pause_s = 0 if bell is not None else await self._pause_s(member.id)
            return Response(status_code=204, headers={"retry-after": str(pause_s)})
        service.presence.has_mail(member.id)
        headers = {"edgewise-number": str(letter.number)}
        return Response(letter.body, 200, headers, "application/octet-stream")

    async def _pause_s(self, device: str) -> int:
        """Return the whole seconds after which a device without mail comes back. One in an open round comes soon."""
        if await self._service.read(lambda c: mailboxes.takes_part(c, device)):
            return 1 + secrets.randbelow(int(IN_ROUND_S))
        return ceil(self._service.pause_s(device, _draw()))

    async def count(self, request: Request) -> Response:
        """Count a device's next frame, and state the one that the server remembers now."""
        service, found = self._service, caller(request)
        member, proof = found.signed()
        claimed = _claim(parsed_body(found.body))
        known = await service.once(proof, lambda c: counters.count(c, member.id, claimed))
        statement = frame_counter.stated(service.identity, member.id, known.number, known.digest)
        if known == claimed:
            return JSONResponse(statement)
        what = f"the server remembers frame {known.number} of this device, which is not the one that it counts now."
        return await refused_route(request, TransportError("E-OLDER", what, counter_file.FIX), beside=statement)

    async def outbox(self, request: Request) -> Response:
        """Accept a frame: the body, or the upload that the query names."""
        service, found = self._service, caller(request)
        member, proof = found.signed()
        raw, upload = found.body, request.query_params.get("upload") or None
        service.check_room(len(raw))
        if upload is None:
            return await self._accept(member, proof, raw, proof.body, None)
        async with self._turns.of(f"{member.id}/{upload}"), self._assembling:
            begun = await service.read(lambda c: _begun(c, upload, member, proof))
            return await self._accept(member, proof, await self._assemble(begun), begun.digest, upload)

    async def _accept(
        self, member: Member, proof: Proof, raw: bytes | memoryview, digest: bytes, upload: str | None
    ) -> Response:
        service = self._service
        message = await service.aside(lambda: frame.from_device(raw, service.limits.frame_bytes))
        if (message.device, message.run, message.round) != (member.id, proof.run, proof.round):
            what = "the frame is not of the device, run and round that signed the request."
            raise TransportError("E-REQUEST", what, "sign for the run and the round of the frame.")

        def take(c: sa.Connection) -> int:
            number = mailboxes.accept(c, message, raw, digest, upload, service.now_s())
            counters.check(c, member.id, digest)
            return number

        number = await self._service.once(proof, take)
        service.delivered()
        return JSONResponse({"number": number})

    async def begin(self, request: Request) -> Response:
        """Begin an upload, or find it."""
        service, found = self._service, caller(request)
        member, proof = found.signed()
        wanted = parsed_body(found.body)
        digest, size = _announced(wanted)
        service.check_room(min(size, service.limits.frame_bytes))
        if proof.run is None or proof.round is None:
            raise TransportError(
                "E-REQUEST", "the request does not name the run and the round of the upload.", "sign for both."
            )
        run, round = proof.run, proof.round
        room = Room(service.limits.frame_bytes, service.limits.spool_bytes)
        begun = await self._service.once(
            proof, lambda c: uploads.begin(c, member.id, run, round, digest, size, room, service.now_s())
        )
        return _upload(begun, 201)

    async def upload(self, request: Request) -> Response:
        """Return the progress of an upload."""
        member, _ = caller(request).signed()
        id = request.path_params["upload"]
        return _upload(await self._service.read(lambda c: uploads.find(c, id, member.id)), 200)

    async def chunk(self, request: Request) -> Response:
        """Accept a chunk at ``offset``."""
        service, found = self._service, caller(request)
        member, proof = found.signed()
        id, offset = request.path_params["upload"], _whole(request, "offset")
        service.check_room(len(found.body))

        def look(c: sa.Connection) -> tuple[Upload, bytes]:
            begun = _begun(c, id, member, proof)
            return begun, mailboxes.round_key(c, begun.run, begun.round)

        async with self._turns.of(f"{member.id}/{id}"):  # a chunk that is counted is never written again
            begun, key = await service.read(look)
            uploads.check_chunk(begun, offset, len(found.body))
            await service.aside(lambda: service.chunks.put(key, id, offset // begun.chunk, found.body))
            received = await service.once(proof, lambda c: uploads.advance(c, begun, len(found.body)))
        service.advanced(member.id)
        return JSONResponse({"received": received})

    async def blob(self, request: Request) -> Response:
        """Return a published blob, whole or a range of it.

        A device gets the blobs of its own runs. A gateway gets those that are published to everybody.
        """
        digest, (member, _) = request.path_params["digest"], caller(request).signed()
        device = None if member.role in VIEWER else member.id
        if not await self._service.read(lambda c: mailboxes.offered(c, digest, device)):
            raise TransportError(
                "E-BLOB", f"no blob {digest:.64} is published for the caller.", "wait for the next invitation."
            )
        return BlobResponse(self._service.blobs, digest, request.headers)

    async def _assemble(self, upload: Upload) -> memoryview:
        key = await self._service.read(lambda c: mailboxes.round_key(c, upload.run, upload.round))
        try:
            return await self._service.aside(lambda: uploads.assembled(upload, key, self._service.chunks))
        except TransportError as e:
            if e.code == "E-BLOB" and await self._service.write(lambda c: uploads.abandon(c, upload.id)):
                self._service.chunks.drop(upload.id)
            raise


def _begun(c: sa.Connection, upload: str, member: Member, proof: Proof) -> Upload:
    """Find a device's upload. A round that has closed amid it took it away, and is the reason of the refusal."""
    if proof.run is not None and proof.round is not None:
        mailboxes.invited(c, proof.run, proof.round, member.id)
    return uploads.find(c, upload, member.id)


def _draw() -> float:
    """Draw uniformly from [0, 1)."""
    return secrets.randbelow(2**20) / 2**20


def _whole(request: Request, name: str) -> int:
    text = request.query_params.get(name, "0")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise TransportError("E-REQUEST", f"{name} is not a whole number.", "see `/openapi.json`.")
    return int(text)


def _announced(wanted: Any) -> tuple[bytes, int]:
    try:
        digest, size = bytes.fromhex(wanted["digest"]), wanted["size"]
    except (TypeError, KeyError, ValueError):
        digest, size = b"", 0
    if len(digest) != 32 or type(size) is not int or set(wanted) != {"digest", "size"}:
        raise TransportError("E-REQUEST", "an upload has a digest (SHA-256) and a size in bytes.", "send both.")
    return digest, size


def _claim(wanted: Any) -> LastFrame:
    """Read the claim of a frame."""
    try:
        number, text = wanted["number"], wanted["digest"]
        digest = None if text is None else bytes.fromhex(text)
    except (TypeError, KeyError, ValueError):
        number, digest = -1, None
    whole = type(number) is int and 0 <= number <= counters.MOST and set(wanted) == {"number", "digest"}
    if not whole or (None if digest is None else len(digest)) != (32 if number else None):
        what = "a device counts a frame by its number and its digest (SHA-256). For number 0 the digest is null."
        raise TransportError("E-REQUEST", what, "send both.")
    return LastFrame(number, digest)


def _upload(begun: Upload, status: int) -> Response:
    body = {"upload": begun.id, "size": begun.size, "chunk": begun.chunk, "received": begun.received}
    return Response(json.dumps(body), status, media_type="application/json")
