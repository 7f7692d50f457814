"""A listening socket that bounds the open connections: of all addresses together, and of each one.

    door = Door(socket.AF_INET, connection_room(limits.connections))

It counts from the moment of ``accept``, so connections in the middle of their TLS handshake count too. A connection
beyond a bound is closed at once. The process keeps descriptors for its own files in any case: with none left it could
not open its database either.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from edgewise.drivers.http.limits import customer_network

OWN_FILES = 256  # descriptors of database, log, blobs and uploads
LEAST = 16  # connections, however few descriptors there are


def connection_room(wanted: int) -> int:
    """Return the number of connections that this process has descriptors for, at most ``wanted``.

    Raises the process's own limit of open files as far as it may.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited, need = resource.RLIM_INFINITY, wanted + OWN_FILES
    if soft != unlimited and soft < need:
        more = need if hard == unlimited else min(need, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    return wanted if soft == unlimited else min(wanted, max(LEAST, soft - OWN_FILES))


class Door(socket.socket):
    """The listening socket.

    Args:
        family: as for a socket.
        most: number of connections at a time.
        each: number of connections of one address, or one IPv6 /64.
    """

    def __init__(self, family: int, most: int, each: int) -> None:
        # With a named protocol, asyncio turns off Nagle's algorithm, which would delay answers by 40 ms.
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._most, self._each = most, each
        self._guests = Counter[str]()

    @property
    def open(self) -> int:
        """Number of connections at this moment."""
        return self._guests.total()

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Raises BlockingIOError where it is beyond a bound, as if none had come."""
        made, address = super().accept()
        name = customer_network(str(address[0]))
        if self.open >= self._most or self._guests[name] >= self._each:
            made.close()
            raise BlockingIOError
        self._guests[name] += 1
        return _Guest(made, lambda: self._left(name)), address

    def _left(self, name: str) -> None:
        self._guests[name] -= 1
        if not self._guests[name]:
            del self._guests[name]


class _Guest(socket.socket):
    """An accepted connection that tells when it is closed."""

    def __init__(self, made: socket.socket, left: Callable[[], None]) -> None:
        super().__init__(made.family, made.type, made.proto, fileno=made.detach())
        self._left: Callable[[], None] | None = left

    def close(self) -> None:
        """Close the connection."""
        left, self._left = self._left, None
        if left is not None:
            left()
        super().close()
