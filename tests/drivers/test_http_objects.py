"""Every route, with every role, about one's own objects, those of others, and those that are not there."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from hashlib import sha256

import openapi
import pytest
import sqlalchemy as sa
from served import RUN, UNLIMITED, contribution, count, joined, running, send_invitation

from edgewise.apps.server.api import ControlPlane
from edgewise.apps.server.start import HttpServer
from edgewise.crypto import sign
from edgewise.drivers.fleet import mailboxes, members
from edgewise.drivers.fleet import served as served_runs
from edgewise.drivers.fleet.members import ROLES, Grant
from edgewise.drivers.fleet.served import ServedRun
from edgewise.drivers.fleet.tables import MAIL
from edgewise.drivers.http import tokens
from edgewise.drivers.http.link import Link
from edgewise.drivers.storage.counter_file import load

OK, UNKNOWN, ROLE = "", "E-UNKNOWN-ID", "E-ROLE"
Outcomes = Mapping[
    str, Mapping[str, str]
]  # role -> whose object -> the code of the answer; a role that is not here: ROLE

OWN_ALONE = {"device": {"own": OK, "another device's": UNKNOWN, "nobody's": UNKNOWN}}
BELOW = {
    "operator": {"own": ROLE, "a device": OK, "another operator": ROLE, "an admin": ROLE, "nobody": UNKNOWN},
    "admin": {"own": OK, "a device": OK, "another operator": OK, "an admin": OK, "nobody": UNKNOWN},
}
OTHERS_RUN = "of a run without it"
RUNS = {"somebody's": OK, "no run": UNKNOWN}
OWN_RUNS = {"own run": OK, "somebody's": UNKNOWN, "no run": UNKNOWN}
PUBLIC = {"published": OK, OTHERS_RUN: OK, "not published": "E-BLOB", "nobody's": "E-BLOB"}
NO_BLOBS = dict.fromkeys(PUBLIC, "E-BLOB")
OWN_BLOBS = {**PUBLIC, OTHERS_RUN: "E-BLOB"}
NO_MODEL, NO_FORMER = {"none is promoted": UNKNOWN}, {"none is promoted": "E-CONFLICT"}
EMPTY_RUNS = {"somebody's": "E-CHECKPOINT", "no run": UNKNOWN}  # its folder here holds no record of rounds

PEOPLE = ("viewer", "operator", "admin")
# Of each route that is about an object: who may do it to whose. A new route belongs here, or in one of the two below.
OBJECTS: Mapping[tuple[str, str], Outcomes] = {
    ("GET", "/v1/uploads/{upload}"): OWN_ALONE,
    ("PUT", "/v1/uploads/{upload}"): OWN_ALONE,
    ("GET", "/v1/models/promoted"): dict.fromkeys(("device", "gateway", *PEOPLE), NO_MODEL),
    ("POST", "/v1/models/rollback"): dict.fromkeys(("operator", "admin"), NO_FORMER),
    ("GET", "/v1/blobs/{digest}"): {"device": OWN_BLOBS, "gateway": NO_BLOBS, **dict.fromkeys(PEOPLE, PUBLIC)},
    ("POST", "/v1/devices/{member}/approve"): BELOW,
    ("POST", "/v1/devices/{member}/revoke"): BELOW,
    ("POST", "/v1/tokens/{token}/revoke"): {
        "operator": {"for a device": OK, "for an operator": ROLE, "for an admin": ROLE, "no token": UNKNOWN},
        "admin": {"for a device": OK, "for an operator": OK, "for an admin": OK, "no token": UNKNOWN},
    },
    ("POST", "/v1/outbox"): {
        "device": {
            "own": OK, "in another's name": "E-REQUEST", "another's upload": UNKNOWN, "another's round": "E-CLOSED",
        }
    },
    ("POST", "/v1/counter"): {"device": {"own": OK}},
    ("POST", "/v1/uploads"): {"device": {"own": OK, "another's round": "E-CLOSED"}},
    ("GET", "/v1/inbox"): {"device": {"own": OK}},
    ("POST", "/v1/me/leave"): {"device": {"in another's name": "E-REQUEST"}},
    ("GET", "/v1/staged/{digest}"): {"operator": {"nobody's": OK}, "admin": {"nobody's": OK}},
    ("PUT", "/v1/staged/{digest}"): {"operator": {"nobody's": OK}, "admin": {"nobody's": OK}},
    ("GET", "/v1/runs/{run}"): {"device": OWN_RUNS, **dict.fromkeys(PEOPLE, RUNS)},
    ("GET", "/v1/runs/{run}/events"): dict.fromkeys(PEOPLE, RUNS),
    ("GET", "/v1/runs/{run}/verification"): dict.fromkeys(PEOPLE, EMPTY_RUNS),
    ("GET", "/v1/runs/{run}/statistics"): dict.fromkeys(PEOPLE, EMPTY_RUNS),
    ("GET", "/v1/runs/{run}/rounds/{round}"): {"device": OWN_RUNS},
    ("POST", "/v1/runs/{run}/{verb}"): dict.fromkeys(("operator", "admin"), RUNS),
}  # fmt: skip
ABSENT = {
    "{upload}": "nobody's",
    "{digest}": "nobody's",
    "{member}": "nobody",
    "{token}": "no token",
    "{run}": "no run",
}
ABOUT_NOBODY = {"/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/server", "/v1/join"}
ABOUT_THE_CALLER = {"/v1/me", "/v1/logins"}
LISTS = {"/v1/devices", "/v1/tokens", "/v1/runs", "/v1/models"}  # of the operators; a list names all


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with running(tmp_path_factory.mktemp("objects"), UNLIMITED) as made:
        yield made


class World:
    """A server's members and objects."""

    def __init__(self, server: HttpServer, links: Mapping[str, Link]) -> None:
        self.server, self.links = server, links

    def member(self, role: str) -> str:
        """A new member, of whom only the id is needed."""
        token, now_s = tokens.make_token_for_server(self.server.service.identity.name), self.server.service.now_s()
        public = sign.pair(secrets.token_bytes(32)).public

        def change(c: sa.Connection) -> str:
            members.make_token(c, token, Grant(role, approved=True), "test", now_s)
            return members.join_fleet(c, token, public, "", now_s).id

        return self.server.service.database.write(change)

    def token(self, role: str) -> str:
        """The id of a new token."""
        return tokens.parse(self.server.token(Grant(role))).id

    def upload(self, device: Link, raw: bytes) -> str:
        """A new upload of a device, with all of its bytes announced and none sent."""
        announced = {"digest": sha256(raw).hexdigest(), "size": len(raw)}
        return str(device.call("POST", "/v1/uploads", document=announced, run=RUN, round=0)["upload"])

    def run(self, *devices: str) -> str:
        """A run of these devices that is paused, as another operator submitted it."""
        run, service = secrets.token_hex(32), self.server.service
        row = ServedRun(run, "test", served_runs.PAUSED, None, 1, b"{}", b"", {}, "0" * 32, service.now_s())
        service.database.write(lambda c: served_runs.add(c, row))
        service.database.write(lambda c: mailboxes.admit(c, run, devices))
        out = service.folder / "runs" / run[:32]
        out.mkdir(parents=True)
        with closing(sqlite3.connect(out / "run.db")) as c:
            c.execute("CREATE TABLE events (number INTEGER, round INTEGER, kind TEXT, body TEXT)")
        return run

    def blob(self, raw: bytes, run: str = "") -> str:
        """A blob on the server's disk. ``run``: that publishes it."""
        digest = self.server.service.blobs.put(raw)
        if run:
            self.server.service.database.write(lambda c: mailboxes.publish(c, run, {digest: len(raw)}))
        return digest


@pytest.fixture(scope="module")
def world(server: HttpServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("members")
    names = {role: role for role in ROLES} | {"other": "device"}
    links = {name: joined(server, folder / name, role) for name, role in names.items()}
    for name in ("device", "other"):
        send_invitation(server, links[name].name)
    send_invitation(server, links["other"].name, 1)
    server.service.database.write(lambda c: mailboxes.admit(c, RUN, [links["device"].name]))
    yield World(server, links)
    for link in links.values():
        link.close()


def asked(world: World, link: Link, method: str, path: str, whose: str) -> str:
    """Ask for an object; the code of the answer."""
    query, body, about, document = "", b"", (RUN, "0"), None
    fresh: dict[str, Callable[[], str]] = {
        "own": lambda: link.name, "a device": lambda: world.member("device"), "nobody": lambda: "0" * 32,
        "another operator": lambda: world.member("operator"), "an admin": lambda: world.member("admin"),
        "for a device": lambda: world.token("device"), "for an operator": lambda: world.token("operator"),
        "for an admin": lambda: world.token("admin"), "no token": lambda: "0" * 16,
        "published": lambda: world.blob(b"public", RUN), "not published": lambda: world.blob(b"private"),
        OTHERS_RUN: lambda: world.blob(b"theirs", world.run(world.links["other"].name)),
        "own run": lambda: world.run(link.name), "somebody's": lambda: world.run(world.links["other"].name),
        "no run": lambda: "0" * 64, "nobody's": lambda: "0" * (64 if "staged" in path else 32),
        "another device's": lambda: world.upload(world.links["other"], b"theirs"),
    }  # fmt: skip
    path = path.replace("{verb}", "pause").replace("{round}", "0")
    if "staged" in path and method == "PUT":
        query, body = "offset=0&size=5", secrets.token_bytes(5)
        path = f"/v1/staged/{sha256(body).hexdigest()}"
    if path == "/v1/me/leave":
        document = {"device": world.links["other"].name}
    if "{upload}" in path:
        id = world.upload(link, secrets.token_bytes(6)) if whose == "own" else fresh[whose]()
        path, body = path.replace("{upload}", id), b"theirs" if method == "PUT" else b""
        query = "offset=0" if method == "PUT" else ""
    elif "{" in path:
        given = fresh[whose]()
        path = path[: path.index("{")] + given + path[path.index("}") + 1 :]
    elif path == "/v1/outbox":
        other = world.links["other"]
        body = contribution(other.name if whose == "in another's name" else link.name, round=int("round" in whose))
        if link is world.links["device"]:
            count(link, body)
        if whose == "another's upload":
            query, body = f"upload={world.upload(other, b'theirs')}", b""
        about = (RUN, str(int("round" in whose)))
    elif path == "/v1/counter":
        last = load(link.frames._path)
        document = {"number": last.number, "digest": last.digest}
    elif path == "/v1/uploads":
        document, about = {"digest": secrets.token_hex(32), "size": 5}, (RUN, str(int("round" in whose)))
    if document is not None:
        body = json.dumps(document).encode()
    headers = link._signed(method, path, query, body, *about)
    answer = link._http.request(method, f"{path}?{query}" if query else path, content=body, headers=headers)
    return str(answer.json()["code"]) if answer.status_code >= 400 else ""


def cases() -> Iterator[tuple[str, str, str, str, str]]:
    for (method, path), outcomes in OBJECTS.items():
        for role in ROLES:
            if role not in outcomes:
                yield method, path, role, ABSENT.get(path[path.find("{") : path.find("}") + 1], "own"), ROLE
            for whose, code in outcomes.get(role, {}).items():
                if (path, role, whose) != ("/v1/devices/{member}/revoke", "admin", "own"):  # it ends the admin of all
                    yield method, path, role, whose, code


@pytest.mark.quick(sample=40)
@pytest.mark.parametrize(("method", "path", "role", "whose", "code"), list(cases()))
def test_a_role_reaches_the_objects_that_it_may(
    world: World, method: str, path: str, role: str, whose: str, code: str
) -> None:
    link = world.links[role]
    assert asked(world, link, method, path, whose) == code


def test_no_route_is_without_a_line_above(server: HttpServer) -> None:
    document = ControlPlane(server.service, server.hosting).api.openapi()
    found = {(operation.method, operation.path) for operation in openapi.operations(document)}
    named = {(m, p) for m, p in found if p in ABOUT_NOBODY | ABOUT_THE_CALLER | LISTS} | OBJECTS.keys()
    assert found == named, "say in OBJECTS who may do it to whose object, or that it is about none"
    about_one = {(m, p) for m, p in found if "{" in p}
    assert about_one <= OBJECTS.keys()


def test_an_inbox_has_its_own_mail_alone(world: World, server: HttpServer) -> None:
    mine, other = world.links["device"], world.links["other"]
    with server.service.database.read() as c:
        rows = c.execute(sa.select(MAIL.c.number, MAIL.c.device).where(sa.not_(MAIL.c.inbound))).all()
    for link in (mine, other):
        got, after = [], 0
        while (mail := link.poll(after, 0.0)) is not None:
            got.append(after := mail.number)
        assert got == sorted(row.number for row in rows if row.device == link.name)


@pytest.mark.parametrize("path", ["events?after={}", "rounds/{}", "rounds/0?wait={}"])
@pytest.mark.parametrize("number", [-1, 2**63, 10**400], ids=["-1", "2^63", "10^400"])
def test_numbers_of_any_size_are_answered(world: World, path: str, number: int) -> None:
    link = world.links["device" if "rounds" in path else "viewer"]
    asked, _, query = f"/v1/runs/{world.run(link.name)}/{path.format(number)}".partition("?")
    headers = link._signed("GET", asked, query, b"", RUN, "0")
    assert link._http.get(f"{asked}?{query}" if query else asked, headers=headers).status_code < 500
