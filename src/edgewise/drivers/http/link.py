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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import httpx2

from edgewise.core.errors import REGISTRY, TransportError
from edgewise.drivers.http import certificates, home, identity, signatures, tokens
from edgewise.drivers.http.home import Home
from edgewise.drivers.http.identity import Identity
from edgewise.drivers.http.link_speed import Speed
from edgewise.drivers.http.naming import ANSWER_S, named, timeout, unreachable
from edgewise.drivers.storage.files import discard, is_blob

_DIGEST = re.compile("[0-9a-f]{64}")
T = TypeVar("T")
WAIT_S = 25.0  # duration of a long poll
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0  # short enough to find a restarted server in seconds
INLINE_BYTES = 2**20  # the largest frame that goes in one request
PIECE_BYTES = 2**16  # bytes of a body between two checks of ``open``
CLOSED_S = 0.25  # seconds until the next check of ``open``
LONGEST_WAIT_S = 3600.0  # the longest wait that a server can ask for
# Refusals that end by themselves. A request that was delivered twice (E-REPLAY) is signed anew.
_PAUSES = ("E-RATE", "E-BUSY", "E-STALL", "E-REPLAY")
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
    ) -> None:
        if isinstance(folder, Path):
            folder = home.load(folder), identity.load(folder / home.KEY)
        self.home, self._me = folder
        self.patience_s, self._now_s, self._sleep, self._open = patience_s, now_s, sleep, open
        self._troubled = troubled
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
        gateway: str = "",
    ) -> Link:
        """Enrol at a server and open the connection.

        Makes the key of this folder where there is none. Sends nothing before the server has proved that it is the one
        that the token names. Joining again with the same token is harmless.

        Args:
            plain: allow plain HTTP, to this machine only.
            gateway: fingerprint of the gateway whose address ``url`` is; empty: the address is the server's own.
        Raises:
            TransportError: E-TOKEN, E-SERVER-KEY, E-CONNECT, E-REVOKED. E-IDENTITY where the folder is enrolled at
                another server.
        """
        parsed = tokens.parse(token)
        secure = home.check_url(url, plain)
        home.check_free(folder, parsed.server)
        _, authority = named(url, parsed.server, patience_s)  # also through a gateway, which cannot sign for the server
        if gateway:
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

    def standing(self) -> Mapping[str, Any]:
        """Return the server's record of this member: id, role, status, tags."""
        found: Mapping[str, Any] = self.call("GET", "/v1/me")
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
        """Return the oldest frame with a number above ``after``; None where none came within ``wait_s`` seconds.

        Where the server asks to come back later, this waits that long before it returns None.
        """
        query = {"after": after, "wait": int(wait_s)}
        answer = self._request("GET", "/v1/inbox", query, timeout_s=wait_s + ANSWER_S)
        if answer.status_code == 204:
            self._sleep(self._retry_after(answer))
            return None
        return Mail(int(answer.headers["edgewise-number"]), answer.content)

    def send(self, run: str, round: int, raw: bytes) -> int:
        """Put a frame into the outbox and return its number there. It is durable at the server when this returns.

        The same frame again gets the same answer. Another frame of the same phase is E-CONFLICT.

        Raises:
            TransportError: E-CLOSED where the round is over, and other refusals of the server.
        """
        if len(raw) <= INLINE_BYTES:
            begun = time.monotonic()
            answer = self.call("POST", "/v1/outbox", body=raw, run=run, round=round)
            self.speed.up.note(len(raw), time.monotonic() - begun)
        else:
            upload = self._upload(run, round, raw)
            answer = self.call("POST", "/v1/outbox", {"upload": upload}, run=run, round=round)
        return int(answer["number"])

    def _upload(self, run: str, round: int, raw: bytes) -> str:
        """Send the missing chunks of a frame to the server. Return the upload."""
        announced = {"digest": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
        state = self.call("POST", "/v1/uploads", document=announced, run=run, round=round)
        upload, chunk, received = str(state["upload"]), int(state["chunk"]), int(state["received"])
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
            received = int(state["received"])
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
        """
        if not _DIGEST.fullmatch(digest):
            raise TransportError("E-BLOB", f"{digest!r:.80} is not the name of a blob.", "leave the run.")
        path, part = folder / digest, folder / f"{digest}.part"
        if is_blob(path, digest):
            return path
        folder.mkdir(parents=True, exist_ok=True)
        self._attempts(lambda: self._continue(digest, part, limit_bytes))
        if not is_blob(part, digest):
            discard(part)
            raise TransportError("E-BLOB", f"the server sent other bytes than {digest}.", "try again.")
        part.replace(path)
        return path

    def _continue(self, digest: str, part: Path, limit_bytes: int) -> None:
        """Try once to get the rest of a blob."""
        have = part.stat().st_size if part.exists() else 0
        begun = time.monotonic()
        headers = self._signed("GET", f"/v1/blobs/{digest}", "", b"", signatures.NONE, signatures.NONE)
        if have:
            headers["range"] = f"bytes={have}-"
        with self._http.stream("GET", f"/v1/blobs/{digest}", headers=headers) as answer:
            if answer.status_code == 416:  # all bytes are here
                return
            if answer.status_code not in (200, 206):
                answer.read()
                raise self._refusal(answer)
            got = 0
            with part.open("ab" if answer.status_code == 206 else "wb") as f:
                size = have if answer.status_code == 206 else 0
                for (
                    piece
                ) in answer.iter_raw():  # written as it comes, because unwritten bytes are lost with the connection
                    got += len(piece)
                    if size + got > limit_bytes:
                        f.truncate(0)
                        raise TransportError("E-BLOB", f"{digest} has more than {limit_bytes} bytes.", "leave the run.")
                    f.write(piece)
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
    ) -> Any:
        """Send a signed request with bytes or a JSON ``document``, and return its JSON answer.

        Raises:
            TransportError: the server's refusal, or E-CONNECT.
        """
        headers = dict(extra or {})
        if document is not None:
            body, headers["content-type"] = json.dumps(document).encode(), "application/json"
        return self._request(method, path, query or {}, body, run, round, headers).json()

    def fetch(self, method: str, path: str, body: bytes, run: str, round: int) -> bytes:
        """Send a signed request about a round, and return the bytes of its answer.

        Raises TransportError as ``call``.
        """
        return self._request(method, path, {}, body, run, round).content

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        body: bytes = b"",
        run: str = signatures.NONE,
        round: int | None = None,
        extra: Mapping[str, str] | None = None,
        timeout_s: float = ANSWER_S,
    ) -> httpx2.Response:
        text, number = (
            urlencode({k: str(v) for k, v in query.items()}),
            signatures.NONE if round is None else str(round),
        )

        def attempt() -> httpx2.Response:
            headers = {**self._signed(method, path, text, body, run, number), **(extra or {})}
            url, content = f"{path}?{text}" if text else path, body if len(body) <= PIECE_BYTES else self._pieces(body)
            if body:
                headers["content-length"] = str(len(body))
            answer = self._http.request(method, url, content=content, headers=headers, timeout=timeout(timeout_s))
            if answer.status_code >= 400:
                raise self._refusal(answer)
            return answer

        return self._attempts(attempt)

    def _signed(self, method: str, path: str, query: str, body: bytes, run: str, round: str) -> dict[str, str]:
        request = signatures.Request(method, path, query, signatures.sha256(body), run, round)
        nonce = secrets.token_bytes(signatures.NONCE_BYTES)
        return signatures.headers(self._me, request, self.home.server, int(self._now_s()), nonce)

    def _attempts(self, attempt: Callable[[], T]) -> T:
        """Try until an attempt succeeds, the server refuses, or patience ends."""
        began, pause_s = time.monotonic(), FIRST_PAUSE_S
        while True:
            while not self._open():
                self._sleep(CLOSED_S)
                began += CLOSED_S  # a closed link does not use up patience
            self.requests += 1
            try:
                return attempt()
            except _Closed:
                continue
            except httpx2.TransportError as e:
                error, least_s = unreachable(self.home.url, e), 0.0
            except _Wait as e:
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

    def _refusal(self, answer: httpx2.Response) -> Exception:
        """Turn the server's refusal into an error."""
        try:
            refusal = answer.json()
            code, what, fix = str(refusal["code"]), str(refusal["what"]), str(refusal["fix"])
        except (ValueError, KeyError, TypeError):
            code, what, fix = "", f"the server answered with status {answer.status_code}.", "ask its operator."
        error = TransportError(code if code in REGISTRY else "E-CONNECT", what, fix)
        if code in _PAUSES or answer.status_code >= 500:
            return _Wait(error, self._retry_after(answer))
        return error

    def _retry_after(self, answer: httpx2.Response) -> float:
        """Return the seconds that ``Retry-After`` asks for, as a number or as a date; 0 without the header."""
        text = answer.headers.get("retry-after", "0")
        try:
            wait_s = float(text) if text.isdigit() else parsedate_to_datetime(text).timestamp() - self._now_s()
        except (ValueError, OverflowError):
            wait_s = 0.0
        return min(max(0.0, wait_s), LONGEST_WAIT_S)


class _Closed(Exception):
    """The link was closed in the middle of a body."""


class _Wait(Exception):
    """A refusal that ends by itself."""

    def __init__(self, error: TransportError, least_s: float) -> None:
        super().__init__(str(error))
        self.error, self.least_s = error, least_s
