"""Start a server: keys, certificate and database in one folder, made on the first start."""

from __future__ import annotations

import datetime
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from edgewise.apps.server.api import ControlPlane
from edgewise.apps.server.hosting import Hosting
from edgewise.apps.server.playing import Tell
from edgewise.apps.server.sharing import Address
from edgewise.apps.server.splitting import served_revoked_members
from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import audit, members
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http import certificates, tokens
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.service import Service
from edgewise.drivers.http.serving import HttpsListener
from edgewise.drivers.storage.files import FOLDER
from edgewise.drivers.storage.store_place import StorePlace
from edgewise.drivers.workers.split_jobs import ListenJob
from edgewise.drivers.workers.split_process import SplitProcess
from edgewise.engine.ports import Evaluator


@dataclass(frozen=True, slots=True)
class Tls:
    """The TLS of a server: an authority of its own for these ``names``, or an operator's ``certificate`` and ``key``.

    ``off`` is plain HTTP, which is allowed on loopback only.
    """

    names: Sequence[str] = ()
    certificate: Path | None = None
    key: Path | None = None
    off: bool = False


def tls_setup(service: Service, tls: Tls) -> ssl.SSLContext | None:
    """Set up the TLS of a server, and record its authority. None: TLS is off. Raises TransportError(E-IDENTITY)."""
    return None if tls.off else certificates.server_context(*_certificate(service, tls))


def _certificate(service: Service, tls: Tls) -> tuple[Path, Path]:
    """Return the files of the server's certificate and of its key, and record its authority."""
    certificate, key = tls.certificate, tls.key
    if certificate is None or key is None:
        now = datetime.datetime.fromtimestamp(service.now_s(), datetime.UTC)
        authority, certificate, key = certificates.authority_and_certificate(service.folder, tls.names, now)
        service.authority = authority.read_bytes()
    return certificate, key


def _rests(service: Service, tls: Tls, split: tuple[str, int] | None) -> SplitProcess | None:
    """Prepare the process with the rests of split models. Raises TransportError(E-REQUEST) without TLS."""
    if split is None:
        return None
    if tls.off:
        what = "sessions of split learning need TLS, and this server uses none."
        raise TransportError("E-REQUEST", what, "leave out --plain, or --split-listen.")
    certificate, key = _certificate(service, tls)
    host, port = split
    listen = ListenJob(host=host, port=port, certificate=str(certificate), key=str(key), server=service.identity.name)
    return SplitProcess(listen, partial(served_revoked_members, service))


class HttpServer:
    """A running server. It is a context manager.

    Args:
        folder: the folder of its state.
        host, port: the address to listen at. Port 0 takes a free one.
        tell: called with the events of its runs.
        evaluator: measures their models on text of this machine. None: nothing is measured here.
        turn: as in ``Hosting``.
        gateway: the second server of runs with shared sums.
        database: URL of a database that servers share; empty: SQLite in the folder.
        blobs: place of the published models in an object store. None: the folder.
        split: host and port for sessions of split learning. None: runs with split models are refused.
        public_url: the URL for browsers and devices, where it is another one: of a reverse proxy that ends TLS.
    Attributes:
        service: the state that its routes share.
        hosting: its runs.
        port: the port that it listens at.
        url: its URL on this machine.
    Raises:
        StoreError(E-LEASE): while another server works in the folder.
        StoreError: E-STORE-CONNECT, E-STORE-ACCESS, E-STORE-BUCKET where the object store cannot be used.
        TransportError: E-LISTEN, E-IDENTITY. E-REQUEST for ``split`` without TLS, and for an unusable public URL.
    """

    def __init__(
        self,
        folder: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: Tls = Tls(),
        limits: ServerLimits = ServerLimits(),  # noqa: B008 (frozen)
        now_s: Callable[[], float] = time.time,
        tell: Tell = lambda run, event: None,
        evaluator: Evaluator | None = None,
        turn: Callable[[str], bool] = lambda run: True,
        gateway: Address | None = None,
        database: str = "",
        blobs: StorePlace | None = None,
        split: tuple[str, int] | None = None,
        public_url: str = "",
    ) -> None:
        folder.mkdir(FOLDER, parents=True, exist_ok=True)
        with ExitStack() as undo:  # If the start fails, its runs end, and its port and lease are released.
            self.service = Service(folder, limits, now_s, database=database, blobs=blobs, public_url=public_url)
            undo.callback(self.service.close)
            context = tls_setup(self.service, tls)
            self.service.rests = _rests(self.service, tls, split)
            self.hosting = Hosting(self.service, tell, evaluator, turn, gateway)
            self._listener = HttpsListener(ControlPlane(self.service, self.hosting).app, host, port, context, limits)
            undo.callback(self._listener.close, self.service.hang_up)
            undo.callback(self.hosting.close)
            self.hosting.start()
            undo.pop_all()
        self.port = self._listener.port
        self.url = f"{'http' if tls.off else 'https'}://127.0.0.1:{self.port}"

    def __enter__(self) -> HttpServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving and release the database."""
        self.hosting.close()
        self._listener.close(self.service.hang_up)
        self.service.close()

    def token(self, grant: Grant = Grant(), made_by: str = "server") -> str:  # noqa: B008 (frozen)
        """Make an enrolment token. Its text is not stored."""
        token = tokens.make_token_for_server(self.service.identity.name)
        now_s = self.service.now_s()

        def change(c: sa.Connection) -> None:
            members.make_token(c, token, grant, made_by, now_s)
            audit.note(c, made_by, "make token", token.id, now_s)

        self.service.database.write(change)
        return token.text

    def first_token(self) -> str | None:
        """Make a token for the first administrator. None: there is an administrator."""
        with self.service.database.read() as c:
            if any(member.role == "admin" for member in members.listed(c, members.APPROVED)):
                return None
        return self.token(Grant("admin", approved=True))
