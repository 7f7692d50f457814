"""Load a recipe's model before any training: its initial vector, and the files that devices need. It needs no text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.core.vector import Spec, Vector
from edgewise.learn.models.architecture import embeddings, text_config
from edgewise.learn.models.cut import probed_cut
from edgewise.learn.models.hub import INDEX, hub_weights
from edgewise.learn.models.load import locate_model
from edgewise.learn.models.quantized import count, user_cache
from edgewise.learn.models.shards import write_shards
from edgewise.learn.text.cross_site import CROSS_SITE
from edgewise.learn.text.prepared import prepare
from edgewise.learn.text.statistics import statistics_layout
from edgewise.learn.text.tokens import load_tokenizer
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


def load_unmeasured(recipe: Recipe, recipe_dir: Path, shards: Path | None = None) -> UntrainedModel:
    """Make the start of a run of statistics (``[statistics]``): zeros, and the files that devices need to measure.

    To count text they need the tokenizer alone, so no weights travel. Raises ModelError as ``load_untrained``.
    """
    folder, name = locate_model(recipe.model.base, recipe_dir)
    size = load_tokenizer(folder).size
    if recipe.statistics.of == "text":
        spec, files = statistics_layout(size), _settings_files(folder)
    else:
        spec, files = CROSS_SITE, _files(folder, recipe, shards)
    facts = {"model": name, "parameters": spec.dim, "trainable": spec.dim, "vocabulary": size}
    initial = np.zeros(spec.dim, np.float32)
    return UntrainedModel(spec, initial, () if recipe.model.base == "bundled" else files, facts)


def _settings_files(folder: Path) -> tuple[Path, ...]:
    """List the files that hold settings and the tokenizer."""
    return tuple(sorted(path for pattern in SETTINGS for path in folder.glob(pattern)))


def _files(folder: Path, recipe: Recipe, shards: Path | None) -> tuple[Path, ...]:
    """List settings, tokenizer and the weights that ``transformers`` reads: one file, or those of an index."""
    found = set(_settings_files(folder))
    if shards is not None and recipe.split.used:
        return tuple(sorted({*(p for p in found if p.name != INDEX), *write_shards(folder, shards)}))
    return tuple(sorted({*found, *hub_weights(folder)}))
