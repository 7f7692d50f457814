"""The [model] section of a recipe: the base model, its arithmetic and the number of bits of its frozen weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgewise.plan.recipe.rules import Section


class ModelSection(Section):
    """The model that is federated."""

    base: str = Field(
        "bundled", description='"bundled", a local directory, or "hub:owner/name@revision"; safetensors only'
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="arithmetic of training and evaluation; auto = bfloat16 for models of 4 million parameters or more "
        "on hardware that is faster with it",
    )
    quantize: Literal["none", "nf4", "int8"] = Field(
        "none",
        description="frozen linear layers of the base under adapters in 4 bits (nf4, as in QLoRA) or 8 bits a weight; "
        "needs the extra `quant`",
    )

    @property
    def quantized(self) -> bool:
        """True if the base's linear layers are stored in 4 or 8 bits."""
        return self.quantize != "none"
