"""Settings of language models that a recipe of other data cannot have: keywords and vibration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgewise.plan.recipe.rules import SettingError

_READ = ("source", "path")  # keys of [data] that say something about data other than text


def text_faults(recipe: Any, source: str, reads: str, trains: str) -> Iterator[SettingError]:
    """Find the settings of a recipe (``plan.recipe.recipe.Recipe``) that are about text.

    Args:
        source: word of ``data.source``. reads: what its file holds. trains: what it does, as the end of a sentence.
    """
    yield from text_data_faults(recipe, source, reads)
    yield from text_model_faults(recipe, source, trains)


def text_data_faults(recipe: Any, source: str, reads: str) -> Iterator[SettingError]:
    """Find the settings of [data] that are about text. Arguments as in ``text_faults``."""
    if not isinstance(recipe.data.path, str):
        yield SettingError(
            "E-COMBO", f'data.source = "{source}" reads one file, and data.path lists several', "name it"
        )
    for key, field in type(recipe.data).model_fields.items():
        if key not in _READ and getattr(recipe.data, key) != field.default:
            what = f'data.{key} is about text, and data.source = "{source}" reads {reads}'
            yield SettingError("E-COMBO", what, "leave it out")


def text_model_faults(recipe: Any, source: str, trains: str) -> Iterator[SettingError]:
    """Find the settings that are for language models. Arguments as in ``text_faults``."""
    for key, used in _text_only(recipe).items():
        if used:
            what = f'{key} is for language models, and data.source = "{source}" {trains}'
            full = 'write kind = "full" in [trainable], which differential privacy alone does not choose'
            yield SettingError("E-COMBO", what, full if key.startswith("trainable") else "leave it out")


def _text_only(recipe: Any) -> dict[str, bool]:
    """List what only language models have, and whether the recipe asks for it."""
    return {
        "model.base": recipe.model != type(recipe.model)(),
        f'trainable.kind = "{recipe.trainable.kind}"': recipe.trainable.kind == "lora",
        "[split]": recipe.split.used,
        "[distill]": recipe.distill.active,
        "[statistics]": recipe.statistics.active,
        "personal.own_adapter": bool(recipe.personal.own_adapter),
        "report.samples": bool(recipe.report.samples),
        "engine.max_memory_mb and device_memory_mb": bool(recipe.engine.limits),
        "training.checkpointing": recipe.training.checkpointing,
        "engine.batch_devices": recipe.engine.batch_devices > 1,
    }
