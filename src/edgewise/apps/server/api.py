"""The control plane under ``/v1``: enrolment, members, tokens, runs. ``/openapi.json`` describes it.

Every request is signed (``drivers.http.signatures``). The guard knows the roles of each route and refuses other
members.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import TypeVar

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from edgewise.apps.dashboard import rendering
from edgewise.apps.dashboard.routes import DashboardRoutes
from edgewise.apps.server.decisions import decide_membership, token_made, token_revoked
from edgewise.apps.server.description import openapi_document
from edgewise.apps.server.hosting import Hosting
from edgewise.apps.server.metrics import prometheus_metrics
from edgewise.apps.server.model_routes import ModelRoutes
from edgewise.apps.server.person_acts import PersonActs
from edgewise.apps.server.run_routes import RunRoutes
from edgewise.apps.server.statistics_route import StatisticsRoutes
from edgewise.apps.server.verifying import VerifyingRoutes
from edgewise.core.errors import EdgewiseError, TransportError
from edgewise.drivers.fleet import audit, members, sessions
from edgewise.drivers.fleet.members import Grant, Member
from edgewise.drivers.http import tokens
from edgewise.drivers.http.guard import Guard, caller, refused_route, server_fault
from edgewise.drivers.http.page_rules import LOGIN, PAGES, is_page
from edgewise.drivers.http.routes import DataPlane
from edgewise.drivers.http.rules import RULES
from edgewise.drivers.http.service import Service

T = TypeVar("T")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Joining(_Body):
    """A request to enrol, signed by the key in the header ``edgewise-key``."""

    token: str = Field(max_length=200, repr=False, description="fedtok1_...")
    label: str = Field("", max_length=members.LABEL_CHARACTERS, description="How the owner calls the device.")


class MemberState(BaseModel):
    """A member's state on the server."""

    id: str
    key: str = Field(description="The Ed25519 public key, of which the id is the fingerprint, in hexadecimal.")
    role: str
    status: str = Field(description="pending, approved or revoked")
    tags: list[str]
    label: str
    token: str = Field(description="The id of the token by which it enrolled.")
    joined_s: float


class Leaving(_Body):
    """A device's request to be revoked."""

    device: str = Field(max_length=80, description="The id of the device that leaves: that of the signing key.")


class NewToken(_Body):
    """The rights that a new token gives."""

    role: str = "device"
    tags: list[str] = []
    uses: int = Field(1, description="How often it may be used.")
    approved: bool = Field(False, description="Whoever uses it needs no approval.")
    expires_in_s: float = Field(3600.0, description="At most 90 days.")


class MadeToken(BaseModel):
    """A new token. Its text is shown only this once."""

    id: str
    text: str = Field(repr=False)


class MadeLogin(BaseModel):
    """A login token for the dashboard. Its text is shown only this once."""

    text: str = Field(repr=False)
    path: str = Field(description="Path of the login page.")
    lasts_s: float


class ListedToken(BaseModel):
    """A token in a list, without its text."""

    id: str
    role: str
    tags: list[str]
    uses: int
    used: int
    approved: bool
    expires_s: float
    revoked: bool
    made_by: str
    made_s: float


def _standing(member: Member) -> MemberState:
    return MemberState(
        id=member.id, key=member.public.hex(), role=member.role, status=member.status, tags=list(member.tags),
        label=member.label, token=member.token, joined_s=member.joined_s,
    )  # fmt: skip


class ControlPlane:
    """The web application of a service. ``app`` is the application behind its guard."""

    def __init__(self, service: Service, hosting: Hosting) -> None:
        self._service = service
        api = FastAPI(title="edgewise server", version=version("edgewise"), docs_url=None, redoc_url=None)
        api.add_exception_handler(EdgewiseError, _answer)
        api.add_exception_handler(RequestValidationError, _answer)
        api.add_exception_handler(HTTPException, _answer)
        api.add_exception_handler(Exception, _answer)
        api.router.routes.extend(DataPlane(service).routes())
        api.add_api_route("/metrics", self.metrics, methods=["GET"], include_in_schema=False)
        api.add_api_route("/v1/join", self.join, methods=["POST"])
        api.add_api_route("/v1/me", self.me, methods=["GET"])
        api.add_api_route("/v1/me/leave", self.leave, methods=["POST"])
        api.add_api_route("/v1/devices", self.devices, methods=["GET"])
        api.add_api_route("/v1/devices/{member}/approve", self.approve, methods=["POST"])
        api.add_api_route("/v1/devices/{member}/revoke", self.revoke, methods=["POST"])
        api.add_api_route("/v1/tokens", self.tokens, methods=["GET"])
        api.add_api_route("/v1/tokens", self.make_token, methods=["POST"], status_code=201)
        api.add_api_route("/v1/tokens/{token}/revoke", self.revoke_token, methods=["POST"])
        api.add_api_route("/v1/logins", self.make_login, methods=["POST"], status_code=201)
        RunRoutes(service, hosting).add_to(api)
        VerifyingRoutes(service).add_to(api)
        StatisticsRoutes(service).add_to(api)
        models = ModelRoutes(service)
        models.add_to(api)
        api.router.routes.extend(DashboardRoutes(service, PersonActs(service, hosting, models)).routes())
        api.openapi = cache(lambda: openapi_document(api))  # type: ignore[method-assign]
        self.api = api
        self.app: ASGIApp = Guard(api, service, (*RULES, *PAGES), _shown_to_people)

    async def metrics(self) -> Response:
        """Counters for Prometheus. No member is named."""
        return Response(
            await self._service.aside(lambda: prometheus_metrics(self._service)), media_type=CONTENT_TYPE_LATEST
        )

    async def join(self, request: Request, wanted: Joining) -> MemberState:
        """Enrol the signing key with a token."""
        found, now_s = caller(request), self._service.now_s()
        token = tokens.parse(wanted.token)
        if found.proof is None or token.server != self._service.identity.name:
            raise TransportError("E-TOKEN", "the enrolment token is for another server.", "check the address.")

        def change(c: sa.Connection) -> Member:
            member = members.join_fleet(c, token, found.joining(), wanted.label, now_s)
            audit.note(c, member.id, "join", token.id, now_s)
            return member

        member = await self._once(request, change)
        self._service.changed(member)
        return _standing(member)

    async def me(self, request: Request) -> MemberState:
        """Show the calling member, also while it waits for approval."""
        return _standing(caller(request).signed()[0])

    async def leave(self, request: Request, wanted: Leaving) -> MemberState:
        """Revoke the calling device at once and for good. Its uploads and long polls end."""
        own, _ = caller(request).signed()
        if wanted.device != own.id:
            what = f"{wanted.device:.40} is not the device that signs."
            raise TransportError("E-REQUEST", what, "a device revokes itself alone.")
        now_s = self._service.now_s()

        def change(c: sa.Connection) -> Member:
            audit.note(c, own.id, "leave", own.id, now_s)
            return members.revoke(c, own.id, now_s)

        member = await self._once(request, change)
        self._service.changed(member)
        return _standing(member)

    async def devices(self, status: str = "", after: str = "", limit: int = 1000) -> list[MemberState]:
        """List members in the order of their ids, a page at a time. ``after`` is the last id of the previous page."""
        count = max(1, min(limit, 1000))
        return [
            _standing(x) for x in await self._service.read(lambda c: members.listed(c, status or None, after, count))
        ]

    async def approve(self, request: Request, member: str) -> MemberState:
        """Approve a pending member."""
        return await self._decide(request, member, "approve")

    async def revoke(self, request: Request, member: str) -> MemberState:
        """Revoke a member at once and for good. Its uploads and long polls end."""
        return await self._decide(request, member, "revoke")

    async def tokens(self) -> list[ListedToken]:
        """List all enrolment tokens, without their texts."""
        return [ListedToken(**token) for token in await self._service.read(members.list_tokens)]

    async def make_token(self, request: Request, wanted: NewToken) -> MadeToken:
        """Make an enrolment token. Operators make those of devices, administrators those of all roles."""
        member, _ = caller(request).signed()
        token, now_s = tokens.make_token_for_server(self._service.identity.name), self._service.now_s()
        grant = Grant(wanted.role, tuple(wanted.tags), wanted.uses, wanted.approved, wanted.expires_in_s)
        await self._once(request, lambda c: token_made(c, token, grant, member, now_s))
        return MadeToken(id=token.id, text=token.text)

    async def revoke_token(self, request: Request, token: str) -> dict[str, str]:
        """Revoke an enrolment token. Operators revoke tokens for devices, administrators all tokens."""
        own, _ = caller(request).signed()
        now_s = self._service.now_s()
        await self._once(request, lambda c: token_revoked(c, token, own, now_s))
        return {"revoked": token}

    async def make_login(self, request: Request) -> MadeLogin:
        """Make a login token for the dashboard, for the calling member."""
        own, _ = caller(request).signed()
        now_s = self._service.now_s()

        def change(c: sa.Connection) -> str:
            audit.note(c, own.id, "make login", own.id, now_s)
            return sessions.invite_to_session(c, own.id, now_s)

        text = await self._once(request, change)
        return MadeLogin(text=text, path=LOGIN, lasts_s=sessions.LOGIN_S)

    async def _decide(self, request: Request, name: str, verb: str) -> MemberState:
        own, _ = caller(request).signed()
        now_s = self._service.now_s()
        member = await self._once(request, lambda c: decide_membership(c, own, name, verb, now_s))
        self._service.changed(member)
        return _standing(member)

    async def _once(self, request: Request, change: Callable[[sa.Connection], T]) -> T:
        proof = caller(request).proof
        assert proof is not None  # The guard refuses unsigned requests to routes that change something.
        return await self._service.once(proof, change)


def _shown_to_people(path: str, error: EdgewiseError, answer: Response) -> Response:
    return rendering.dashboard_refusal(path, error, answer) if is_page(path) else answer


async def _answer(request: Request, e: Exception) -> Response:
    if isinstance(e, RequestValidationError):
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return await refused_route(
            request, TransportError("E-REQUEST", f"{where}: {first['msg']}.", "see `/openapi.json`.")
        )
    if isinstance(e, HTTPException):
        code = "E-REQUEST" if e.status_code == 400 else "E-ROUTE"
        return await refused_route(request, TransportError(code, f"{e.detail}.", "see `/openapi.json`."))
    return await refused_route(request, e if isinstance(e, EdgewiseError) else server_fault())
