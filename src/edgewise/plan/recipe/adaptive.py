"""The [adaptive] section of a recipe: codecs that a device chooses from, and the size of its upload."""

from __future__ import annotations

from pydantic import Field

from edgewise.plan.recipe.rules import Section


class AdaptiveSection(Section):
    """The codecs that a device may choose from with ``codec = "adaptive"``, and the size of its upload."""

    max_upload_mb: float = Field(5.0, gt=0, description="largest upload of one device and round, 10^6 bytes")
    deadline_s: float = Field(0.0, ge=0, description="when an upload has to be complete; 0 = round.deadline_s")
    slack: float = Field(0.1, ge=0, lt=1, description="share of the deadline that devices keep free")
    patience: float = Field(
        0.1,
        ge=0,
        description="visible updates without record noise: upload time / time until then, at most; 0 = no limit",
    )
    ladder: list[str] = Field([], description="names of the rungs, see `edgewise check`; empty = all that fit")
    groups: int = Field(
        3, ge=1, le=16, description="behind a hidden sum: into how many groups of one rung a cohort is sorted at most"
    )
