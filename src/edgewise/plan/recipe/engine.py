"""The [engine] section of a recipe: the hardware that trains. It is no part of a run's identity."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgewise.core.errors import RecipeError
from edgewise.plan.recipe.rules import Section


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

    def on_cpu(self, whose: str) -> EngineSection:
        """Return this section for ``whose`` code, which reads data on the CPU. Raises RecipeError(E-HARDWARE)."""
        if self.device not in ("auto", "cpu"):
            what = f'engine.device = "{self.device}" with {whose}, which reads data on the CPU.'
            raise RecipeError("E-HARDWARE", what, 'write engine.device = "auto" or "cpu".')
        return self.model_copy(update={"device": "cpu"})
