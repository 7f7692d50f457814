"""The dashboard over TLS on loopback: sessions, forms, what pages show, and what they never show."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import numpy as np
import pytest
import sqlalchemy as sa
from served import code, joined, running
from shown_runs import filled, login, member, shown_run

from edgewise.apps.dashboard.routes import REFUSALS
from edgewise.apps.dashboard.thinning import thinned
from edgewise.apps.server import decisions, submission
from edgewise.apps.server.start import HttpServer, Tls
from edgewise.drivers.fleet import audit, members, served, sessions
from edgewise.drivers.fleet.tables import AUDIT, SESSIONS
from edgewise.drivers.http import browser, certificates, service, tokens
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.page_rules import HOME, LOGIN, PAGES

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with running(tmp_path_factory.mktemp("dashboard")) as made:
        yield made


@pytest.fixture(scope="module")
def ids(server: HttpServer) -> dict[str, str]:
    return filled(server)


@pytest.fixture
def http(server: HttpServer) -> Iterator[httpx2.Client]:
    context = certificates.client_context(server.service.authority)
    with httpx2.Client(base_url=f"https://127.0.0.1:{server.port}", verify=context) as client:
        yield client


class Person:
    """A browser without scripts: it follows nothing by itself."""

    def __init__(self, http: httpx2.Client, secret: str) -> None:
        self.http, self.secret = http, secret
        self.cookie = {"cookie": f"{browser.COOKIE}={secret}"}

    def get(self, path: str) -> httpx2.Response:
        return self.http.get(f"{HOME}{path}", headers=self.cookie, follow_redirects=False)

    def post(self, path: str, form: dict[str, str] | None = None, **headers: str) -> httpx2.Response:
        fields = {browser.FIELD: browser.form_token(self.secret), **(form or {})}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(f"{HOME}{path}", data=fields, headers={**self.cookie, **named}, follow_redirects=False)


@pytest.fixture
def person(server: HttpServer, ids: dict[str, str], http: httpx2.Client) -> Person:
    return Person(http, login(server, ids["operator"]))


# -- sessions and forms ------------------------------------------------------------------------------------------------


def test_a_member_logs_in_by_a_token_that_works_once(server: HttpServer, http: httpx2.Client, tmp_path: Path) -> None:
    with joined(server, tmp_path / "viewer", "viewer") as viewer, joined(server, tmp_path / "device") as device:
        text = viewer.call("POST", "/v1/logins")["text"]
        assert code(device.call, "POST", "/v1/logins") == "E-ROLE"
        answer = http.post(LOGIN, data={"token": f" {text}\n"}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, HOME)
        set_cookie = answer.headers["set-cookie"]
        assert all(word in set_cookie for word in ("HttpOnly", "Secure", "SameSite=Strict", "Path=/", "__Host-"))
        assert http.post(LOGIN, data={"token": text}).status_code == 401
        person = Person(http, set_cookie.split(";")[0].split("=", 1)[1])
        assert person.get("").status_code == 200
        assert person.post("/enrol").status_code == 403, "a viewer makes no tokens"
        assert person.get("/enrol").status_code == 403
        assert person.post("/logout").status_code == 303
        assert person.get("").headers["location"] == LOGIN


def test_a_session_ends_with_its_time_and_with_its_member(server: HttpServer, http: httpx2.Client) -> None:
    name = member(server, "leaves", "viewer")
    person = Person(http, login(server, name))
    assert person.get("").status_code == 200
    database = server.service.database
    database.write(lambda c: c.execute(SESSIONS.update().where(SESSIONS.c.member == name).values(expires_s=1.0)))
    assert person.get("").status_code == 303
    assert person.get(".json").json()["code"] == "E-SESSION"
    person = Person(http, login(server, name))
    server.service.changed(database.write(lambda c: members.revoke(c, name, 1.0)))
    assert person.get("").status_code == 403


def test_a_form_counts_only_from_its_own_session_and_origin(person: Person, ids: dict[str, str]) -> None:
    path = f"/devices/{ids['pump 7']}/revoke"
    assert person.post(path, {browser.FIELD: "0" * 64}).status_code == 303, "to the login page"
    assert person.post(path, {browser.FIELD: ""}).headers["location"] == LOGIN
    assert person.post(path, origin="https://elsewhere.example").headers["location"] == LOGIN
    assert person.post(path, sec_fetch_site="cross-site").headers["location"] == LOGIN
    assert person.post(path, sec_fetch_site="same-site").headers["location"] == LOGIN
    shown = {one["id"]: one["status"] for one in person.get("/devices.json").json()["members"]}
    assert shown[ids["pump 7"]] == "pending", "nothing was done"


@pytest.mark.slow
def test_secrets_of_sessions_are_stored_as_hashes_and_shown_to_nobody(
    server: HttpServer, person: Person, ids: dict[str, str]
) -> None:
    now_s = server.service.now_s()
    unused = server.service.database.write(lambda c: sessions.invite_to_session(c, ids["operator"], now_s))
    made = person.post("/enrol", {"uses": "2", "hours": "1", "tags": "site=east"})
    token = re.search(rf"{tokens.PREFIX}\w+", made.text)
    assert token is not None
    assert made.headers["cache-control"] == "no-store"
    canaries = [token[0], tokens.parse(token[0]).secret.hex(), unused, person.secret]
    pages = "".join(person.get(path).text + str(person.get(path).headers) for path in paths(ids))
    server.service.database.scrub()  # The tables are then in the database's own file.
    stored = b"".join(p.read_bytes() for p in server.service.folder.rglob("*") if p.is_file() and "-wal" not in p.name)
    for canary in canaries:
        assert canary not in pages
        assert canary.encode() not in stored
    assert tokens.parse(token[0]).id in person.get("/enrol").text


# -- pages -------------------------------------------------------------------------------------------------------------


def paths(ids: dict[str, str]) -> list[str]:
    """A path for each page and its JSON."""
    found = [
        rule.path.removeprefix(HOME).replace("{run}", ids["smart-home"])
        for rule in PAGES
        if rule.method == "GET" and rule.session and not rule.path.endswith("/live")
    ]
    return [
        *found,
        f"/compare?run={ids['smart-home']}&run={ids['plays']}",
        f"/privacy?run={ids['pumps']}",
        "/audit?verify=1",
    ]


class Page(HTMLParser):
    """Collects what a strict policy forbids, and forms without a token."""

    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.scripts: list[str] = []
        self.bare_forms, self._form_open, self._has_token = 0, "", False
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.inline += [name for name in named if name == "style" or name.startswith("on")]
        if tag == "script":
            self.scripts.append(named.get("src") or "")
        if tag == "style":
            self.inline.append("style element")
        if "id" in named:
            self.ids.append(named["id"] or "")
        if tag == "form":
            self._form_open, self._has_token = named.get("method") or "get", False
        if tag == "input" and named.get("name") == browser.FIELD:
            self._has_token = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self.bare_forms += self._form_open == "post" and not self._has_token


def test_every_page_is_strict_and_has_its_json(person: Person, ids: dict[str, str]) -> None:
    for path in paths(ids):
        answer = person.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        if ".json" in path:
            assert answer.json(), path
            continue
        page = Page()
        page.feed(answer.text)
        assert not page.inline, path
        assert all(src.startswith(HOME) for src in page.scripts)
        assert page.bare_forms == 0, path
        assert len(page.ids) == len(set(page.ids)), path
        assert f"{path.partition('?')[0]}.json" in answer.text


def test_names_that_devices_and_recipes_give_themselves_are_text(server: HttpServer, person: Person) -> None:
    member(server, HOSTILE[:100], approved=False)
    run = shown_run(server, HOSTILE, served.FAILED, 2, 3, seed=77)
    for path in ("", "/devices", "/runs", f"/runs/{run}", f"/compare?run={run}", "/models", f"/privacy?run={run}"):
        text = person.get(path).text
        assert "<script>alert" not in text, path
        assert "<img src=x" not in text, path
        page = Page()
        page.feed(text)
        assert not page.inline, path
    assert "&lt;script&gt;alert(1)" in person.get("/devices").text
    assert "{{7*7}}" in person.get(f"/runs/{run}").text
    assert person.get(f"/devices?status={HOSTILE}").status_code == 200
    assert "<script>alert" not in person.get(f"/privacy?run={HOSTILE}").text


def test_a_run_shows_its_figures(person: Person, ids: dict[str, str]) -> None:
    found = person.get(f"/runs/{ids['smart-home']}.json").json()
    assert (found["played"], found["rounds"], found["budget"]) == (62, 200, 8.0)
    assert found["epsilon"] == pytest.approx(6.0 * (62 / 200) ** 0.5)
    funnel = [step["count"] for step in found["funnel"]]
    assert funnel == sorted(funnel, reverse=True)
    assert funnel[0] == 62 * 8
    assert set(found["charts"]) == {"loss", "perplexity", "bytes", "devices", "seconds", "epsilon"}
    text = person.get(f"/runs/{ids['smart-home']}").text
    assert text.count("<svg") >= 6
    assert "62 of 200" in text
    compared = person.get(f"/compare.json?run={ids['smart-home']}&run={ids['plays']}").json()
    assert "dp.epsilon" in {line["key"] for line in compared["recipe"]}
    assert person.get(f"/runs/{'0' * 64}").status_code == 404


def test_a_run_tells_a_browser_that_it_moved(server: HttpServer, person: Person, ids: dict[str, str]) -> None:
    url = f"{HOME}/runs/{ids['smart-home']}/live"
    with person.http.stream("GET", url, headers=person.cookie) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        told = [line for line in (next(lines) for _ in range(4)) if line]
        assert told[1:] == ["event: changed", 'data: {"state": "running", "played": 62}']
        server.service.database.write(lambda c: served.ask(c, ids["smart-home"], served.PAUSED))
        server.service.ring(ids["smart-home"])
        assert '"paused"' in next(line for line in lines if line.startswith("data"))
        server.service.hang_up()
        assert list(lines)[-1:] != ["data"], "the answer ends"
    server.service.database.write(lambda c: served.ask(c, ids["smart-home"], served.RUNNING))


def test_the_stream_of_a_run_ends_with_its_session(
    server: HttpServer, http: httpx2.Client, ids: dict[str, str]
) -> None:
    person = Person(http, login(server, ids["operator"]))
    with http.stream("GET", f"{HOME}/runs/{ids['smart-home']}/live", headers=person.cookie) as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith("data"))
        server.service.database.write(lambda c: sessions.leave_session(c, person.secret))
        server.service.database.write(lambda c: served.ask(c, ids["smart-home"], served.PAUSED))
        server.service.ring(ids["smart-home"])
        assert not any(line.startswith("data") for line in lines)
    server.service.database.write(lambda c: served.ask(c, ids["smart-home"], served.RUNNING))


@pytest.mark.parametrize("other", ['a={"x":1}', "path=1", "b", "", "=;;"])
def test_cookies_of_other_programs_of_the_host_end_no_session(other: str) -> None:
    assert browser.cookie_value(f"{other}; {browser.COOKIE}=abc", browser.COOKIE) == "abc"
    assert browser.cookie_value(other, browser.COOKIE) is None
    assert browser.cookie_value(f"{browser.COOKIE}=a; {browser.COOKIE}=b", browser.COOKIE) is None, "which is not known"


def test_a_ledger_is_listed_and_a_changed_row_named(server: HttpServer, person: Person) -> None:
    run = shown_run(server, "charged", served.FINISHED, 5, 5, seed=79)
    path = f"/privacy.json?run={run}"
    assert (person.get(path).json()["ledger"]["count"], person.get(path).json()["ledger"]["problem"]) == (5, None)
    with closing(sqlite3.connect(submission.folder(server.service, run) / "run.db")) as c, c:
        c.execute("UPDATE charges SET round = 4 WHERE number = 2")
    assert "changed" in person.get(path).json()["ledger"]["problem"]


# -- acts --------------------------------------------------------------------------------------------------------------


def test_an_operator_approves_revokes_and_leaves_a_trace(
    server: HttpServer, person: Person, ids: dict[str, str]
) -> None:
    name = member(server, "new one", approved=False)
    assert person.post(f"/devices/{name}/approve").headers["location"] == f"{HOME}/devices"
    assert person.post(f"/devices/{name}/revoke").status_code == 303
    assert person.post(f"/devices/{name}/approve").status_code == 403, "revoked for ever"
    found = person.get("/audit.json?verify=1").json()
    assert found["verified"]
    assert [(one["by"], one["verb"]) for one in found["rows"] if one["what"] == name] == [
        (ids["operator"], "revoke"),
        (ids["operator"], "approve"),
    ]


def test_a_person_pauses_a_run_and_rolls_a_model_back(server: HttpServer, person: Person, ids: dict[str, str]) -> None:
    run = shown_run(server, "to pause", served.RUNNING, 1, 9, seed=78)
    assert person.post(f"/runs/{run}/pause").status_code == 303
    assert person.get(f"/runs/{run}.json").json()["state"] == "paused"
    assert person.post(f"/runs/{run}/fly").status_code == 404
    assert person.post(f"/runs/{ids['code-helper']}/pause").status_code == 409
    refused = person.post("/models/rollback")
    assert refused.status_code >= 400, "the made-up run does not verify"
    assert "refused" in refused.text.lower()
    assert person.get("/models.json").json()["standing"]["name"] == "code-helper"


@pytest.mark.slow
def test_a_changed_row_of_the_audit_log_is_named(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        for i in range(3):
            member(server, f"d{i}")
            server.service.database.write(lambda c, i=i: audit.note(c, "me", "try", str(i), float(i)))
        read = server.service.database.read
        with read() as c:
            assert audit.audit_log_problem(audit.audit_log_rows(c)) is None
        server.service.database.write(lambda c: c.execute(AUDIT.update().where(AUDIT.c.number == 2).values(what="9")))
        with read() as c:
            assert "row 2" in (audit.audit_log_problem(audit.audit_log_rows(c)) or "")


def test_thin_curves_keep_their_ends_and_their_spikes() -> None:
    curve = np.sin(np.arange(100_000.0) / 500.0)
    curve[31_337], curve[70_000] = 9.0, np.nan
    kept = thinned([curve], 100)
    assert len(kept) <= 202
    assert {0, 31_337, 99_999} <= set(kept.tolist())
    assert thinned([curve[:50]], 100).tolist() == list(range(50))
    assert len(thinned([], 100)) == 0


# -- colours -----------------------------------------------------------------------------------------------------------


def _colours() -> dict[str, dict[str, str]]:
    css = (Path(__file__).parents[2] / "src/edgewise/apps/dashboard/static/style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    )
    return {"light": light, "dark": {**light, **dark}}


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.2."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme: str) -> None:
    c = _colours()[scheme]
    for text in ("ink", "soft", "link", "danger", "good", "warn"):
        for ground in ("paper", "card", "wash"):
            assert contrast(c[text], c[ground]) >= 4.5, f"{text} on {ground}"
    assert contrast(c["on-main"], c["main"]) >= 4.5
    assert contrast(c["ink"], c["warn-wash"]) >= 4.5
    assert contrast(c["warn"], c["warn-wash"]) >= 4.5
    for mark in ("field", "main", *(f"s{i}" for i in range(8))):
        assert contrast(c[mark], c["card"]) >= 3.0, f"{mark}: borders of fields, focus and curves"


# -- standing, origin, time and audit ----------------------------------------------------------------------------------


def test_acts_of_a_person_who_was_revoked_a_moment_ago_are_undone(server: HttpServer, ids: dict[str, str]) -> None:
    """The guard may have passed the member before. Every act looks again in its own transaction."""
    name = member(server, "revoked meanwhile", "operator")
    database = server.service.database
    with database.read() as c:
        person = members.find(c, name)
    assert person is not None
    database.write(lambda c: members.revoke(c, name, 1.0))
    token = tokens.make_token_for_server("x")
    grant = members.Grant("device", (), 1, False, 60.0)
    acts = [
        lambda c: decisions.decide_membership(c, person, ids["pump 7"], "revoke", 1.0),
        lambda c: decisions.token_made(c, token, grant, person, 1.0),
        lambda c: decisions.token_revoked(c, "none", person, 1.0),
    ]
    for act in acts:
        assert code(database.write, act) == "E-REVOKED"
    assert code(server.hosting.ask, ids["smart-home"], served.PAUSED, name) == "E-REVOKED"
    with database.read() as c:
        assert served.find(c, ids["smart-home"]).state == served.RUNNING
        pump = members.find(c, ids["pump 7"])
    assert pump is not None
    assert pump.status == members.PENDING


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("https://a.example", "a.example", True),
        ("https://a.example", "a.example:443", True),
        ("https://a.example:7443", "a.example:7443", True),
        ("http://a.example:7443", "a.example:7443", False),
        ("https://a.example:7444", "a.example:7443", False),
        ("https://b.example", "a.example", False),
        ("http://a.example", "a.example:443", False),
        ("null", "a.example", False),
        ("https://a.example:x", "a.example", False),
    ],
)
def test_an_origin_is_scheme_host_and_port(origin: str, host: str, own: bool) -> None:
    scope = {"type": "http", "scheme": "https", "headers": [(b"host", host.encode()), (b"origin", origin.encode())]}
    if own:
        browser.check_origin(scope)
    else:
        assert code(browser.check_origin, scope) == "E-SESSION"


def test_a_clock_that_is_set_back_revives_no_session(
    server: HttpServer, ids: dict[str, str], http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    person, now_s = Person(http, login(server, ids["operator"])), server.service.now_s()
    monkeypatch.setattr(server.service, "now_s", lambda: now_s + sessions.SESSION_S + 1.0)
    assert person.get("").status_code == 303
    monkeypatch.setattr(server.service, "now_s", lambda: now_s)
    assert person.get("").status_code == 303


@pytest.mark.slow
def test_forms_count_behind_a_proxy_that_ends_tls_where_the_server_knows_its_public_url(tmp_path: Path) -> None:
    """The proxy speaks plain HTTP with the server, so the origin of the browser has another scheme than the request."""
    public = "https://federation.example"
    form = {"host": "federation.example", "origin": public, "x-forwarded-for": "192.0.2.7"}
    with HttpServer(tmp_path, tls=Tls(off=True), public_url=public) as server:
        name = member(server, "operator", "operator")
        with httpx2.Client(base_url=server.url) as http:
            now_s = server.service.now_s()
            text = server.service.database.write(lambda c: sessions.invite_to_session(c, name, now_s))
            answer = http.post(LOGIN, data={"token": text}, headers=form, follow_redirects=False)
            assert (answer.status_code, answer.headers["location"]) == (303, HOME)
            person = Person(http, answer.headers["set-cookie"].split(";")[0].split("=", 1)[1])
            assert f"edgewise join {public}" in person.post("/enrol", **form).text
            rewritten = {**form, "host": f"127.0.0.1:{server.port}"}  # by a proxy that names the server's own host
            assert person.post("/enrol", **rewritten).status_code == 200
            for origin in ("http://federation.example", f"{public}:8443", "https://elsewhere.example"):
                assert person.post("/enrol", **{**form, "origin": origin}).headers["location"] == LOGIN, origin
            server.service.public_url = ""
            assert person.post("/enrol", **form).headers["location"] == LOGIN


@pytest.mark.parametrize("url", ["federation.example", "http://a.example", "https://", "https://a/b", "https://a:x"])
def test_a_public_url_is_an_origin_of_https(tmp_path: Path, url: str) -> None:
    assert code(lambda: HttpServer(tmp_path, public_url=url)) == "E-REQUEST"


def test_a_session_that_nobody_uses_is_deleted_when_its_time_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a clock that is set back later revives it no more than one that somebody used."""
    monkeypatch.setattr(service, "SWEEP_S", 0.01)
    clock = [1000.0]
    with service.Service(tmp_path, ServerLimits(), lambda: clock[0]) as made:

        def stored() -> int:
            with made.database.read() as c:
                return len(c.execute(sa.select(SESSIONS)).all())

        def login(c: sa.Connection) -> str:
            return sessions.enter_session(c, sessions.invite_to_session(c, "operator", clock[0]), clock[0])[0]

        secret = made.database.write(login)
        assert asyncio.run(made.person(secret)) == "operator"
        clock[0] += sessions.SESSION_S + 1.0
        end = time.monotonic() + 20.0
        while stored() and time.monotonic() < end:
            time.sleep(0.01)
        clock[0] = 1000.0
        assert asyncio.run(made.person(secret)) is None
        assert stored() == 0


@pytest.mark.slow
def test_log_ins_and_outs_are_audited_and_a_flood_fills_nothing(
    server: HttpServer, http: httpx2.Client, tmp_path: Path
) -> None:
    def verbs() -> list[tuple[str, str, str]]:
        with server.service.database.read() as c:
            return [(row.by, row.verb, row.what) for row in audit.audit_log_rows(c)]

    with joined(server, tmp_path / "operator", "operator") as link:
        text, name = link.call("POST", "/v1/logins")["text"], link.call("GET", "/v1/me")["id"]
    secret = http.post(LOGIN, data={"token": text}, follow_redirects=False).headers["set-cookie"].split(";")[0]
    Person(http, secret.split("=", 1)[1]).post("/logout")
    own = [row for row in verbs() if row[0] == name and row[1] != "join"]
    assert own == [(name, verb, name) for verb in ("make login", "log in", "log out")]
    for _ in range(2 * REFUSALS):
        assert http.post(LOGIN, data={"token": text}).status_code == 401
    refused = [row for row in verbs() if row[1] == "refuse log in"]
    assert 1 <= len(refused) <= REFUSALS
    assert set(refused) == {("server", "refuse log in", "E-SESSION")}
