"""Room for connections that nobody has signed for yet, where each connection has a thread.

    openings = Openings(OpeningLimits())
    handler = openings.bounded(handler)      # handler(socket, address), called in a thread of its own
    openings.admitted()                      # in that thread, once the connection's request may open a session

A stranger can connect and then say nothing. Its thread waits for a handshake until a time limit. So threads of
strangers are counted from their first moment: in all, and by network address, so that no one address takes all room.
A connection beyond the room is closed at once, before TLS, so its other side cannot be told why. An honest device sees
a lost connection and returns.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgewise.drivers.http.limits import customer_network

Handler = Callable[[Any, Any], None]


@dataclass(frozen=True)
class OpeningLimits:
    """Bounds of connections before they are admitted.

    Attributes:
        at_once: of all network addresses together.
        of_address: of one network address, or one IPv6 /64.
        open_s: longest time until the handshakes of TLS and of the protocol are over.
    """

    at_once: int = 256
    of_address: int = 32
    open_s: float = 10.0


class Openings:
    """The connections that are not admitted yet, of one listener."""

    def __init__(self, limits: OpeningLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._taken = Counter[str]()  # connections that are not admitted, by address
        self._here = threading.local()  # ``address``: where this thread still counts

    def bounded(self, handler: Handler) -> Handler:
        """Wrap the handler of a connection. It gets a closed socket where there is no room, and must return then."""

        def handle(sock: Any, peer: Any) -> None:
            address = customer_network(str(peer[0]))
            if self._take(address):
                self._here.address = address
            else:
                sock.close()
            try:
                handler(sock, peer)
            finally:
                self.admitted()

        return handle

    def admitted(self) -> None:
        """Free the room of this thread's connection. Does nothing where it holds none."""
        if (address := getattr(self._here, "address", None)) is None:
            return
        self._here.address = None
        with self._lock:
            self._taken[address] -= 1
            if not self._taken[address]:
                del self._taken[address]

    def _take(self, address: str) -> bool:
        """Take room for a connection. Returns False where there is none."""
        with self._lock:
            if self._taken.total() >= self._limits.at_once or self._taken[address] >= self._limits.of_address:
                return False
            self._taken[address] += 1
            return True
