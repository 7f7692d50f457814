"""A device's connection to its server: join, poll, send, download. Needs no torch and no package of the server.

    link = Link.join("https://federation.example:8443", "fedtok1_...", home)     # once
    link = Link(home)                                                          # afterwards
    while (mail := link.poll(after)) is not None: ...
    link.send(run, round, raw)            # in chunks where it is large; sending the same frame again is harmless

Where the network or the server fails, every call tries again by itself, with growing pauses of random length (full
jitter), and gives up after ``patience_s``. Where the server names a time to come back, the pauses begin then. A request
that the server has refused is never repeated. Each attempt is signed anew.

Nothing leaves while ``open`` is False. A call waits, and a call that is sending a body breaks off and begins again.

Source of the pauses: Brooker, "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import httpx2

from edgewise.core.digests import is_digest
from edgewise.core.errors import TransportError
from edgewise.drivers.http import answers, certificates, home, identity, partial_blob, signatures, tokens
from edgewise.drivers.http.answers import Answer, Wait, entry
from edgewise.drivers.http.frame_counter import COUNTER, FrameCounter
from edgewise.drivers.http.home import Home
from edgewise.drivers.http.identity import Identity
from edgewise.drivers.http.link_speed import Speed
from edgewise.drivers.http.naming import ANSWER_S, named, timeout, unreachable
from edgewise.drivers.storage.files import is_blob

_NUMBER = re.compile("[0-9]{1,18}")
T = TypeVar("T")
WAIT_S = 25.0  # duration of a long poll
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0  # short enough to find a restarted server in seconds
INLINE_BYTES = 2**20  # the largest frame that goes in one request
PIECE_BYTES = 2**16  # bytes of a body between two checks of ``open``
SLOW_S = 3600.0  # longest wait for an answer for which the server verifies or copies a whole run
CLOSED_S = 0.25  # seconds until the next check of ``open``
FRAME_BYTES = 2**26  # the largest frame from a server, for any run
LEAST_CHUNK = 2**12  # bytes of a chunk; a server that asks for smaller ones costs a device more than its frames
_IN_DISORDER = ("E-OFFSET",)


@dataclass(frozen=True, slots=True)
class Mail:
    """A frame from the server. ``number``: pass it to ``poll`` to get the next frame."""

    number: int
    raw: bytes = field(repr=False)


class Link:
    """A connection of the identity in ``folder``. Use as a context manager.

    Args:
        folder: the folder of the enrolment, or an enrolment and its key.
        patience_s: seconds for which a call tries.
        now_s: wall clock.
        sleep: pauses for some seconds.
        open: whether anything may leave now. An error that it raises ends the call.
        troubled: called for every attempt that failed and is repeated.
        sends: called with the size of a frame, or of a chunk of one, before each attempt to send it. An error that it
            raises ends the call.
        answer_bytes: the largest answer to a ``call``.
    Raises:
        TransportError: E-IDENTITY where the folder holds no enrolment.
    """

    def __init__(
        self,
        folder: Path | tuple[Home, Identity],
        patience_s: float = 300.0,
        now_s: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        open: Callable[[], bool] = lambda: True,
        troubled: Callable[[TransportError], None] = lambda e: None,
        sends: Callable[[int], None] = lambda size: None,
        answer_bytes: int = answers.ANSWER_BYTES,
    ) -> None:
        where = folder if isinstance(folder, Path) else None
        if isinstance(folder, Path):
            folder = home.load(folder), identity.load(folder / home.KEY)
        self.home, self._me = folder
        claim: Callable[..., Any] = lambda document: self.call("POST", COUNTER, document=document, reads=(409,))  # noqa: E731
        self._counter = None if where is None else FrameCounter(where, self._me.name, self.home.server, claim)
        self.patience_s, self._now_s, self._sleep, self._open = patience_s, now_s, sleep, open
        self._troubled, self._sends, self._answer_bytes = troubled, sends, answer_bytes
        self.speed = Speed()
        self.requests = 0
        verify = certificates.client_context(self.home.authority.encode()) if self.home.secure else False
        self._http = httpx2.Client(base_url=self.home.url, verify=verify, timeout=timeout(ANSWER_S), trust_env=True)

    @classmethod
    def join(
        cls,
        url: str,
        token: str,
        folder: Path,
        label: str = "",
        plain: bool = False,
        patience_s: float = 60.0,
        gateway: str | None = None,
    ) -> Link:
        """Enrol at a server and open the connection.

        Makes the key of this folder where there is none. Sends nothing before the server has proved that it is the one
        that the token names. Joining again with the same token is harmless.

        Args:
            plain: allow plain HTTP, to this machine only.
            gateway: fingerprint of the gateway whose address ``url`` is. None: the address is the server's own.
        Raises:
            TransportError: E-TOKEN, E-SERVER-KEY, E-CONNECT, E-REVOKED. E-IDENTITY where the folder is enrolled at
                another server.
        """
        parsed = tokens.parse(token)
        secure = home.check_url(url, plain)
        home.check_free(folder, parsed.server)
        _, authority = named(url, parsed.server, patience_s)  # also through a gateway, which cannot sign for the server
        if gateway is not None:
            _, authority = named(url, gateway, patience_s, "/v1/gateway")
        me = identity.make(folder / home.KEY)
        home.save(folder, Home(url, parsed.server, authority, me.name, secure, gateway))
        link = cls(folder, patience_s)
        document = {"token": parsed.text, "label": label}
        try:
            link.call("POST", "/v1/join", document=document, extra={"edgewise-key": me.public.hex()})
        except BaseException:
            link.close()
            raise
        return link

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    @property
    def name(self) -> str:
        """The id of this device."""
        return self._me.name

    @property
    def identity(self) -> Identity:
        """The key of this device."""
        return self._me

    @property
    def frames(self) -> FrameCounter:
        """The counter of this device's frames. Raises TransportError(E-IDENTITY) for a connection without a folder."""
        if self._counter is None:
            raise TransportError("E-IDENTITY", "this connection has no folder to count frames in.", "name the folder.")
        return self._counter

    def standing(self) -> Mapping[str, Any]:
        """Return the server's record of this member: id, role, status, tags."""
        found: Mapping[str, Any] = self.call("GET", "/v1/me")
        entry(found, "status", str)
        return found

    def leave(self) -> None:
        """Ask the server to revoke this device at once and for ever.

        A device that was revoked before counts as left.
        """
        try:
            self.call("POST", "/v1/me/leave", document={"device": self.name})
        except TransportError as e:
            if e.code != "E-REVOKED":
                raise

    # -- mail ----------------------------------------------------------------------------------------------------

    def poll(self, after: int, wait_s: float = WAIT_S) -> Mail | None:
        """Return the oldest frame with a number above ``after``. None where none came within ``wait_s`` seconds.

        Where the server asks to come back later, this waits that long before it returns None.
        """
        query = {"after": after, "wait": int(wait_s)}
        answer = self._attempts(self._attempt("GET", "/v1/inbox", FRAME_BYTES, query, timeout_s=wait_s + ANSWER_S))
        if answer.status == 204:
            self._sleep(answer.retry_after_s(self._now_s))
            return None
        number = answer.headers.get("edgewise-number", "")
        if not _NUMBER.fullmatch(number):
            raise answers.foreign("its frame has no number")
        return Mail(int(number), answer.content)

    def send(self, run: str, round: int, raw: bytes) -> int:
        """Put a frame into the outbox and return its number there. It is durable at the server when this returns.

        The same frame again gets the same answer. Another frame of the same phase is E-CONFLICT.

        Raises:
            TransportError: E-CLOSED where the round is over, E-OUTDATED where an asynchronous run is past it, and other
                refusals of the server. E-OLDER and E-COUNTER as ``FrameCounter.count``: nothing has left.
        """
        self.frames.count(hashlib.sha256(raw).hexdigest())
        if len(raw) <= INLINE_BYTES:
            begun = time.monotonic()
            answer = self.call("POST", "/v1/outbox", body=raw, run=run, round=round)
            self.speed.up.note(len(raw), time.monotonic() - begun)
        else:
            upload = self._upload(run, round, raw)
            answer = self.call("POST", "/v1/outbox", {"upload": upload}, run=run, round=round)
        return entry(answer, "number", int)

    def _upload(self, run: str, round: int, raw: bytes) -> str:
        """Send the missing chunks of a frame to the server. Return the upload."""
        announced = {"digest": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
        state = self.call("POST", "/v1/uploads", document=announced, run=run, round=round)
        upload, chunk = entry(state, "upload", str), entry(state, "chunk", int, LEAST_CHUNK)
        received = entry(state, "received", int)
        while received < len(raw):
            piece, begun = raw[received : received + chunk], time.monotonic()
            try:
                query = {"offset": received}
                state = self.call("PUT", f"/v1/uploads/{upload}", query, body=piece, run=run, round=round)
                self.speed.up.note(len(piece), time.monotonic() - begun)
            except TransportError as e:
                if e.code not in _IN_DISORDER:
                    raise
                state = self.call("GET", f"/v1/uploads/{upload}")  # an answer was lost, and the server has the chunk
            received = entry(state, "received", int)
        return upload

    def download(self, digest: str, folder: Path, limit_bytes: int) -> Path:
        """Download a published blob into a folder, under its digest. Continues where an earlier attempt broke off.

        Args:
            digest: the digest from the server. Any other text is refused, because it would be a path of the server's
                choice.
            limit_bytes: the largest allowed size. Bytes beyond it are not stored.
        Raises:
            TransportError: E-BLOB where ``digest`` is no digest, the server has no such blob, the blob is too large, or
                its bytes have another digest.
            StoreError: E-DISK.
        """
        if not is_digest(digest):
            raise TransportError("E-BLOB", f"{digest!r:.80} is not the name of a blob.", "leave the run.")
        path, part = folder / digest, folder / f"{digest}.part"
        if is_blob(path, digest):
            return path
        self._attempts(lambda: self._continue(digest, part, limit_bytes))
        partial_blob.finish(part, path, digest)
        return path

    def _continue(self, digest: str, part: Path, limit_bytes: int) -> None:
        """Try once to get the rest of a blob."""
        have, begun = partial_blob.begin(part), time.monotonic()
        headers = self._signed("GET", f"/v1/blobs/{digest}", "", b"", signatures.NONE, signatures.NONE)
        if have:
            headers["range"] = f"bytes={have}-"
        with self._http.stream("GET", f"/v1/blobs/{digest}", headers=headers) as answer:
            if answer.status_code == 416:  # all bytes are here
                return
            if answer.status_code not in (200, 206):
                raise answers.received(answer, self._answer_bytes).refusal(self._now_s)
            got = partial_blob.append(part, answer, have if answer.status_code == 206 else 0, limit_bytes)
        self.speed.down.note(got, time.monotonic() - begun)

    # -- requests ------------------------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: bytes = b"",
        run: str = signatures.NONE,
        round: int | None = None,
        document: object = None,
        extra: Mapping[str, str] | None = None,
        answer_s: float = ANSWER_S,
        once: bool = False,
        reads: Collection[int] = (),
    ) -> Any:
        """Send a signed request with bytes or a JSON ``document``, and return its JSON answer.

        Args:
            answer_s: longest wait for the answer.
            once: the request does something each time that it arrives. It is not sent again where the server may have
                done it.
            reads: statuses of refusals whose JSON is returned.
        Raises:
            TransportError: the server's refusal, or E-CONNECT.
        """
        headers, size = dict(extra or {}), len(body)
        if document is not None:
            body, headers["content-type"] = json.dumps(document).encode(), "application/json"
        limit_bytes = self._answer_bytes
        attempt = self._attempt(method, path, limit_bytes, query or {}, body, run, round, headers, answer_s, reads)
        return self._attempts(lambda: attempt().document(), size, once)

    def fetch(self, method: str, path: str, body: bytes, run: str, round: int, limit_bytes: int) -> bytes:
        """Send a signed request about a round, and return the bytes of its answer, at most ``limit_bytes``.

        Raises TransportError as ``call``.
        """
        return self._attempts(self._attempt(method, path, limit_bytes, {}, body, run, round), len(body)).content

    def _attempt(
        self,
        method: str,
        path: str,
        limit_bytes: int,
        query: Mapping[str, object],
        body: bytes = b"",
        run: str = signatures.NONE,
        round: int | None = None,
        extra: Mapping[str, str] | None = None,
        timeout_s: float = ANSWER_S,
        reads: Collection[int] = (),
    ) -> Callable[[], Answer]:
        """Make the function that sends a request once, signed anew each time. ``reads``: as in ``call``."""
        text = urlencode({k: str(v) for k, v in query.items()})
        number = signatures.NONE if round is None else str(round)

        def attempt() -> Answer:
            headers = {**self._signed(method, path, text, body, run, number), **(extra or {})}
            url, content = f"{path}?{text}" if text else path, body if len(body) <= PIECE_BYTES else self._pieces(body)
            if body:
                headers["content-length"] = str(len(body))
            limits = timeout(timeout_s)
            with self._http.stream(method, url, content=content, headers=headers, timeout=limits) as begun:
                answer = answers.received(begun, limit_bytes)
            if answer.status >= 400 and answer.status not in reads:
                raise answer.refusal(self._now_s)
            return answer

        return attempt

    def _signed(self, method: str, path: str, query: str, body: bytes, run: str, round: str) -> dict[str, str]:
        request = signatures.Request(method, path, query, signatures.sha256(body), run, round)
        nonce = secrets.token_bytes(signatures.NONCE_BYTES)
        return signatures.headers(self._me, request, self.home.server, int(self._now_s()), nonce)

    def _attempts(self, attempt: Callable[[], T], size: int = 0, once: bool = False) -> T:
        """Try until an attempt succeeds, the server refuses, or patience ends.

        Args: size: bytes of a frame that each one sends. once: as in ``call``.
        """
        began, pause_s = time.monotonic(), FIRST_PAUSE_S
        while True:
            if size:
                self._sends(size)  # before ``open``, which may count the bytes of a day
            while not self._open():
                self._sleep(CLOSED_S)
                began += CLOSED_S  # a closed link does not use up patience
            self.requests += 1
            try:
                return attempt()
            except _Closed:
                continue
            except httpx2.TransportError as e:
                if once and not isinstance(e, httpx2.ConnectError | httpx2.ConnectTimeout):
                    raise _unknown(e) from None
                error, least_s = unreachable(self.home.url, e), 0.0
            except Wait as e:
                if once and e.error.code == "E-CONNECT":  # not the server's own refusal
                    raise _unknown(e) from None
                error, least_s = e.error, e.least_s
            wait_s = least_s + pause_s * secrets.randbelow(1000) / 1000
            if time.monotonic() + wait_s > began + self.patience_s:
                raise error
            self._troubled(error)
            self._sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _pieces(self, body: bytes) -> Iterator[bytes]:
        for start in range(0, len(body), PIECE_BYTES):
            if not self._open():
                raise _Closed
            yield body[start : start + PIECE_BYTES]


def _unknown(e: Exception) -> TransportError:
    what = f"the answer is lost: {str(e) or type(e).__name__}. The server may have done what was asked."
    return TransportError("E-CONNECT", what, "look before you ask again: `edgewise run ls`, `edgewise models ls`.")


class _Closed(Exception):
    """The link was closed in the middle of a body."""
