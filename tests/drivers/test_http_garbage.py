"""Whatever comes, a server answers it with a code that its description names, and goes on serving others."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import openapi
import pytest
from fuzz import KINDS, Damage
from hypothesis import given, settings
from hypothesis import strategies as st
from long import examples
from served import RUN, UNLIMITED, connected, contribution, count, invite, member_links, running, send_invitation

from docs.blocks import ROOT
from edgewise.apps.server.api import ControlPlane
from edgewise.apps.server.start import HttpServer
from edgewise.core import frame
from edgewise.core.errors import REGISTRY
from edgewise.drivers.fleet import mailboxes
from edgewise.drivers.fleet.members import ROLES
from edgewise.drivers.http.link import Link
from edgewise.drivers.http.rules import RULES


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with running(tmp_path_factory.mktemp("garbage"), UNLIMITED) as made:
        yield made


@pytest.fixture(scope="module")
def links(server: HttpServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Link]]:
    with member_links(server, tmp_path_factory.mktemp("members")) as made:
        yield made


@pytest.fixture(scope="module")
def document(server: HttpServer) -> dict[str, Any]:
    return openapi.Document(ControlPlane(server.service, server.hosting).api.openapi())


def test_the_description_has_every_route_and_no_other(links: dict[str, Link]) -> None:
    described = links["viewer"]._http.get("/openapi.json").json()
    found = {(operation.method, operation.path) for operation in openapi.operations(described)}
    assert found == {(rule.method, rule.path) for rule in RULES}


@pytest.mark.slow
def test_the_description_names_each_error_and_the_page_explains_it(document: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for operation in openapi.operations(document):
        codes = {code for named in operation.codes.values() for code in named}
        assert codes <= REGISTRY.keys(), operation
        assert all(re.search(rf"^## {code}$", page, re.MULTILINE) for code in codes)
        assert operation.said.get("summary") or operation.said.get("description"), f"{operation}: say what it does"


@pytest.mark.slow
@pytest.mark.long
@settings(max_examples=examples(60, 3000))
@given(data=st.data())
def test_no_request_breaks_a_route(
    server: HttpServer, links: dict[str, Link], document: dict[str, Any], data: st.DataObject
) -> None:
    """Signed as they must be, so that they reach the route."""
    operation = data.draw(st.sampled_from(list(openapi.operations(document))), label="operation")
    upload = links["device"].call("POST", "/v1/uploads", document=_announced(b"x"), run=RUN, round=0)["upload"]
    names = {"member": ["0" * 32], "token": ["0" * 16], "upload": [upload], "digest": ["0" * 64], "run": ["0" * 64],
             "verb": ["pause", "resume", "cancel"], "round": ["0"]}  # fmt: skip
    sent = data.draw(openapi.requests(operation, document, names), label="request")
    role = data.draw(st.sampled_from([*(r for r in ROLES if r in operation.said["x-roles"]), "viewer"]), label="role")
    link = links[role]
    run, round = data.draw(st.sampled_from([(RUN, "0"), (RUN, "1"), ("-", "-"), ("other", "0")]), label="about")
    headers = link._signed(sent.method, sent.path, sent.query, sent.body, run, round)
    headers |= {"edgewise-key": link._me.public.hex(), "content-type": "application/json"}
    headers |= data.draw(st.sampled_from([{}, {"range": "bytes=9-1"}, {"range": "bytes=a"}, {"accept": "*/*, x"}]))
    url = f"{sent.path}?{sent.query}" if sent.query else sent.path
    answer = link._http.request(sent.method, url, content=sent.body, headers=headers)
    assert answer.status_code < 500, f"{operation}: {answer.text}"
    if answer.status_code >= 400:
        said = answer.json()
        assert set(said) == {"code", "what", "fix"}
        assert said["code"] in operation.codes[str(answer.status_code)], operation
        assert said["what"]
        assert said["fix"]
    else:
        assert str(answer.status_code) in operation.said["responses"], operation


def _announced(raw: bytes) -> dict[str, Any]:
    return {"digest": sha256(raw).hexdigest(), "size": len(raw)}


STEP = b"\x82\xa4type\xa6masked\xa4body\xc4\x04\x00\x01\x02\x03"


def _frames(device: str) -> list[bytes]:
    """Valid frames of each kind that a device sends, and one that it does not."""
    return [
        contribution(device, bytes(range(64))),
        frame.dump(frame.Step(run=RUN, round=0, device=device, body=STEP)),
        frame.dump(frame.Refusal(run=RUN, round=0, device=device, code="E-NAN", reason="x")),
        frame.dump(invite()),
    ]


@pytest.mark.slow
@pytest.mark.long
@settings(max_examples=examples(40, 4000))
@given(
    which=st.integers(0, 3),
    other=st.integers(0, 3),
    damage=st.builds(
        Damage, st.sampled_from(KINDS), st.integers(0, 500), st.integers(0, 500), st.integers(0, 2**32 - 1)
    ),
)
def test_a_damaged_frame_is_refused_or_is_a_frame(
    server: HttpServer, links: dict[str, Link], which: int, other: int, damage: Damage
) -> None:
    """An accepted frame is the one that was sent, and valid by itself. Refused frames leave nothing."""
    device = links["device"]
    send_invitation(server, device.name)
    frames = _frames(device.name)
    raw = damage(frames[which], frames[other])
    count(device, raw)
    headers = device._signed("POST", "/v1/outbox", "", raw, RUN, "0")
    answer = device._http.post("/v1/outbox", content=raw, headers=headers)
    with server.service.database.read() as c:
        key, letters = mailboxes.round_key(c, RUN, 0), mailboxes.arrivals(c, RUN, 0, 10)
    if answer.status_code == 200:
        (letter,) = letters
        assert mailboxes.opened(letter, key, server.service.chunks, 1) == raw
        assert frame.dump(frame.from_device(raw, 2**20)) == raw
    else:
        assert answer.json()["code"] in ("E-FRAME", "E-FRAME-SIZE", "E-REQUEST"), answer.text
        assert letters == []
    server.service.database.write(lambda c: mailboxes.close(c, RUN))


@given(st.lists(st.binary(max_size=60), max_size=3))
@settings(max_examples=examples(6))
def test_no_bytes_before_http_end_the_server(server: HttpServer, links: dict[str, Link], parts: list[bytes]) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as plain:
        plain.sendall(b"".join(parts))
    with connected(server) as inside:
        inside.sendall(b"".join(parts))
    assert links["viewer"].standing()["role"] == "viewer"
