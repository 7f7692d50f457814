"""The server's half of the dashboard: the acts of a person in a browser, as the signed routes do them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from edgewise.apps.server import submission
from edgewise.apps.server.decisions import decide_membership, token_made, token_revoked
from edgewise.apps.server.hosting import Hosting
from edgewise.apps.server.model_routes import ModelRoutes
from edgewise.apps.server.run_routes import VERBS
from edgewise.core.errors import TransportError
from edgewise.drivers.fleet.members import Grant, Member
from edgewise.drivers.fleet.promotions import Promotion
from edgewise.drivers.fleet.served import ServedRun
from edgewise.drivers.http import tokens
from edgewise.drivers.http.service import Service


class PersonActs:
    """Implements ``apps.dashboard.shown_server.ShownServer``."""

    def __init__(self, service: Service, hosting: Hosting, models: ModelRoutes) -> None:
        self._service, self._hosting, self._models = service, hosting, models

    def folder(self, run: str) -> Path:
        """Return the folder of a run."""
        return submission.folder(self._service, run)

    def why(self, run: ServedRun) -> str | None:
        """Return the reason why a run failed or waits. None without one."""
        return self._hosting.why(run)

    async def ask(self, run: str, verb: str, by: str) -> None:
        """Pause, resume or cancel a run."""
        if verb not in VERBS:
            raise TransportError("E-ROUTE", f"a run cannot {verb:.20}.", "pause, resume or cancel it.")
        await asyncio.get_running_loop().run_in_executor(None, self._hosting.ask, run, VERBS[verb], by)

    async def decide(self, by: Member, member: str, verb: str) -> None:
        """Approve or revoke a member."""
        now_s = self._service.now_s()
        self._service.changed(await self._service.write(lambda c: decide_membership(c, by, member, verb, now_s)))

    async def make_token(self, by: Member, grant: Grant) -> str:
        """Make an enrolment token and return its text."""
        token, now_s = tokens.make_token_for_server(self._service.identity.name), self._service.now_s()
        await self._service.write(lambda c: token_made(c, token, grant, by, now_s))
        return token.text

    async def revoke_token(self, by: Member, token: str) -> None:
        """Revoke an enrolment token."""
        now_s = self._service.now_s()
        await self._service.write(lambda c: token_revoked(c, token, by, now_s))

    async def promote(self, run: str, by: str) -> Promotion:
        """Verify a run and promote the model that counts."""
        return await self._models.alone(lambda: self._models.promoted_by(by, run, None))

    async def rollback(self, by: str) -> Promotion:
        """Return to the previously promoted model."""
        return await self._models.alone(lambda: self._models.rolled_back_by(by))
