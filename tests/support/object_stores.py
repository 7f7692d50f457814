"""An S3-compatible object store on loopback, for tests, and what happens to it behind a driver's back."""

from __future__ import annotations

import atexit
import datetime
import logging
import secrets
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from edgewise.drivers.storage.store_place import StorePlace

KEY, SECRET = "AKIAEXAMPLEEXAMPLE00", "the-secret-of-the-test-which-nobody-shows"


@cache
def endpoint() -> str:
    """The URL of the store. It starts at the first call, and ends with the process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    atexit.register(server.stop)
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put credentials into the environment, and take all other settings of stores out of it."""
    import os

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def new_place() -> StorePlace:
    """A prefix in a new bucket."""
    bucket = f"bucket-{secrets.token_hex(6)}"
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint()}/{bucket}", method="PUT"), timeout=10.0):
        return StorePlace(bucket, "fleet/blobs", endpoint())


def _bucket(place: StorePlace) -> Any:
    return s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[place.bucket]


def names(place: StorePlace) -> set[str]:
    """The names of all objects under the prefix."""
    return {key.removeprefix(f"{place.prefix}/") for key in _bucket(place).keys}


def spoil(place: StorePlace, name: str, raw: bytes) -> None:
    """Change the stored bytes of an object."""
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(place.bucket, f"{place.prefix}/{name}", raw)


def age(place: StorePlace, name: str, by_s: float) -> None:
    """Let an object grow older by the store's clock."""
    _bucket(place).keys[f"{place.prefix}/{name}"].last_modified -= datetime.timedelta(seconds=by_s)


@contextmanager
def answering(
    *script: tuple[int, str], tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A store that answers requests by a script: status and code of the error. 0: it never answers. Then 200 for good.

    Gives its URL, and the requests as they come: method and path, body. ``tls``: it speaks HTTPS.
    """
    left, seen, ended = list(script), list[tuple[str, bytes]](), threading.Event()

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            seen.append((f"{self.command} {self.path}", body))
            status, error = left.pop(0) if left else (206 if "range" in self.headers else 200, "")
            if not status:
                ended.wait(30.0)
                return
            raw = f"<Error><Code>{error}</Code><Message>{SECRET} {KEY}</Message></Error>".encode() if error else b"four"
            self.send_response(status)
            self.send_header("etag", '"tag"')
            self.send_header("last-modified", "Wed, 02 Dec 2026 12:00:00 GMT")
            self.send_header("content-length", str(len(raw)))
            if status == 206:
                self.send_header("content-range", "bytes 0-3/4")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}", seen
        finally:
            ended.set()
            server.shutdown()
            thread.join()


def parts(place: StorePlace) -> bool:
    """Whether parts of an upload have come that has not ended."""
    return any(one.parts for one in list(_bucket(place).multiparts.values()))


def empty(place: StorePlace) -> None:
    """Remove all objects."""
    _bucket(place).keys.clear()
