"""News between the servers of one PostgreSQL database: LISTEN and NOTIFY, on two connections of their own.

    news = News(url, hear)
    news.tell("ring", device)          # the other servers call hear("ring", device)

News are hints. Each is sent within ``PAUSE_S``, many together, and is lost where a connection breaks. Whoever waits for
one also looks at the database from time to time.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import sqlalchemy as sa

CHANNEL = "edgewise"
PAUSE_S = 0.02
TOGETHER = 80  # names in one message; PostgreSQL takes 8000 bytes
AGAIN_S = 1.0  # wait after an outage
Hear = Callable[[str, str], None]


class News:
    """The news of one server. ``hear``: called with kind and name, from a thread."""

    def __init__(self, url: str, hear: Hear) -> None:
        self._place = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._hear, self._own = hear, secrets.token_hex(8)
        self._outbox: dict[tuple[str, str], None] = {}
        self._lock, self._some, self._closed = threading.Lock(), threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"edgewise-{name}", daemon=True)
            for name, work in (("tell", self._telling), ("hear", self._hearing))
        ]
        for thread in self._threads:
            thread.start()

    def tell(self, kind: str, name: str) -> None:
        """Send a piece of news soon. Equal ones are sent once."""
        with self._lock:
            self._outbox[kind, name] = None
        self._some.set()

    def close(self) -> None:
        """End the connections. What was not sent is lost."""
        self._closed.set()
        self._some.set()
        for thread in self._threads:
            thread.join()

    def _connected(self) -> Any:
        import psycopg

        return psycopg.connect(self._place, autocommit=True, connect_timeout=5, application_name="edgewise-news")

    def _telling(self) -> None:
        self._until_closed(self._send)

    def _hearing(self) -> None:
        self._until_closed(self._listen)

    def _until_closed(self, work: Callable[[Any], None]) -> None:
        import psycopg

        while not self._closed.is_set():
            with suppress(psycopg.Error, OSError), self._connected() as connection:
                work(connection)
            self._closed.wait(AGAIN_S)

    def _send(self, connection: Any) -> None:
        while True:
            self._some.wait()
            if self._closed.is_set():
                return
            time.sleep(PAUSE_S)
            with self._lock:
                self._some.clear()
                pieces, self._outbox = list(self._outbox), {}
            for at in range(0, len(pieces), TOGETHER):
                text = json.dumps([self._own, *pieces[at : at + TOGETHER]])
                connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, text))

    def _listen(self, connection: Any) -> None:
        connection.execute(f"LISTEN {CHANNEL}")
        while not self._closed.is_set():
            for message in connection.notifies(timeout=0.5):
                sender, *pieces = json.loads(message.payload)
                if sender != self._own:
                    for kind, name in pieces:
                        self._hear(kind, name)
                if self._closed.is_set():
                    return
