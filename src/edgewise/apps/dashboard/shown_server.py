"""The port of the dashboard to the server that it shows: what it reads beside the database, and what people may ask.

The pages know nothing else of the server's runs. ``apps.server`` implements it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from edgewise.drivers.fleet.members import Grant, Member
from edgewise.drivers.fleet.promotions import Promotion
from edgewise.drivers.fleet.served import ServedRun


class ShownServer(Protocol):
    """Port of the dashboard to a server. Every change writes its row of the audit log with ``by``."""

    def folder(self, run: str) -> Path:
        """Return the folder of a run."""
        ...

    def why(self, run: ServedRun) -> str | None:
        """Return the reason why a run failed or waits. None without one."""
        ...

    async def ask(self, run: str, verb: str, by: str) -> None:
        """Pause, resume or cancel a run. Raises TransportError: E-ROUTE, E-UNKNOWN-ID, E-CONFLICT."""
        ...

    async def decide(self, by: Member, member: str, verb: str) -> None:
        """Approve or revoke a member. Raises TransportError: E-ROLE, E-UNKNOWN-ID, E-REVOKED."""
        ...

    async def make_token(self, by: Member, grant: Grant) -> str:
        """Make an enrolment token and return its text. Raises TransportError: E-ROLE, E-REQUEST."""
        ...

    async def revoke_token(self, by: Member, token: str) -> None:
        """Revoke an enrolment token. Raises TransportError: E-ROLE, E-UNKNOWN-ID."""
        ...

    async def promote(self, run: str, by: str) -> Promotion:
        """Verify a run and promote the model that counts. Raises as ``apps.server.promoting``."""
        ...

    async def rollback(self, by: str) -> Promotion:
        """Return to the previously promoted model. Raises as ``apps.server.promoting``."""
        ...
