"""Rates and quotas: token buckets by address and by key, and the bytes that the server holds at a time.

All are checked before a body is read. The tables have a fixed size, and the key that was unused for longest gives way.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from dataclasses import dataclass

from edgewise.core.errors import TransportError
from edgewise.engine.pacing import RATE

KEYS = 100_000  # keys in a table; an address that gives way begins with a full bucket again
FINE = 40.0  # requests that a forged one counts as at a gateway


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The limits of a server. Rates are per second. Bursts are the amounts that may come at once after a pause.

    Attributes:
        address_rate, address_burst: requests of one network address, or one IPv6 /64.
        member_rate, member_burst: requests of one key.
        byte_rate, byte_burst: bytes of bodies of one key.
        frame_bytes: the largest frame, in chunks or not.
        in_flight_bytes: bodies in memory, of all requests together.
        holder_bytes: bodies in memory of one key.
        spool_bytes: all unfinished and unused uploads on disk.
        reserve_bytes: disk space that frames may not use, so that accepted frames can still be committed.
        header_s: longest time until a request's headers have come.
        stall_s: longest time without a byte of a body.
        slowest: bytes per second that a body must average after its first ``stall_s``.
        waiting: number of long polls at a time.
        wait_s: longest duration of a long poll.
        checkin_rate: check-ins that devices without mail and without a long poll are spread over (``engine.pacing``).
        connections: number of connections at a time.
    """

    address_rate: float = 200.0
    address_burst: float = 400.0
    member_rate: float = 50.0
    member_burst: float = 200.0
    byte_rate: float = 2.0**25
    byte_burst: float = 2.0**29
    frame_bytes: int = 2**26
    in_flight_bytes: int = 2**27
    holder_bytes: int = 2**24
    spool_bytes: int = 2**36
    reserve_bytes: int = 2**26
    header_s: float = 10.0
    stall_s: float = 15.0
    slowest: float = 1024.0
    waiting: int = 4096
    wait_s: float = 30.0
    checkin_rate: float = RATE
    connections: int = 8192


class Buckets:
    """Token buckets by key. The caller supplies ``now_s`` from a clock that never goes back."""

    def __init__(self, rate: float, burst: float, keys: int = KEYS) -> None:
        self._rate, self._burst, self._keys = rate, burst, keys
        self._level: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, amount: float, now_s: float) -> float:
        """Take ``amount`` if it is available. Return 0.0, or the seconds until it would be."""
        level, at_s = self._level.pop(key, (self._burst, now_s))
        level = min(self._burst, level + (now_s - at_s) * self._rate)
        short = amount - level
        self._level[key] = (level if short > 0 else level - amount, now_s)
        if len(self._level) > self._keys:
            self._level.popitem(last=False)
        return max(0.0, short / self._rate)

    def charge(self, key: str, amount: float, now_s: float) -> None:
        """Take ``amount`` also where it is not available. The key then waits until the debt is paid."""
        self.take(key, 0.0, now_s)
        self._level[key] = (max(-self._burst, self._level[key][0] - amount), now_s)


class Gatekeeper:
    """The buckets of a server."""

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        self._held = Counter[str]()  # bytes of bodies in memory by key
        self._addresses = Buckets(limits.address_rate, limits.address_burst)
        self._members = Buckets(limits.member_rate, limits.member_burst)
        self._bytes = Buckets(limits.byte_rate, limits.byte_burst)

    @property
    def in_flight(self) -> int:
        """Bytes of all bodies in memory."""
        return self._held.total()

    def hold(self, holder: str, length: int) -> None:
        """Reserve room for a body of a key, or of an address without a key.

        A holder has at most as much room as it leaves free, so that no few of them fill the room of the others: with n
        that take all they can, a share of 1 / (n + 1) stays free.

        Raises:
            TransportError: E-BUSY.

        Source: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches" (1998).
        """
        limits = self.limits
        free = limits.in_flight_bytes - self.in_flight
        if length and self._held[holder] + length > min(limits.holder_bytes, free):
            raise LaterError("E-BUSY", "the server holds too many requests in memory.", "wait a moment.", 1.0)
        self._held[holder] += length

    def release(self, holder: str, length: int) -> None:
        """Free the room of a body."""
        self._held[holder] -= length
        if not self._held[holder]:
            del self._held[holder]

    def address(self, address: str, now_s: float) -> None:
        """Count a request of an address. An IPv6 address counts as its /64.

        Raises:
            TransportError: E-RATE.
        """
        _refuse(self._addresses.take(customer_network(address), 1.0, now_s), "requests from this address")

    def fine(self, address: str, now_s: float) -> None:
        """Count a request of an address that another server had to refuse as ``FINE`` requests."""
        self._addresses.charge(customer_network(address), FINE, now_s)

    def member(self, name: str, size: int, now_s: float) -> None:
        """Count a request of a member with a body of ``size`` bytes.

        Raises:
            TransportError: E-RATE.
        """
        _refuse(self._members.take(name, 1.0, now_s), "requests by this key")
        _refuse(self._bytes.take(name, size, now_s), "bytes from this key")


def customer_network(address: str) -> str:
    """Return the network of one customer: an IPv4 address, or an IPv6 /64, in which a customer has any number of
    addresses.

    An IPv4 address in IPv6 form is the same customer.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address  # a socket without an address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), 64), strict=False))


def _refuse(wait_s: float, what: str) -> None:
    if wait_s > 0.0:
        raise LaterError("E-RATE", f"too many {what}.", f"wait {wait_s:.1f} s.", wait_s)


class LaterError(TransportError):
    """A refusal that ends by itself. ``wait_s``: seconds until the next attempt."""

    def __init__(self, code: str, what: str, fix: str, wait_s: float) -> None:
        super().__init__(code, what, fix)
        self.wait_s = wait_s
