"""The route that verifies a run on the server."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI

from edgewise.apps.models import verification
from edgewise.apps.models.verified import Verified
from edgewise.apps.server import submission
from edgewise.drivers.fleet import served
from edgewise.drivers.http.service import Service


class VerifyingRoutes:
    """The routes that replay a run. Replays run one at a time, because each reads all totals of a run."""

    def __init__(self, service: Service) -> None:
        self._service, self._alone = service, asyncio.Lock()

    def add_to(self, api: FastAPI) -> None:
        """Register the routes."""
        api.add_api_route("/v1/runs/{run}/verification", self.verify, methods=["GET"])

    async def verify(self, run: str, chain: str = "") -> Verified:
        """Replay the released totals of a run, and check its records.

        Answers E-VERIFY at the first round that does not follow.
        """
        await self._service.read(lambda c: served.find(c, run))
        out = submission.folder(self._service, run)
        async with self._alone:
            return await asyncio.get_running_loop().run_in_executor(None, verification.verify_run, out, chain)
