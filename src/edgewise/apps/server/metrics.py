"""The content of ``/metrics``: counters of requests, and the present state of the server. No member is named."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa
from cryptography import x509
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from edgewise.drivers.fleet.tables import MAIL, MEMBERS, ROUNDS, UPLOADS
from edgewise.drivers.http.service import Service


def prometheus_metrics(service: Service) -> bytes:
    """Write all metrics in Prometheus' text format."""
    now = CollectorRegistry()
    now.register(_Gauges(service))
    return generate_latest(service.meter.registry) + generate_latest(now)


class _Gauges(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yield nothing, because the metrics are collected when they are shown."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the present state as gauges."""
        service = self._service
        members = GaugeMetricFamily("edgewise_members", "Members by role and status.", labels=["role", "status"])
        frames = GaugeMetricFamily("edgewise_frames", "Frames that lie here, by direction.", labels=["direction"])
        with service.database.read() as c:
            role_status = (MEMBERS.c.role, MEMBERS.c.status)
            for role, status, count in c.execute(sa.select(*role_status, sa.func.count()).group_by(*role_status)):
                members.add_metric([role, status], count)
            for inbound, count in c.execute(sa.select(MAIL.c.inbound, sa.func.count()).group_by(MAIL.c.inbound)):
                frames.add_metric(["from devices" if inbound else "to devices"], count)
            rounds = c.execute(sa.select(sa.func.count()).select_from(ROUNDS)).scalar() or 0
            begun = c.execute(sa.select(sa.func.sum(UPLOADS.c.size))).scalar() or 0
        yield members
        yield frames
        yield GaugeMetricFamily("edgewise_open_rounds", "Rounds that take frames.", value=rounds)
        yield GaugeMetricFamily("edgewise_upload_bytes", "Announced sizes of all open uploads.", value=begun)
        yield GaugeMetricFamily("edgewise_long_polls", "Devices that wait for mail.", value=service.waiting)
        yield GaugeMetricFamily("edgewise_body_bytes", "Bodies in memory.", value=service.gate.in_flight)
        yield GaugeMetricFamily("edgewise_disk_free_bytes", "Of the server's folder.", value=service.free_bytes())
        yield GaugeMetricFamily("edgewise_database_bytes", "Of its file.", value=service.database.path.stat().st_size)
        ready = GaugeMetricFamily("edgewise_ready", "1 where a check holds, else 0.", labels=["check"])
        for name, held in service.checks().items():
            ready.add_metric([name], float(held))
        yield ready
        if service.authority:
            path = service.folder / "tls.pem"
            ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
            yield GaugeMetricFamily("edgewise_certificate_ends_seconds", "Since 1970.", value=ends)
