"""The [engine] section of a recipe: the hardware that trains. It is no part of a run's identity."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from edgewise.core.errors import RecipeError
from edgewise.plan.recipe.rules import Section, SettingError, rule


class EngineSection(Section):
    """The hardware that trains. The run's record says what it was, and the run goes on with the same only."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto",
        description="processor that trains and measures; auto = a GPU where torch finds one, else the CPU; all "
        "simulated devices share it, and worker processes share out several",
    )
    batch_devices: int = Field(
        1, ge=1, le=1024, description="simulated devices that train in one pass; `edgewise check` proposes a number"
    )

    max_memory_mb: float = Field(
        0.0,
        ge=0,
        description="memory of one training device, 10^6 bytes beside Python and torch; micro-batches, checkpointing "
        "and bfloat16 are picked so that the forecast fits, in this order; 0 = no limit",
    )
    device_memory_mb: dict[str, float] = Field(
        {},
        description="devices with limits of their own: patterns of device ids, "
        '{"phone-*" = 900}; all others have `max_memory_mb`',
    )

    @rule
    def _memory_positive(self) -> Iterator[SettingError]:
        if any(not limit > 0 for limit in self.device_memory_mb.values()):
            what = "engine.device_memory_mb holds a limit that is not above 0"
            yield SettingError("E-VALUE", what, "give 10^6 bytes, or leave the pattern out")

    @property
    def limits(self) -> dict[str, float]:
        """The limits of memory, by pattern of device ids, the first match first. Empty without a limit."""
        return {**self.device_memory_mb, **({"*": self.max_memory_mb} if self.max_memory_mb else {})}

    def memory_mb(self, device: str) -> float:
        """Return the memory that a device may train with. 0 without a limit."""
        return next((limit for wanted, limit in self.limits.items() if fnmatchcase(device, wanted)), 0.0)

    def on_cpu(self, whose: str) -> EngineSection:
        """Return this section for ``whose`` code, which reads data on the CPU. Raises RecipeError(E-HARDWARE)."""
        if self.device not in ("auto", "cpu"):
            what = f'engine.device = "{self.device}" with {whose}, which reads data on the CPU.'
            raise RecipeError("E-HARDWARE", what, 'write engine.device = "auto" or "cpu".')
        return self.model_copy(update={"device": "cpu"})
