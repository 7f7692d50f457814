"""The guard of the server. Every request passes it before its route and is refused by default.

The cheapest checks come first: rate of the address, route, announced size, signature, standing and role, rate and bytes
of the key, room in memory. Then the body is read. The guard watches its speed and revocations in the meantime, and
compares its digest with the signed one. The route then finds the results in ``caller(request)``.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgewise.core.errors import EdgewiseError, TransportError
from edgewise.drivers.fleet.members import APPROVED, PENDING, REVOKED, Member, revoked_member_error
from edgewise.drivers.http import browser, rules, signatures
from edgewise.drivers.http.identity import key_fingerprint
from edgewise.drivers.http.limits import LaterError, customer_network
from edgewise.drivers.http.meter import Visit
from edgewise.drivers.http.rules import Rule
from edgewise.drivers.http.service import Service
from edgewise.drivers.http.signatures import Proof

_SIGNED = {"content-digest", "edgewise-run", "edgewise-round", "edgewise-key", "signature-input", "signature"}
TROUBLE_S = 5.0  # seconds until callers may return to a server whose disk is full or that is ending
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request.

    ``member`` and ``proof``: None where the route takes unsigned requests. ``public``: the key that wants to join, on
    its route alone. ``session``: the secret of a browser's session, for its forms.
    """

    member: Member | None
    proof: Proof | None
    body: bytes = field(repr=False)
    public: bytes | None = field(default=None, repr=False)
    session: str | None = field(default=None, repr=False)

    def person(self) -> Member:
        """Return the member whose session this is, on a route for sessions."""
        if self.member is None or self.session is None:
            raise _no_session()
        return self.member

    def form(self) -> str:
        """Return the secret of the session, on a route for sessions."""
        if self.session is None:
            raise _no_session()
        return self.session

    def joining(self) -> bytes:
        """Return the key that wants to join, on the route where one joins."""
        if self.public is None:
            raise TransportError("E-SIGNATURE", "the request names no key.", "sign it.")
        return self.public

    def signed(self) -> tuple[Member, Proof]:
        """Return the member and its proof, on a route for members."""
        if self.member is None or self.proof is None:
            raise TransportError("E-SIGNATURE", "the request is not signed.", "sign it.")
        return self.member, self.proof


def caller(request: Request) -> Caller:
    """Return the caller that the guard has identified."""
    found: Caller = request.scope["state"]["caller"]
    return found


NOTHING: Mapping[str, object] = {}


async def refused_route(
    request: Request, error: EdgewiseError, otherwise: int = 503, beside: Mapping[str, object] = NOTHING
) -> Response:
    """Answer for a route that raised. The error becomes the outcome of the request.

    ``otherwise``, ``beside``: see ``reply``.
    """
    visit: Visit = request.scope["state"]["visit"]
    visit.code = error.code
    shown: Shown = request.scope["state"]["shown"]
    return shown(request.scope["path"], error, reply(error, otherwise, beside))


def reply(error: EdgewiseError, otherwise: int = 503, beside: Mapping[str, object] = NOTHING) -> Response:
    """Turn an error into an answer: its code, what was asked, and what to do.

    ``retry-after`` where the error ends by itself.

    Args:
        otherwise: the status of an error without a status of its own.
        beside: what the answer says in addition.
    """
    status = rules.STATUS.get(error.code, otherwise)
    wait_s = error.wait_s if isinstance(error, LaterError) else TROUBLE_S if status >= 500 else 0.0
    headers = {"retry-after": f"{max(1, round(wait_s))}"} if wait_s else {}
    fix = error.fix or f"`edgewise explain {error.code}` says what to do."
    body = {"code": error.code, "what": error.what, "fix": fix, **beside}
    return JSONResponse(body, status, headers)


Shown = Callable[[str, EdgewiseError, Response], Response]  # path, error, its answer as JSON -> the answer to send


class Guard:
    """The ASGI middleware around all routes of a server.

    ``shown``: makes a page of a refusal where a person asks.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        lines: Sequence[Rule] = rules.RULES,
        shown: Shown = lambda path, error, answer: answer,
    ) -> None:
        self._app, self._service, self._rules, self._shown = app, service, lines, shown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError("this server speaks HTTP only")
        self._service.attach()
        visit = Visit(scope["method"])
        outgoing = _Outgoing(send, self._service.limits.stall_s, visit)
        reserved_bytes, holder = 0, ""
        try:
            rule, length = self._admit(scope, visit)
            found = await self._identify(scope, rule, visit)
            if found.proof is not None and rule.changes:
                self._fresh(found.proof)
            if found.member is not None:
                self._service.gate.member(found.member.id, length, time.monotonic())
            holder = (
                found.member.id if found.member is not None else customer_network((scope.get("client") or ("?", 0))[0])
            )
            self._service.gate.hold(holder, length)
            reserved_bytes = length
            body, digest = await self._body(receive, length, found)
            visit.received = length
            if found.proof is not None and not hmac.compare_digest(digest, found.proof.body):
                raise TransportError("E-SIGNATURE", "the body is not the signed one.", "send it again.")
            state = scope.setdefault("state", {})
            if rule.session and rule.changes:
                browser.check_form(body, found.form())
            state["caller"], state["visit"], state["shown"] = replace(found, body=body), visit, self._shown
            if found.member is not None:
                self._service.advanced(found.member.id)
            await self._app(scope, _replayed(body, receive), outgoing)
        except EdgewiseError as e:
            await self._refuse(e, scope, receive, outgoing)
        except TimeoutError:
            visit.code = "E-STALL"  # the caller does not read its answer, so the connection is of no more use
        except Exception as e:  # boundary: one request fails with an answer, and the server continues
            self._service.meter.fault(visit, e)
            await self._refuse(server_fault(), scope, receive, outgoing)
        finally:
            if reserved_bytes:
                self._service.gate.release(holder, reserved_bytes)
            self._service.meter.note(visit)

    async def _refuse(self, error: EdgewiseError, scope: Scope, receive: Receive, outgoing: _Outgoing) -> None:
        outgoing.visit.code = error.code
        if not outgoing.begun:
            with suppress(TimeoutError):
                await self._shown(scope["path"], error, reply(error))(scope, receive, outgoing)

    def _admit(self, scope: Scope, visit: Visit) -> tuple[Rule, int]:
        """Check what needs no look-up: a request's address, route and announced size."""
        address = (scope.get("client") or ("?", 0))[0]
        self._service.gate.address(address, time.monotonic())
        raw_path: bytes = scope.get("raw_path", b"").partition(b"?")[0]
        path = raw_path.decode("latin-1")
        if path != scope["path"] or (rule := rules.matched(scope["method"], path, self._rules)) is None:
            what = "the server has no route at this path for this method."  # a path may be any text
            raise TransportError("E-ROUTE", what, "`/openapi.json` lists all routes.")
        visit.route = rule.path
        if rule.roles == rules.LOCAL and not _is_local(address, scope):
            raise TransportError("E-ROLE", f"{path} answers requests from its own machine only.", "ask there.")
        return rule, _length(scope, rule)

    async def _identify(self, scope: Scope, rule: Rule, visit: Visit) -> Caller:
        if rule.roles in (rules.ANYONE, rules.LOCAL):
            return Caller(None, None, b"")
        if rule.session:
            return await self._person(scope, rule, visit)
        headers: dict[str, str] = {}
        for raw_name, value in scope["headers"]:
            if (name := raw_name.decode("latin-1")) in _SIGNED:
                if name in headers:
                    raise TransportError("E-SIGNATURE", f"the request has two headers {name}.", "send each once.")
                headers[name] = value.decode("latin-1")
        where = (scope["method"], scope["path"], scope["query_string"].decode("latin-1"))
        server, now_s = self._service.identity.name, self._service.now_s()
        if rule.roles == rules.JOINING:
            public = _joining_key(headers.get("edgewise-key", ""))
            proof = signatures.verify_request(where, headers, server, now_s, {key_fingerprint(public): public}.get)
            return Caller(None, proof, b"", public)
        sender = signatures.claimed_sender(headers)
        member = None if sender is None else await self._service.member(sender)
        key_of: Callable[[str], bytes | None] = lambda _: member.public if member else None  # noqa: E731
        proof = signatures.verify_request(where, headers, server, now_s, key_of)
        assert member is not None
        self._standing(member, rule, visit)
        return Caller(member, proof, b"")

    async def _person(self, scope: Scope, rule: Rule, visit: Visit) -> Caller:
        """Find the member whose session the cookie names. Raises TransportError: E-SESSION, and as ``_standing``."""
        if rule.changes:
            browser.check_origin(scope, self._service.public_url)
        secret = browser.session_secret(scope)
        name = None if secret is None else await self._service.person(secret)
        member = None if name is None else await self._service.member(name)
        if secret is None or member is None:
            raise _no_session()
        self._standing(member, rule, visit)
        return Caller(member, None, b"", session=secret)

    def _fresh(self, proof: Proof) -> None:
        """Refuse a request that may have been accepted before this server was restored.

        Raises TransportError(E-BUSY).
        """
        began_s = self._service.epoch.began_s
        if proof.created_s <= began_s:
            what = "the server was restored from a backup after the request was signed."
            raise LaterError("E-BUSY", what, "sign it again.", 1.0)

    def _standing(self, member: Member, rule: Rule, visit: Visit) -> None:
        """Check a member's status and role. Raises TransportError: E-REVOKED, E-PENDING, E-ROLE."""
        visit.member, visit.role = member.id, member.role if member.status == APPROVED else member.status
        if member.status == REVOKED:
            raise revoked_member_error(member.id)
        if member.status == PENDING and "pending" not in rule.roles:
            what = f"{member.id} waits for the approval of the operator."
            raise LaterError("E-PENDING", what, "wait, or ask the operator (`edgewise fleet approve`).", 10.0)
        if member.status == APPROVED and member.role not in rule.roles:
            what = f"a {member.role} may not call {rule.method} {rule.path}."
            raise TransportError("E-ROLE", what, f"roles that may: {', '.join(sorted(rule.roles - {'pending'}))}.")

    async def _body(self, receive: Receive, length: int, found: Caller) -> tuple[bytes, bytes]:
        """Read a body of that many bytes.

        Return it with its SHA-256, which is made piece by piece so that others are served.

        Raises:
            TransportError: E-STALL where the body comes too slowly or breaks off. E-REVOKED where its sender is revoked
                in the meantime.
        """
        limits, parts, size, digest = self._service.limits, [], 0, hashlib.sha256()
        begun = time.monotonic()
        while size < length:
            try:
                async with asyncio.timeout(limits.stall_s):
                    message = await receive()
            except TimeoutError:
                raise TransportError("E-STALL", f"no byte came for {limits.stall_s:g} s.", "send it again.") from None
            if message["type"] != "http.request":
                raise TransportError("E-STALL", "the connection broke off.", "send it again.")
            part: bytes = message.get("body", b"")
            parts.append(part)
            digest.update(part)
            size += len(part)
            passed = time.monotonic() - begun
            if passed > limits.stall_s and size < limits.slowest * (passed - limits.stall_s):
                raise TransportError("E-STALL", f"only {size} bytes came in {passed:.0f} s.", "use a faster link.")
            if found.member is not None:
                now = await self._service.member(found.member.id)
                if now is not None and now.status == REVOKED:
                    raise revoked_member_error(now.id)
            if not message.get("more_body", False):
                break
        if size != length:
            raise TransportError("E-STALL", f"only {size} of {length} bytes came.", "send it again.")
        return b"".join(parts), digest.digest()


class _Outgoing:
    """Send the answer, and give up on a caller that does not read it."""

    def __init__(self, send: Send, stall_s: float, visit: Visit) -> None:
        self._send, self._stall_s, self.visit = send, stall_s, visit
        self.begun = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.begun, self.visit.status = True, message["status"]
            message["headers"] = [*message.get("headers", ()), (b"edgewise-request", self.visit.id.encode())]
        else:
            self.visit.sent += len(message.get("body", b""))
        async with asyncio.timeout(self._stall_s):
            await self._send(message)


def _no_session() -> TransportError:
    return TransportError("E-SESSION", "nobody is logged in with this browser.", "log in: `edgewise fleet login`.")


def server_fault() -> TransportError:
    """Make the error that a caller gets for a fault of the server."""
    what = "the server failed at this request. Its log has the details."
    return TransportError(
        "E-SERVER", what, "try again. If the fault stays, tell the operator the header edgewise-request."
    )


def _replayed(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """Give a body that was read already to a route that reads it again."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


def _length(scope: Scope, rule: Rule) -> int:
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        raise TransportError(
            "E-REQUEST", "the request does not announce the length of its body.", "send content-length."
        )
    text = headers.get(b"content-length", b"0")
    if not text.isdigit() or len(text) > 15:
        raise TransportError("E-REQUEST", "content-length is not a number.", "send it as a number of bytes.")
    if int(text) > rule.body_bytes:
        what = f"the body has {int(text)} bytes, but {rule.method} {rule.path} takes at most {rule.body_bytes}."
        raise TransportError("E-QUOTA", what, "send less, or send a large frame in chunks (`/v1/uploads`).")
    return int(text)


def _is_local(address: str, scope: Scope) -> bool:
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
    return loopback and not any(name.decode("latin-1") in _FORWARDED for name, _ in scope["headers"])


def _joining_key(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise TransportError("E-REQUEST", "edgewise-key is not a public key of 32 bytes.", "send it in hexadecimal.")
    return raw


def parsed_body(body: bytes) -> Any:
    """Parse the small JSON body of a request.

    Raises:
        TransportError: E-REQUEST.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise TransportError("E-REQUEST", "the body is not JSON.", "see `/openapi.json`.") from None
