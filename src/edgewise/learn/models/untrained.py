"""Load a recipe's model before any training: its initial vector, and the files that devices need. It needs no text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewise.core.vector import Spec, Vector
from edgewise.learn.models.hub import weights
from edgewise.learn.models.quantized import count, user_cache
from edgewise.learn.text.prepared import prepare
from edgewise.plan.own_part import own_part
from edgewise.plan.recipe.engine import EngineSection
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.split_part import split_part

SETTINGS = ("*.json", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True)
class Untrained:
    """A model before the first round.

    Attributes:
        spec: layout of the trained parameters, of those that travel.
        initial: the trained parameters, float32 of ``spec``.
        files: the files that ``transformers`` reads. None for the bundled model, which every device has.
        facts: the model's part of ``learn.text.trainer.TextTrainer.describe``.
    """

    spec: Spec
    initial: Vector = field(repr=False)
    files: tuple[Path, ...]
    facts: dict[str, Any]


def untrained(recipe: Recipe, recipe_dir: Path) -> Untrained:
    """Load the recipe's model. Raises ModelError as ``learn.text.trainer.make``."""
    on_cpu = recipe.model_copy(update={"engine": EngineSection(device="cpu")})  # Nothing is computed here.
    prepared = prepare(on_cpu, recipe_dir, user_cache())
    loaded, flat = prepared.loaded, prepared.flat
    facts = {
        "model": loaded.name,
        "parameters": sum(count(p) for p in loaded.model.parameters()),
        "trainable": flat.spec.dim,
        "vocabulary": loaded.tokens.size,
        **({"model_commit": loaded.commit} if loaded.commit else {}),
    }
    files = () if recipe.model.base == "bundled" else _files(loaded.folder)
    parts = own_part(recipe, flat.spec) or split_part(recipe, flat.spec)
    if parts is None:
        return Untrained(flat.spec, flat.read(), files, facts)
    return Untrained(parts.shared, parts.split(flat.read())[0], files, facts)


def _files(folder: Path) -> tuple[Path, ...]:
    """List settings, tokenizer and the weights that ``transformers`` reads: one file, or those of an index."""
    found = {path for pattern in SETTINGS for path in folder.glob(pattern)}
    return tuple(sorted({*found, *weights(folder)}))
