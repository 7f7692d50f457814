"""A server and its devices on loopback, for tests."""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from edgewise.apps.server.start import HttpServer
from edgewise.core import frame
from edgewise.drivers.fleet import mailboxes
from edgewise.drivers.fleet.members import ROLES, Grant
from edgewise.drivers.http import certificates
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.link import Link
from edgewise.drivers.http.meter import NOWHERE
from edgewise.drivers.http.page_rules import PAGES
from edgewise.drivers.http.rules import RULES
from edgewise.drivers.storage.store_place import StorePlace

RUN = "run-1"
UNLIMITED = ServerLimits(address_rate=1e6, address_burst=1e6, member_rate=1e6, member_burst=1e6)


def invite(round: int = 0, run: str = RUN) -> frame.Invite:
    """An invitation, as small as one can be."""
    rule = frame.LocalRule(steps=1, lr=0.1)
    return frame.Invite(
        run=run, round=round, spec="s", model="m", public=bytes(32), accepted=None, deadline_s=60.0, rule=rule
    )


def contribution(device: str, payload: bytes = b"x", round: int = 0, run: str = RUN) -> bytes:
    """A contribution as it travels."""
    return frame.dump(frame.Contribution(run=run, round=round, device=device, payload=memoryview(payload)))


def count(device: Link, raw: bytes) -> None:
    """Count a frame that a test then sends without ``Link.send``."""
    device.frames.count(hashlib.sha256(raw).hexdigest())


def send_invitation(server: HttpServer, device: str, round: int = 0, run: str = RUN) -> int:
    """Put an invitation into a device's inbox; returns its number."""
    letter = invite(round, run)
    raw = frame.dump(letter)
    number = server.service.database.write(lambda c: mailboxes.post(c, device, raw, letter, time.time()))
    server.service.ring(device)
    return number


@contextmanager
def running(
    folder: Path,
    limits: ServerLimits = ServerLimits(),  # noqa: B008 (frozen)
    blobs: StorePlace | None = None,
) -> Iterator[HttpServer]:
    """A server over TLS. At its end: whatever it has refused, its description names the code for that route."""
    with HttpServer(folder / "server", limits=limits, blobs=blobs) as server:
        yield server
        unnamed = undocumented(server)
    assert not unnamed, f"add to the rules of these routes (drivers.http.rules): {sorted(unnamed)}"


def undocumented(server: HttpServer) -> set[tuple[str, str]]:
    """(route, code) of errors that a server has answered with and that the route does not name."""
    named = {(rule.path, code) for rule in (*RULES, *PAGES) for code in rule.codes} | {
        (NOWHERE, "E-ROUTE"),
        (NOWHERE, "E-RATE"),
    }
    answered = {(route, outcome) for _, route, outcome in server.service.meter.outcomes() if outcome.startswith("E-")}
    return answered - named


def joined(server: HttpServer, folder: Path, role: str = "device", approved: bool = True, url: str = "") -> Link:
    """A new member of a server, that gives up soon."""
    token = server.token(Grant(role, approved=approved))
    return Link.join(url or server.url, token, folder, patience_s=10.0)


@contextmanager
def member_links(server: HttpServer, folder: Path) -> Iterator[dict[str, Link]]:
    """A member of each role, with its own link. The device has an invitation to round 0 of RUN."""
    made = {role: joined(server, folder / role, role) for role in ROLES}
    send_invitation(server, made["device"].name)
    yield made
    for link in made.values():
        link.close()


def code(call: object, *arguments: object) -> str:
    """The code with which a call is refused; empty where it is not."""
    from edgewise.core.errors import EdgewiseError

    try:
        call(*arguments)  # type: ignore[operator]
    except EdgewiseError as e:
        return e.code
    return ""


def travelling(answer: httpx2.Response) -> httpx2.Response:
    """A made-up answer as one from the network: its bytes have still to be read."""
    return httpx2.Response(answer.status_code, headers=answer.headers, stream=httpx2.ByteStream(answer.content))


def connected(server: HttpServer) -> ssl.SSLSocket:
    """A bare connection to a server, for bytes that no client sends."""
    context = certificates.client_context(server.service.authority)
    made = context.wrap_socket(socket.create_connection(("127.0.0.1", server.port)), server_hostname="localhost")
    made.settimeout(5.0)
    return made
