"""Sections of a recipe on what is made of a run: its report, the models it is compared with, and its folder."""

from __future__ import annotations

from pydantic import Field

from edgewise.plan.recipe.rules import Section


class ReportSection(Section):
    """Data that the report shows. By default it shows none."""

    samples: int = Field(
        0,
        ge=0,
        le=8,
        description="held-out texts that the report prints, and how the base and the model that counts go on with them",
    )


class CompareSection(Section):
    """Models that the federated one is compared with. The first two cost about as much compute as the run, each."""

    local_only: bool = Field(True, description="each device alone, same steps")
    centralised: bool = Field(True, description="all text in one place, same number of steps in total")
    longer: int = Field(0, ge=0, le=64, description="some devices alone, for so many times the steps; 0 = not run")
    longer_devices: int = Field(6, ge=1, description="how many: spread evenly over those that evaluations measure")
    unseen: float = Field(
        0.0, ge=0, lt=1, description="share of devices that are in no round, and are measured when the rounds are over"
    )


class StoreSection(Section):
    """Files that a run's folder keeps."""

    totals_mb: float = Field(
        500.0,
        ge=0,
        le=1e9,
        description="room for released totals, 10^6 bytes; `edgewise run verify` replays those that are kept; 0 = none",
    )
