"""Health of a server: whether it answers, and whether it can do its work. Servers and gateways share it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from edgewise.drivers.http.service import Service


class Health:
    """The two health routes of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Return the routes for a router behind the guard."""
        return [
            Route("/healthz", self.alive, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
        ]

    async def alive(self, request: Request) -> Response:
        """Answer that the server runs. A supervisor restarts a server that does not answer."""
        return PlainTextResponse("ok\n")

    async def ready(self, request: Request) -> Response:
        """Answer whether the server can accept frames.

        Otherwise the status is 503, and a load balancer picks another server.
        """
        checks = await self._service.aside(self._service.checks)
        sound = all(checks.values())
        body = {"ready": sound, "checks": {name: "ok" if passed else "failed" for name, passed in checks.items()}}
        return JSONResponse(body, 200 if sound else 503)
