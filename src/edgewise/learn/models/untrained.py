"""Load a recipe's model before any training: its initial vector, and the files that devices need. It needs no text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewise.core.vector import Spec, Vector
from edgewise.learn.models.architecture import embeddings, text_config
from edgewise.learn.models.cut import probed_cut
from edgewise.learn.models.hub import INDEX, hub_weights
from edgewise.learn.models.quantized import count, user_cache
from edgewise.learn.models.shards import write_shards
from edgewise.learn.text.prepared import prepare
from edgewise.plan.own_part import own_part
from edgewise.plan.recipe.engine import EngineSection
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.split_part import split_facts, split_part, split_token_bytes

SETTINGS = ("*.json", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True)
class UntrainedModel:
    """A model before the first round.

    Attributes:
        spec: layout of the trained parameters, of those that travel.
        initial: the trained parameters, float32 of ``spec``.
        files: the files that ``transformers`` reads. None for the bundled model, which every device has. Of a split
            model, the weights are in a file for each block (``learn.models.shards``).
        facts: the model's part of ``learn.text.trainer.TextTrainer.describe``.
        rest: with a split model, the trained parameters behind the cut.
    """

    spec: Spec
    initial: Vector = field(repr=False)
    files: tuple[Path, ...]
    facts: dict[str, Any]
    rest: Vector | None = field(default=None, repr=False)


def load_untrained(recipe: Recipe, recipe_dir: Path, shards: Path | None = None) -> UntrainedModel:
    """Load the recipe's model.

    Args:
        shards: an empty folder for the weights of a split model. None leaves them in the files that they are in.
    Raises:
        ModelError: as ``learn.text.trainer.make``. Of a split model also E-CUT as ``learn.models.cut.check_cut``, and
            as ``learn.models.shards.write_shards``. StoreError: E-DISK.
    """
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
    files = () if recipe.model.base == "bundled" else _files(loaded.folder, recipe, shards)
    split = split_part(recipe, flat.spec)
    parts = own_part(recipe, flat.spec) or split
    if parts is None:
        return UntrainedModel(flat.spec, flat.read(), files, facts)
    shared, own = parts.split(flat.read())
    if split is None:
        return UntrainedModel(parts.shared, shared, files, facts)
    model = loaded.model
    probed_cut(model, recipe)
    tokens = split_token_bytes(recipe, text_config(model.config).hidden_size, int(embeddings(model).weight.shape[0]))
    return UntrainedModel(parts.shared, shared, files, {**facts, **split_facts(recipe, parts, tokens)}, own)


def _files(folder: Path, recipe: Recipe, shards: Path | None) -> tuple[Path, ...]:
    """List settings, tokenizer and the weights that ``transformers`` reads: one file, or those of an index."""
    found = {path for pattern in SETTINGS for path in folder.glob(pattern)}
    if shards is not None and recipe.split.used:
        return tuple(sorted({*(p for p in found if p.name != INDEX), *write_shards(folder, shards)}))
    return tuple(sorted({*found, *hub_weights(folder)}))
