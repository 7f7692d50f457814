"""The part of what is trained that stays on its device: its segments, by the recipe's [personal] section.

parts = own_part(recipe, spec)          # None where all that is trained travels
parts.shared                            # the layout of the run's vector
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from edgewise.core.blocks import from_last
from edgewise.core.errors import ModelError
from edgewise.core.parts import ModelParts
from edgewise.core.vector import Spec
from edgewise.plan.recipe.personal import PARTED
from edgewise.plan.recipe.recipe import Recipe

_OWN = re.compile(r"\.lora_(?:embedding_)?[AB]\.own(?:\.|$)")  # a factor of the device's own adapter, or its gate
SHOWN = 6  # A message lists so many names.


def own_part(recipe: Recipe, spec: Spec) -> ModelParts | None:
    """Choose the own part of a model by the recipe. None where ``personal.method`` has none.

    ``personal.parts`` are patterns of segment names. Without them the part is the last ``personal.blocks`` numbered
    blocks and what follows the last block in the layout: the final norm, and a head that is not tied to the embedding.
    With ``dual`` it is the device's own adapter and its gates.

    Args:
        spec: the layout of all trained parameters.
    Raises:
        ModelError: E-TARGETS where the part is empty, where it is all that is trained, or where a pattern matches
            nothing.
    """
    wanted = recipe.personal
    if wanted.method not in PARTED:
        return None
    names = [s.name for s in spec.segments]
    if wanted.own_adapter is not None:
        own = [name for name in names if _OWN.search(name)]
        if not own:
            what = 'personal.method = "dual" needs a trainer that puts a second adapter into the model.'
            raise ModelError("E-TARGETS", what, "use the text trainer.")
        return ModelParts(spec, own)
    for pattern in wanted.parts:
        if not any(fnmatchcase(name, pattern) for name in names):
            what = f"personal.parts: `{pattern}` matches no trained parameter."
            raise ModelError("E-TARGETS", what, f"these are trained: {', '.join(_shortened(names))}.")
    if wanted.parts:
        own = [name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted.parts)]
    else:
        own = _last(names, wanted.blocks)
    said = f"personal.parts = {wanted.parts}" if wanted.parts else f"personal.blocks = {wanted.blocks}"
    if not own:
        what = f"{said} leaves nothing on the device: no trained parameter follows the last block."
        raise ModelError("E-TARGETS", what, "write blocks = 1 or more, or name parameters in personal.parts.")
    if len(own) == len(names):
        what = f"{said} keeps all that is trained on the device, and nothing would travel."
        fix = f"keep less. These are trained: {', '.join(_shortened(names))}."
        raise ModelError("E-TARGETS", what, fix)
    return ModelParts(spec, own)


def _last(names: list[str], blocks: int) -> list[str]:
    """Return the names in the last blocks, and those without a block after the last one in the layout."""
    return [name for name, number in zip(names, from_last(names), strict=False) if number <= blocks]


def _shortened(names: list[str]) -> list[str]:
    return [*names[:SHOWN], f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else names
