"""How a server is: whether it answers, and whether it can do its work. The same for orchestrators and gateways."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from edgewise.drivers.http.service import Service


class Health:
    """The two routes of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """For a router, behind the guard."""
        return [
            Route("/healthz", self.alive, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
        ]

    async def alive(self, request: Request) -> Response:
        """The server answers. A supervisor restarts one that does not."""
        return PlainTextResponse("ok\n")

    async def ready(self, request: Request) -> Response:
        """Whether the server can take frames; if not, status 503. A load balancer sends devices elsewhere then."""
        checks = await self._service.aside(self._service.checks)
        sound = all(checks.values())
        body = {"ready": sound, "checks": {name: "ok" if held else "failed" for name, held in checks.items()}}
        return JSONResponse(body, 200 if sound else 503)
