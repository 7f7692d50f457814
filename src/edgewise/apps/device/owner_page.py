"""The owner's page of a device, on this machine alone: what left it, and pause, resume and leave.

    with OwnerPage(home) as page:
        print(page.url)                # http://127.0.0.1:PORT/PATH/?token=..., which opens the page once
        page.wait()                    # until the owner has left or `close` is called

The page listens on 127.0.0.1. Other users of the machine can reach that address too, so the URL has a token that works
once and is exchanged for a cookie. A site that a browser visits cannot use the page: the host, the origin and the
token of each form are checked. It needs nothing but Python, as a device has no extra `server`.

A browser sends the cookies of 127.0.0.1 to the servers on all of its ports. So the page lies under a random path, new
at each start, and its cookie is for that path alone. Forms have a secret of their own, which no cookie holds.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from edgewise.apps.device import clock, control, leave, owner_html, record, status
from edgewise.core.errors import EdgewiseError, TransportError
from edgewise.drivers.http import browser
from edgewise.drivers.http import home as homes

COOKIE = "edgewise-owner"  # and the port, so that two pages of one machine do not overwrite each other's
BODY_BYTES = 4096
FILES = {"style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"}
IDLE_S = 10.0  # the longest wait for a slow caller


class OwnerPage:
    """A page of one device. It is a context manager.

    Attributes:
        url: opens the page, once.
        port: the port on 127.0.0.1.
        base: the path of the page, which only its owner knows.
        cookie: the name of its cookie.
    Raises:
        TransportError: E-IDENTITY for a folder without an enrolment. E-LISTEN where the port is in use.
    """

    def __init__(self, home: Path, port: int = 0, now_s: Callable[[], float] = time.time) -> None:
        homes.load(home)
        self.home, self.now_s = home, now_s
        self._token: str | None = secrets.token_urlsafe(32)
        self._secret, self._forms = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self._lock, self._ended = threading.Lock(), threading.Event()
        self.base = f"/{secrets.token_urlsafe(32)}/"
        handler = type("OwnerRequest", (_Request,), {"owner": self})
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        except OSError as e:
            what = f"the page cannot listen on 127.0.0.1:{port}: {e.strerror}."
            raise TransportError("E-LISTEN", what, "name another port, or leave it out.") from None
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.cookie = f"{COOKIE}-{self.port}"
        self.url = f"http://127.0.0.1:{self.port}{self.base}?token={self._token}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="edgewise-owner", daemon=True)
        self._thread.start()

    def __enter__(self) -> OwnerPage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self) -> None:
        """Wait until the owner has left the server."""
        self._ended.wait()

    @property
    def form_token(self) -> str:
        """The token of the page's forms."""
        return browser.form_token(self._forms)

    def enter(self, token: str) -> str | None:
        """Exchange the token of the URL for the secret of the cookie, once. None for another token."""
        with self._lock:
            if self._token is None or not hmac.compare_digest(token.encode(), self._token.encode()):
                return None
            self._token = None
            return self._secret

    def knows(self, secret: str | None) -> bool:
        """Tell whether a cookie is the owner's."""
        return secret is not None and hmac.compare_digest(secret.encode(), self._secret.encode())

    def shown(self) -> dict[str, Any]:
        """Return the status of the device, as `edgewise device status --json` does, and the lines of its record."""
        lines = [row for row in record.device_record_lines(self.home) if row.kind != record.RUN_REFUSED]
        return {"status": status.found(self.home, self.now_s()), "lines": lines}

    def act(self, order: str, form: dict[str, str]) -> str:
        """Do what the owner asks: pause, resume or leave. Returns a note for the page.

        Raises EdgewiseError as these acts do.
        """
        if order == "pause":
            until = form.get("until", "").strip()
            control.give_owner_order(
                self.home, control.Order("pause", clock.next_time(until, self.now_s()) if until else None)
            )
            return "Paused. Nothing leaves this device."
        if order == "resume":
            control.give_owner_order(self.home, control.Order())
            return "Resumed."
        if order == "leave":
            if form.get("sure") != "on":
                raise TransportError("E-REQUEST", "leaving was not confirmed.", "mark that you want to leave.")
            done = leave.leave(self.home, keep_records=form.get("keep") == "on")
            self._ended.set()
            return " ".join(leave.leaving_words(done, self.home))
        raise TransportError("E-ROUTE", "the page has no such form.", "open the page again.")


class _Request(BaseHTTPRequestHandler):
    """One request to the page."""

    owner: OwnerPage
    timeout = IDLE_S
    server_version, sys_version = "edgewise", ""

    def do_GET(self) -> None:
        """Answer with the page, its JSON or a file."""
        parts, name = urlsplit(self.path), self._name()
        if not self._here():
            return self._refuse(403, "This address is not the page's own.")
        if (file := parts.path.rpartition("/")[2]) in FILES:  # of any path, for a refusal has a style too
            raw = resources.files("edgewise.apps.dashboard").joinpath("static", file).read_bytes()
            return self._send(200, FILES[file], raw)
        if name == "" and (given := parse_qs(parts.query).get("token")):
            if (secret := self.owner.enter(given[0])) is not None:
                cookie = f"{self.owner.cookie}={secret}; Path={self.owner.base}; HttpOnly; SameSite=Strict"
                return self._send(303, "text/plain", b"", {"location": self.owner.base, "set-cookie": cookie})
            return self._refuse(403, "This link was used already. Run `edgewise device page` again.")
        if name is None or not self._owner():
            return self._refuse(403, "Open the link that `edgewise device page` prints.")
        if name == "page.json":
            return self._send(200, "application/json", json.dumps(self._plain()).encode())
        if name == "":
            return self._page(200, "")
        return self._refuse(404, "There is no such page.")

    def do_POST(self) -> None:
        """Take one of the page's forms."""
        length, name = self.headers.get("content-length", ""), self._name()
        foreign = self.headers.get("sec-fetch-site", "same-origin") != "same-origin"
        if foreign or name is None or not self._here() or not self._owner():
            return self._refuse(403, "This form was not sent by the page.")
        if not length.isdigit() or int(length) > BODY_BYTES:
            return self._refuse(413, "The form is too large.")
        try:
            form = browser.form_fields(self.rfile.read(int(length)))
            if not hmac.compare_digest(form.get(browser.FIELD, "").encode(), self.owner.form_token.encode()):
                return self._refuse(403, "This form was not made in this session. Open the page again.")
            note = self.owner.act(name, form)
        except EdgewiseError as e:
            return self._page(409, f"{e.code}: {e.what} {e.fix}")
        if name == "leave":
            return self._words(200, "Left", note)
        return self._send(303, "text/plain", b"", {"location": self.owner.base})

    def _page(self, code: int, note: str) -> None:
        shown = self.owner.shown()
        html = owner_html.owner_page_html(shown["status"], shown["lines"], self.owner.form_token, note)
        self._send(code, "text/html; charset=utf-8", html.encode())

    def _plain(self) -> dict[str, Any]:
        shown = self.owner.shown()
        fields = ("at_s", "server", "run", "round", "kind", "size", "epsilon", "reason", "promise")
        return {**shown["status"], "lines": [{name: getattr(one, name) for name in fields} for one in shown["lines"]]}

    def _name(self) -> str | None:
        """Return the part of the path after the page's own. None for another path."""
        path, base = urlsplit(self.path).path, self.owner.base
        own = hmac.compare_digest(path[: len(base)].encode(), base.encode())
        return path[len(base) :] if own else None

    def _here(self) -> bool:
        """Refuse a name that a foreign site lets point to this machine, and a form of another origin."""
        host, origin = self.headers.get("host", ""), self.headers.get("origin")
        own = {f"127.0.0.1:{self.owner.port}", f"localhost:{self.owner.port}"}
        return host in own and (origin is None or origin == f"http://{host}")

    def _owner(self) -> bool:
        return self.owner.knows(browser.cookie_value(self.headers.get("cookie", ""), self.owner.cookie))

    def _refuse(self, code: int, words: str) -> None:
        self._words(code, "Refused", words)

    def _words(self, code: int, title: str, words: str) -> None:
        html = owner_html.whole_owner_page(f"<h1>{title}</h1><p>{escape(words)}</p>")
        self._send(code, "text/html; charset=utf-8", html.encode())

    def _send(self, code: int, kind: str, raw: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        own = {"content-type": kind, "content-length": str(len(raw))}
        for name, value in {**browser.HEADERS, **own, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, because a request line can hold the token."""
