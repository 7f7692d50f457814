"""Recipe settings for a report: the training in words, and the keys that differ from their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from edgewise.apps.report import numbers
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.recipe.trainable import TrainableSection


def training_settings(s: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the names and values of the training settings, from ``summary.build``."""
    recipe = s["recipe"]
    t, cohort = recipe["training"], recipe["round"]
    what = TrainableSection(**recipe["trainable"]).says
    rate = f"learning rate {t['lr']:g}"
    if t["schedule"] == "cosine":
        rate += ", falling to a tenth over the rounds (cosine)"
    if t["weight_decay"]:
        rate += f", weight decay {t['weight_decay']:g}"
    if t["momentum"]:
        rate += f", momentum {t['momentum']:g}"
    steps = " in steps" if t["local_epochs"] else ""
    work = f"{numbers.local_work(t['local_steps'], t['local_epochs'])}{steps} of {t['batch']} blocks"
    everyone = cohort["sampling"] == "all"
    who = "every device in every round" if everyone else f"{cohort['cohort']} devices ({cohort['sampling']} sampling)"
    return [
        ("base", str(s["facts"].get("model") or recipe["model"]["base"])),
        ("trained", f"{what}: {numbers.count(s['trainable'])} of {numbers.count(s['parameters'])}"),
        ("on devices", f"{t['optimizer']}, {rate}"),
        ("each round", f"{work} of {recipe['data']['sequence_len']} tokens"),
        ("cohort", who),
        ("on the server", _part_in_words(recipe["strategy"])),
    ]


def _part_in_words(table: Mapping[str, Any]) -> str:
    """Write a part of a recipe with its keys."""
    given = ", ".join(f"{k} = {numbers.plain(v)}" for k, v in table.items() if k != "kind")
    return f"{table['kind']} ({given})" if given else str(table["kind"])


def settings_not_default(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a resolved recipe that differ from their defaults, in the recipe's order."""
    out: dict[str, Any] = {}
    for name, field in Recipe.model_fields.items():
        key = field.alias or name
        if key not in resolved:
            continue
        value, default = resolved[key], field.default
        if isinstance(default, BaseModel):
            usual = default.model_dump(mode="json")
            value = {k: v for k, v in value.items() if k not in usual or usual[k] != v}
            if value:
                out[key] = value
        elif field.is_required() or value != default:
            out[key] = value
    return out
