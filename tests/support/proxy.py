"""A TCP proxy that misbehaves.

It delays, cuts and slows connections, lets later ones overtake earlier ones, sends what comes twice, swallows answers,
stands still for a while, and remembers what clients sent.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

PIECE = 2**14


@dataclass(frozen=True)
class Way:
    """Fate of a connection.

    Attributes:
        delay_s: before its first byte passes; connections with another delay overtake it.
        cut_up, cut_down: bytes from and to the client after which the connection breaks; -1 = never.
        rate: bytes per second from the client; 0 = as fast as it goes.
        refuse: the connection is closed at once.
        twice: what the client sends goes to the server on a second connection too, and there first; nobody reads the
            answers to that. Until ``Proxy.doubling`` is False.
        mute: nothing comes back to the client.
    """

    delay_s: float = 0.0
    cut_up: int = -1
    cut_down: int = -1
    rate: float = 0.0
    refuse: bool = False
    twice: bool = False
    mute: bool = False


class Proxy:
    """Listens on ``port`` and passes on to ``target``. ``way`` says what the n-th connection meets.

    ``up`` and ``down`` count the bytes from and to all clients that have passed; ``connections`` counts. ``sent``: what
    the client of each connection sent.
    """

    def __init__(self, target: int, way: Callable[[int], Way] = lambda _: Way()) -> None:
        self._target, self.way = target, way
        self.up, self.down, self.connections = 0, 0, 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._open: set[socket.socket] = set()
        self.sent: list[bytearray] = []
        self.doubling = True
        self._flowing = threading.Event()
        self._flowing.set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def part(self) -> None:
        """Let no byte pass in either direction; connections stay open."""
        self._flowing.clear()

    def heal(self) -> None:
        """Let everything pass again."""
        self._flowing.set()

    def cut_all(self) -> None:
        """Break every connection."""
        for one in list(self._open):
            _end(one)

    def close(self) -> None:
        """Break every connection and take no more."""
        self._flowing.set()
        _end(self._listening)
        self.cut_all()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self.connections += 1
                way = self.way(self.connections - 1)
                self.sent.append(bytearray())
                threading.Thread(target=self._serve, args=(client, way, self.sent[-1]), daemon=True).start()

    def _serve(self, client: socket.socket, way: Way, sent: bytearray) -> None:
        if way.refuse:
            _end(client)
            return
        time.sleep(way.delay_s)
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            _end(client)
            return
        other = socket.create_connection(("127.0.0.1", self._target)) if way.twice else None
        self._open |= {client, server} | ({other} if other else set())
        answers = (server, client, way.cut_down, 0.0, None if way.mute else [client])
        down = threading.Thread(target=self._pump, args=(*answers, None), daemon=True)
        down.start()
        self._pump(client, server, way.cut_up, way.rate, [other, server] if other else [server], sent)
        down.join()
        if other:
            _end(other)
        self._open -= {client, server, other}

    def _pump(
        self, source: socket.socket, sink: socket.socket, cut: int, rate: float, to: list[socket.socket] | None,
        sent: bytearray | None,
    ) -> None:  # fmt: skip
        passed = 0
        with suppress(OSError):
            while piece := source.recv(PIECE):
                self._flowing.wait()
                if 0 <= cut < passed + len(piece):
                    piece = piece[: cut - passed]
                for one in to or ():
                    if self.doubling or one is sink:
                        one.sendall(piece)
                passed += len(piece)
                if sent is not None:
                    sent += piece
                    self.up += len(piece)
                else:
                    self.down += len(piece)
                if passed == cut:
                    break
                if rate:
                    time.sleep(len(piece) / rate)
        _end(source)
        _end(sink)


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        one.close()


@contextmanager
def proxied(target: int, way: Callable[[int], Way] = lambda _: Way()) -> Iterator[Proxy]:
    """A proxy before a port of this machine."""
    proxy = Proxy(target, way)
    try:
        yield proxy
    finally:
        proxy.close()
