"""The recipe of statistics before training, made from that of training: the same promises about other vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgewise.core.errors import RecipeError
from edgewise.plan.recipe.privacy import DP_WORDS
from edgewise.plan.recipe.recipe import Recipe, from_plain
from edgewise.plan.recipe.statistics import ROUNDS

_KEPT = ("schema", "seed", "privacy", "data", "trust", "simulation")
_ROUND = ("sampling", "cohort", "overselect", "minimum", "deadline_s")
_DP = ("epsilon", "noise_multiplier", "delta", "bits", "amplification")


def counting_recipe(recipe: Recipe, what: str, bound_l2: float, placed: Callable[[str], str]) -> Recipe:
    """Make a recipe in which every device contributes one vector of histograms a round and counts as one.

    Args:
        what: the statistics, a word of ``statistics.of``.
        bound_l2: bound of the L2 norm of a contribution, which is the clip where there is noise.
        placed: makes a path of the recipe absolute.
    Raises:
        RecipeError: E-COMBO where blocks of text are protected instead of devices, and as any recipe.
    """
    if recipe.dp.example:
        why = 'dp.unit = "example" protects single blocks of text, and a statistic has no steps to noise.'
        raise RecipeError("E-COMBO", why, 'write unit = "device" for the statistics.')
    plain = recipe.resolved()
    paths = plain["data"]["path"]
    made: dict[str, Any] = {key: plain[key] for key in _KEPT if key in plain}
    made |= {
        "name": f"{recipe.name[:50]}-statistics", "metrics": "none", "training": {"lr": 1.0, "local_steps": 1},
        "model": {"base": placed(recipe.model.base)}, "trainable": {"kind": "full"}, "strategy": {"kind": "fedavg"},
        "data": {**plain["data"], "path": [placed(one) for one in paths] if isinstance(paths, list) else placed(paths)},
        "round": {key: plain["round"][key] for key in _ROUND} | {"rounds": ROUNDS[what]}, "statistics": {"of": what},
        "eval": {"every": 0}, "compare": {"local_only": False, "centralised": False},
    }  # fmt: skip
    if recipe.privacy == "hidden":
        made["stage"] = _hidden_stages(bound_l2)
    if recipe.privacy in DP_WORDS:
        made["dp"] = {key: plain["dp"][key] for key in _DP if plain["dp"].get(key)} | {"clip_l2": bound_l2}
    return from_plain(made, "the recipe of the statistics")


def _hidden_stages(bound_l2: float) -> list[dict[str, Any]]:
    """Return the stages of a hidden sum in which every device counts as one. The grid is fine enough for 1/10,000."""
    return [
        {"kind": "weigh", "cap": 1},
        {"kind": "clip", "l2": 2.0 * bound_l2},  # of the weighed vector, so it changes nothing
        {"kind": "clamp", "linf": 1.0},
        {"kind": "quantize", "bits": 16, "grid": "shared"},
        {"kind": "wrap"},
    ]
