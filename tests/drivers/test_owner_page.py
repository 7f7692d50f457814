"""The owner's page of a device: who may open it, what it shows, and that its orders are obeyed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.cookiejar import CookieJar
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import HTTPCookieProcessor, build_opener

import httpx2
import msgspec
import pytest
from served import code, joined, running

from edgewise.apps.device import control
from edgewise.apps.device.owner_page import OwnerPage
from edgewise.apps.device.record import FILE, RUN_REFUSED, RecordLine
from edgewise.apps.server.start import HttpServer
from edgewise.drivers.fleet import members
from edgewise.drivers.http import browser

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with running(tmp_path_factory.mktemp("owned")) as made:
        yield made


@pytest.fixture
def home(server: HttpServer, tmp_path: Path) -> Path:
    joined(server, tmp_path / "home").close()
    lines = [
        RecordLine(time.time() - 60, "s", "ab" * 32, 0, "masked update", 1_234_567, "d1", 0.5, promise="epsilon 8"),
        RecordLine(time.time() - 30, "s", "ab" * 32, 1, "masked update", 1_000_000, "d2", 0.75, promise="epsilon 8"),
        RecordLine(time.time() - 20, "s", "cd" * 32, None, RUN_REFUSED, 0, reason=f"E-OWNER: {HOSTILE}"),
    ]
    (tmp_path / "home" / FILE).write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return tmp_path / "home"


@pytest.fixture
def page(home: Path) -> Iterator[OwnerPage]:
    with OwnerPage(home) as made:
        yield made


@pytest.fixture
def http(page: OwnerPage) -> Iterator[httpx2.Client]:
    """The owner's browser."""
    with httpx2.Client(base_url=f"http://127.0.0.1:{page.port}{page.base}", follow_redirects=True) as client:
        assert client.get(page.url).status_code == 200
        yield client


def sent(page: OwnerPage, http: httpx2.Client, path: str, **form: str) -> httpx2.Response:
    return http.post(path, data={browser.FIELD: page.form_token, **form})


def test_the_page_says_what_left_when_and_under_which_promise(http: httpx2.Client) -> None:
    answer = http.get("")
    for words in ("1,234,567", "2.23 MB", "masked update", "epsilon 8", "0.75", "2 x masked update", "E-OWNER"):
        assert words in answer.text, words
    assert HOSTILE not in answer.text
    assert "style=" not in answer.text
    assert "unsafe" not in answer.headers["content-security-policy"]
    found = http.get("page.json").json()
    assert [line["epsilon"] for line in found["lines"]] == [0.5, 0.75]
    assert found["left"]["all"]["bytes"] == 2_234_567
    assert http.get("style.css").status_code == 200
    assert http.get("left.jsonl").status_code == 404


def test_the_link_works_once_and_nobody_else_sees_the_page(page: OwnerPage, http: httpx2.Client) -> None:
    url = f"http://127.0.0.1:{page.port}"
    with httpx2.Client(base_url=url) as other:
        for name in ("", "page.json", "?token=", "?token=%C3%A9"):
            for path in (page.url, f"/{name}", f"{page.base}{name}"):
                assert other.get(path).status_code == 403, path
        for path in ("/pause", f"{page.base}pause"):
            assert other.post(path, data={browser.FIELD: page.form_token}).status_code == 403
    assert http.get("", headers={"host": "rebound.example"}).status_code == 403
    assert http.get("", headers={"origin": "http://elsewhere.example"}).status_code == 403
    assert http.post("pause", data={browser.FIELD: "0" * 64}).status_code == 403
    for name, value in (
        ("origin", "http://elsewhere.example"),
        ("origin", f"http://127.0.0.1:{page.port + 1}"),  # a page of another program on this machine
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "cross-site"),
    ):
        assert http.post("pause", data={browser.FIELD: page.form_token}, headers={name: value}).status_code == 403
    assert http.post("pause", content=b"x" * 5000).status_code == 413
    assert control.read_owner_order(page.home, time.time()).word == "work"


@pytest.mark.slow
def test_a_server_on_another_port_gets_no_cookie_and_cannot_make_a_form(home: Path) -> None:
    """A cookie of a host goes to all of its ports. So the page's has a path that others do not know."""
    seen: list[str] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("cookie", ""))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    other = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    Thread(target=other.serve_forever, daemon=True).start()
    jar = CookieJar()
    owner = build_opener(HTTPCookieProcessor(jar))  # Its jar sends cookies as browsers do.
    with OwnerPage(home) as page, OwnerPage(home) as second:
        assert owner.open(page.url).status == 200
        for path in ("/", "/pause", "/page.json"):
            owner.open(f"http://127.0.0.1:{other.server_address[1]}{path}")
        assert seen == ["", "", ""]
        (cookie,) = jar
        assert (cookie.name, cookie.path) == (f"edgewise-owner-{page.port}", page.base)
        assert page.base != second.base
        assert browser.form_token(str(cookie.value)) != page.form_token
        stolen = {"cookie": f"{cookie.name}={cookie.value}"}
        for path in ("/", "/page.json", second.base):
            assert httpx2.get(f"http://127.0.0.1:{page.port}{path}", headers=stolen).status_code == 403
    other.shutdown()
    other.server_close()


def test_an_owner_pauses_and_resumes(page: OwnerPage, http: httpx2.Client) -> None:
    assert "Nothing leaves" in sent(page, http, "pause").text
    assert control.read_owner_order(page.home, time.time()).pause
    assert sent(page, http, "resume").status_code == 200
    assert not control.read_owner_order(page.home, time.time()).pause
    assert "E-REQUEST" in sent(page, http, "pause", until="yesterday").text
    sent(page, http, "pause", until="2099-01-01 10:00")
    assert control.read_owner_order(page.home, time.time()).until_s is not None


def test_an_owner_leaves(server: HttpServer, page: OwnerPage, http: httpx2.Client) -> None:
    device = http.get("page.json").json()["device"]
    assert "E-REQUEST" in sent(page, http, "leave").text
    answer = sent(page, http, "leave", sure="on", keep="on")
    assert "the server has revoked this device" in answer.text
    page.wait()
    with server.service.database.read() as c:
        found = members.find(c, device)
    assert found is not None
    assert found.status == members.REVOKED
    assert (page.home / FILE).exists()
    assert not (page.home / "device.key").exists()


def test_a_folder_without_an_enrolment_has_no_page(tmp_path: Path) -> None:
    assert code(OwnerPage, tmp_path) == "E-IDENTITY"
