"""The base of a recipe's sections, and the section on differential privacy with its words."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Privacy = Literal["none", "hidden", "central", "distributed", "local", "record"]
DP_WORDS = ("central", "distributed", "local", "record")  # those that promise an epsilon


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversions between kinds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DpSection(Section):
    """Differential privacy: of whole devices ("central", "distributed", "local"), or of their records ("record")."""

    epsilon: float = Field(0.0, ge=0, description="budget of the whole run; required")
    delta: float = Field(0.0, ge=0, lt=1, description="required; well below 1 / number of devices")
    clip_l2: float = Field(
        0.0, ge=0, description="bound of one update's L2 norm, for \"record\" of one block's gradient; required"
    )
    tensor_l2: float = Field(
        0.0, ge=0, description="bound of every tensor's L2 norm by itself, in place of the whole's; 0 = off"
    )
    adaptive_clip: bool = Field(False, description="central: clip_l2 is where the clip begins; it follows the median")
    sample_rate: float = Field(
        0.0, ge=0, le=1, description="record: probability with which a local step takes each block; required for it"
    )
    noise_multiplier: float = Field(
        0.0, ge=0, description="noise on the sum / clip_l2; 0 = as little as the budget allows for all rounds"
    )
    noise: Literal["independent", "correlated"] = Field(
        "independent",
        description="correlated (central, cyclic cohorts): a round takes back part of the noise of those before it",
    )
    buffers: int = Field(3, ge=1, le=4, description="correlated: memory of the noise, in models; more is better")
    amplification: Literal["auto", "poisson"] = Field(
        "auto", description="poisson: refuse where amplification by Poisson sampling cannot be counted"
    )
    corrupt: float = Field(0.1, ge=0, le=0.5, description="distributed: share of a cohort that may leave out its noise")
    bits: int = Field(0, ge=0, le=32, description="distributed: of the ring; 0 = the smallest that will do")

    def check(self, privacy: Privacy) -> None:
        """Raises ValueError (E-COMBO, E-MISSING) where the section and the recipe's word do not go together."""
        if privacy not in DP_WORDS:
            if self != DpSection():
                raise ValueError(f'E-COMBO: [dp] is for privacy = {", ".join(DP_WORDS)}, here it is "{privacy}"')
            return
        for key in ("epsilon", "delta", "clip_l2"):
            if not getattr(self, key):
                raise ValueError(f'E-MISSING: privacy = "{privacy}" needs dp.{key}')
        if self.adaptive_clip and privacy != "central":
            raise ValueError('E-COMBO: dp.adaptive_clip is for privacy = "central"')
        if self.tensor_l2 and (self.adaptive_clip or privacy == "record"):
            raise ValueError("E-COMBO: dp.tensor_l2 is for whole updates and a clip that stays")
        distributed, correlated = privacy == "distributed", self.noise == "correlated"
        for key, read, by in (
            ("corrupt", distributed, 'privacy = "distributed"'),
            ("bits", distributed, 'privacy = "distributed"'),
            ("buffers", correlated, 'dp.noise = "correlated"'),
        ):
            if not read and getattr(self, key) != DpSection.model_fields[key].default:
                raise ValueError(f"E-COMBO: dp.{key} is for {by}; nothing reads it here")
        if (privacy == "record") != bool(self.sample_rate):
            raise ValueError('E-MISSING: dp.sample_rate goes with privacy = "record", and only with it')
