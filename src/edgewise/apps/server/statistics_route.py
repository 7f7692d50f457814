"""The route that reads the statistics of a run of ``edgewise stats``."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel

from edgewise.apps.runs.statistics import read_statistics
from edgewise.apps.server import submission
from edgewise.drivers.fleet import served
from edgewise.drivers.http.service import Service


class StatisticsPart(BaseModel):
    """One part of the statistics: its values, the noise on each, and what the values are shares of."""

    values: list[float]
    noise_std: float
    kind: str


class ReleasedStatistics(BaseModel):
    """The statistics that a run has released so far (``apps.runs.statistics.read_statistics``)."""

    devices: int
    contributed: list[int]
    privacy: str
    epsilon: float | None
    budget: float | None
    parts: dict[str, StatisticsPart]


class StatisticsRoutes:
    """The route of statistics."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def add_to(self, api: FastAPI) -> None:
        """Register the route."""
        api.add_api_route("/v1/runs/{run}/statistics", self.statistics, methods=["GET"])

    async def statistics(self, run: str) -> ReleasedStatistics:
        """Read the released statistics of a run. Answers E-COMBO where the run trains a model."""
        await self._service.read(lambda c: served.find(c, run))
        out = submission.folder(self._service, run)
        return ReleasedStatistics(**await self._service.aside(lambda: read_statistics(out)))
