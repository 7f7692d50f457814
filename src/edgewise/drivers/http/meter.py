"""Log lines and Prometheus counters of requests. Neither names a device.

A line has the first 8 characters of the caller's id. They find the device in ``edgewise fleet ls`` and are no secret.
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.process_collector import ProcessCollector

LOG = logging.getLogger("edgewise.http")
NOWHERE = "none"  # the route of a request for an address that does not exist
_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)


@dataclass(slots=True)
class Visit:
    """One request, filled in while it is answered.

    Attributes:
        id: random; the answer names it in the header ``edgewise-request``.
        route: the path of its rule, never the requested path, which may be any text.
        role: ``anyone`` until it is known.
        member: its sender. None until it is known, and for anyone.
        code: code of an error. None without one.
        received, sent: bytes of the bodies.
    """

    method: str
    route: str = NOWHERE
    role: str = "anyone"
    member: str | None = None
    status: int = 0
    code: str | None = None
    received: int = 0
    sent: int = 0
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    begun_s: float = field(default_factory=time.monotonic)


class Meter:
    """The counters of a server. ``registry``: the metrics that ``/metrics`` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "edgewise_requests", "Requests by outcome: an error code, or a status.", ["route", "method", "outcome"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "edgewise_request_seconds", "Until the answer has left; long polls wait.", ["route"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._received = Counter("edgewise_received_bytes", "Bodies of requests.", ["route"], registry=registry)
        self._sent = Counter("edgewise_sent_bytes", "Bodies of answers.", ["route"], registry=registry)
        self._faults = Counter("edgewise_faults", "Requests that failed by a fault of the server.", registry=registry)
        self.visits = 0

    def note(self, visit: Visit) -> None:
        """Count and log a finished request."""
        seconds = time.monotonic() - visit.begun_s
        self.visits += 1
        self._requests.labels(visit.route, visit.method[:8], visit.code or str(visit.status)).inc()
        self._seconds.labels(visit.route).observe(seconds)
        self._received.labels(visit.route).inc(visit.received)
        self._sent.labels(visit.route).inc(visit.sent)
        if LOG.isEnabledFor(logging.INFO):
            member = None if visit.member is None else visit.member[:8]
            fields = {
                "id": visit.id, "method": visit.method[:8], "route": visit.route, "role": visit.role,
                "member": member, "status": visit.status, "code": visit.code,
                "seconds": round(seconds, 6), "received": visit.received, "sent": visit.sent,
            }  # fmt: skip
            LOG.info("request", extra={"fields": fields})

    def fault(self, visit: Visit, error: Exception) -> None:
        """Log a fault of the server itself."""
        self._faults.inc()
        fields = {"id": visit.id, "route": visit.route}
        LOG.error("the server failed at a request", exc_info=error, extra={"fields": fields})

    def outcomes(self) -> set[tuple[str, str, str]]:
        """Return (method, route, outcome) of all requests so far."""
        return {
            (s.labels["method"], s.labels["route"], s.labels["outcome"])
            for metric in self._requests.collect()
            for s in metric.samples
            if s.name.endswith("_total")
        }
