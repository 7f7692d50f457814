"""Join a gateway to its server, and serve. One folder has keys, database and the list of devices.

    FOLDER/device.key, server.json    its identity, and the server that it belongs to (``drivers.http.home``)
    FOLDER/server.db, blobs/          its lasting state (``drivers.fleet.helped``)
    FOLDER/cache/                     blobs for devices that reach the server through it
    FOLDER/devices.txt                the devices whose reports it counts

The folder belongs to one gateway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import sqlalchemy as sa
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgewise.apps.server.metrics import prometheus_metrics
from edgewise.apps.server.start import Tls, tls_setup
from edgewise.core.errors import DecodeError, EdgewiseError, RecipeError, TransportError
from edgewise.crypto.attest.evidence import Evidence
from edgewise.drivers.fleet import members
from edgewise.drivers.fleet.database import Database
from edgewise.drivers.fleet.tables import MEMBERS
from edgewise.drivers.http import helper_routes, home, relay
from edgewise.drivers.http.allowed import Allowed
from edgewise.drivers.http.blob_cache import BlobCache
from edgewise.drivers.http.guard import Guard, refused_route, server_fault
from edgewise.drivers.http.helper_routes import LEADER, HelperPlane
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.link import Link
from edgewise.drivers.http.naming import named
from edgewise.drivers.http.relay import Relay
from edgewise.drivers.http.service import Service
from edgewise.drivers.http.serving import HttpsListener
from edgewise.plan.acceptance import OwnerFloor

CACHE_BYTES = 2**34
LIMITS = ServerLimits(member_rate=2000.0, member_burst=4000.0, holder_bytes=ServerLimits().in_flight_bytes)


def join(url: str, token: str, folder: Path, plain: bool = False, patience_s: float = 60.0) -> Link:
    """Enrol a gateway at its server, and pin the server's key. Only that server may ask for shares.

    Raises TransportError as ``Link.join``, and StoreError(E-LEASE) while the gateway serves.
    """
    link = Link.join(url, token, folder, "gateway", plain, patience_s)
    key, _ = named(url, link.home.server, patience_s)
    database = Database(folder)
    try:
        database.write(lambda c: members.admit_member(c, key, LEADER, time.time()))
    finally:
        database.close()
    return link


class Gateway:
    """A running gateway. It is a context manager.

    Args:
        folder: of a gateway that has joined.
        host, port: the address to listen at. Port 0 takes a free one.
        floor: the promises that its operator asks of every run.
        cache_bytes: size of the cache of blobs for devices.
        packages: name -> digest of the installed packages that runs may use.
        attest: obtains this machine's evidence for 64 bytes (``EvidenceCommand``). None: keys come without.
    Attributes:
        relay: passes requests of devices to their server.
        service: the state that its routes share.
        port: the port that it listens at.
        url: its URL on this machine.
    Raises:
        TransportError: E-IDENTITY for a folder that has joined nothing. E-LISTEN.
        StoreError(E-LEASE): while another process serves from the folder.
    """

    def __init__(
        self,
        folder: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: Tls = Tls(),  # noqa: B008 (frozen)
        floor: OwnerFloor = OwnerFloor(),  # noqa: B008 (frozen)
        limits: ServerLimits = LIMITS,
        now_s: Callable[[], float] = time.time,
        cache_bytes: int = CACHE_BYTES,
        packages: Mapping[str, str] = MappingProxyType({}),
        attest: Callable[[bytes], Evidence] | None = None,
    ) -> None:
        self.home = home.load(folder)
        self.allowed = Allowed(folder)
        self.service = Service(folder, limits, now_s, home.KEY)
        try:
            leader = _leader(self.service.database, self.home.server)
            plane = HelperPlane(self.service, leader, self.allowed, floor, packages, attest)
            self.relay = Relay(self.service, self.home, BlobCache(folder / "cache", cache_bytes))
            app = Starlette(
                routes=[*plane.routes(), *self.relay.routes(), Route("/metrics", self._metrics, methods=["GET"])],
                exception_handlers={EdgewiseError: _answer, HTTPException: _answer, Exception: _answer},
            )
            guarded = Guard(app, self.service, (*helper_routes.RULES, *relay.RULES))
            self._listener = HttpsListener(guarded, host, port, tls_setup(self.service, tls), limits)
        except Exception:  # Whatever stops the start must release database and lease.
            self.service.close()
            raise
        self.port = self._listener.port
        self.url = f"{'http' if tls.off else 'https'}://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        """The fingerprint that owners and the server's operator pin."""
        return self.service.identity.name

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _metrics(self, request: Request) -> Response:
        """Counters for Prometheus. No device is named."""
        text = (await self.service.aside(lambda: prometheus_metrics(self.service))).decode() + self.relay.counters()
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    def close(self) -> None:
        """Stop serving and release the database."""
        self.relay.close()
        self._listener.close()
        self.service.close()


def _leader(database: Database, name: str) -> bytes:
    with database.read() as c:
        row = c.execute(sa.select(MEMBERS).where((MEMBERS.c.id == name) & (MEMBERS.c.role == LEADER))).first()
    if row is None:
        raise TransportError(
            "E-IDENTITY", "this gateway does not know its server's key.", "run `edgewise gateway join` again."
        )
    return bytes(row.public)


async def _answer(request: Request, e: Exception) -> Response:
    if isinstance(e, HTTPException):
        return await refused_route(
            request, TransportError("E-ROUTE", f"status {e.status_code}.", "see the transport page.")
        )
    if not isinstance(e, EdgewiseError):
        return await refused_route(request, server_fault())
    return await refused_route(request, e, 422 if isinstance(e, DecodeError | RecipeError) else 503)
