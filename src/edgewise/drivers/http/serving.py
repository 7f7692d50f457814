"""The HTTPS listener: uvicorn in a thread, with limits that hold before any route is called."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgewise.core.errors import TransportError
from edgewise.drivers.http.door import Door, connection_room
from edgewise.drivers.http.limits import ServerLimits

HEADER_BYTES = 2**14
HANDSHAKE_S, FAREWELL_S = 10.0, 1.0
KEEP_ALIVE_S = 75  # longer than a long poll, so that a device keeps its connection
ADDRESS_SHARE = 0.75  # of all connections for one address, which may be a gateway or a site with many devices


def protocol(limits: ServerLimits) -> type[asyncio.Protocol]:
    """Make uvicorn's HTTP/1.1 protocol end connections whose request headers do not come within ``header_s``."""

    class Prompt(H11Protocol):
        """HTTP/1.1 that closes connections without complete headers."""

        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                if self._late is None:
                    self._watch()
            else:
                self._unwatch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def shutdown(self) -> None:
            super().shutdown()
            if self.cycle is None or self.cycle.response_complete:
                self.transport.abort()  # no request is waiting for an answer

        def _watch(self) -> None:
            self._late = self.loop.call_later(limits.header_s, self.transport.abort)

        def _unwatch(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Prompt


class _Uvicorn(uvicorn.Server):
    """A uvicorn server whose TLS handshakes and closings have a time limit, and which ends long polls when it stops.

    ``leaving`` is called in the event loop when no new connection is accepted and none is kept after its answer.
    """

    leaving: Callable[[], None] = staticmethod(lambda: None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_soon(self.leaving)  # runs after the code above
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        config, loop = self.config, asyncio.get_running_loop()
        handshake_s, farewell_s = (HANDSHAKE_S, FAREWELL_S) if config.ssl is not None else (None, None)

        def connect() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            return made

        assert sockets is not None  # ``HttpsListener`` opens it
        (sock,) = sockets
        listening = await loop.create_server(
            connect, sock=sock, ssl=config.ssl, backlog=config.backlog,
            ssl_handshake_timeout=handshake_s, ssl_shutdown_timeout=farewell_s,
        )  # fmt: skip
        self.servers, self.started = [listening], True


class HttpsListener:
    """A listening server. Use as a context manager.

    Args:
        app: the ASGI application.
        host, port: the address; port 0 takes a free one (``port``).
        tls: None speaks plain HTTP, on loopback only.
        ready_s: longest duration of the start.
    Raises:
        TransportError: E-LISTEN where the address is in use, or is not loopback and TLS is off.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        limits: ServerLimits,
        ready_s: float = 10.0,
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        most = connection_room(limits.connections)
        self._socket = Door(family, most, max(1, int(most * ADDRESS_SHARE)))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
        except OSError as e:
            self._socket.close()
            what = f"the server cannot listen on {host}:{port}: {e.strerror}."
            raise TransportError("E-LISTEN", what, "free the address, or name another one (--listen).") from None
        if tls is None and self._socket.getsockname()[0] not in ("127.0.0.1", "::1"):
            self._socket.close()
            what = f"plain HTTP is not allowed on {host}, which other machines can reach."
            raise TransportError("E-LISTEN", what, "leave out --plain, or listen on 127.0.0.1.")
        self.port = int(self._socket.getsockname()[1])
        context: dict[str, Any] = {} if tls is None else {"ssl_context_factory": lambda *_: tls}
        config = uvicorn.Config(
            app, http=protocol(limits), ws="none", lifespan="off", loop="asyncio", log_config=None, access_log=False,
            proxy_headers=False, server_header=False, limit_concurrency=most + 1, backlog=1024,
            timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=2, h11_max_incomplete_event_size=HEADER_BYTES,
            **context,
        )  # fmt: skip
        self._server = _Uvicorn(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="edgewise-http", daemon=True
        )
        self._thread.start()
        give_up = time.monotonic() + ready_s
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > give_up:
                raise TransportError("E-LISTEN", "the server did not start.", "read its log.")
            time.sleep(0.005)

    def __enter__(self) -> HttpsListener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, leaving: Callable[[], None] = lambda: None) -> None:
        """Stop. Requests in progress get two seconds. ``leaving``: as in ``_Uvicorn``."""
        self._server.leaving = leaving
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
