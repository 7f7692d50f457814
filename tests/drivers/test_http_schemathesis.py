"""Requests that schemathesis makes from the server's OpenAPI document, of each role: no route fails, and every refusal
has a code that the document names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from long import examples
from served import RUN, UNLIMITED, member_links, running

from edgewise.apps.server.api import ControlPlane
from edgewise.apps.server.start import HttpServer
from edgewise.drivers.fleet.members import ROLES
from edgewise.drivers.http.link import Link
from edgewise.drivers.http.rules import RULES

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
ALL = list(HealthCheck)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with running(tmp_path_factory.mktemp("schema"), UNLIMITED) as made:
        yield made


@pytest.fixture(scope="module")
def links(server: HttpServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Link]]:
    with member_links(server, tmp_path_factory.mktemp("members")) as made:
        yield made


@pytest.fixture(scope="module")
def operations(server: HttpServer) -> dict[tuple[str, str], Any]:
    document = dict(ControlPlane(server.service, server.hosting).api.openapi())
    found = (result.ok() for result in schemathesis.openapi.from_dict(document).get_all_operations())
    return {(operation.method.upper(), operation.path): operation for operation in found}


@pytest.mark.slow
@pytest.mark.long(sample=2)
@pytest.mark.parametrize(("method", "path"), [(rule.method, rule.path) for rule in RULES])
def test_no_case_of_schemathesis_breaks_a_route(
    server: HttpServer, links: dict[str, Link], operations: dict[tuple[str, str], Any], method: str, path: str
) -> None:
    operation = operations[method, path]

    @settings(max_examples=examples(10, 60), suppress_health_check=ALL, deadline=None)
    @given(case=operation.as_strategy(), role=st.sampled_from(ROLES), about=st.sampled_from([(RUN, "0"), ("-", "-")]))
    def play(case: Any, role: str, about: tuple[str, str]) -> None:
        answer = _sent(links[role], case, about)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            named = operation.definition.raw["responses"].get(str(answer.status_code), {}).get("x-codes", [])
            assert answer.json()["code"] in [*named, "E-ROUTE"], answer.text  # percent-encoded paths have no route
            assert answer.json()["what"]

    play()


def _sent(link: Link, case: Any, about: tuple[str, str]) -> Any:
    """Send a case, signed by a member. Long polls do not wait."""
    given = case.as_transport_kwargs(base_url="https://localhost")
    params = dict(given.get("params") or {})
    if str(params.get("wait", "")).isdigit():
        params["wait"] = 0
    body = given.get("data") if isinstance(given.get("data"), bytes) else None
    request = link._http.build_request(
        given["method"], given["url"].removeprefix("https://localhost"), params=params, content=body,
        json=given.get("json"),
    )  # fmt: skip
    where, _, query = request.url.raw_path.decode("ascii").partition("?")
    request.headers.update(link._signed(request.method, where, query, request.content, *about))
    request.headers["edgewise-key"] = link._me.public.hex()
    return link._http.send(request)
