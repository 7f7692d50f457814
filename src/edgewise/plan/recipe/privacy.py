"""The words of ``privacy``: the values that each chooses where a recipe gives none, and the words they replace.

    >>> chosen({"privacy": "hidden"})["merge.kind"]
    'secure_sum'

A word alone is a complete recipe, but for the numbers of [dp] that only a person can decide. ``hidden`` and
``distributed_dp`` choose the masks of one server (``secure_sum``) for any population: the two servers of
``shared_sum`` need a second operator, whom no recipe can assume. A key that the recipe gives is never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Privacy = Literal["none", "hidden", "central_dp", "distributed_dp", "local_dp"]
DP_WORDS = ("central_dp", "distributed_dp", "local_dp")  # those that promise an epsilon

# Words of earlier versions -> the word, and ``dp.unit``, to write.
RENAMED = {
    "central": ("central_dp", "device"),
    "distributed": ("distributed_dp", "device"),
    "local": ("local_dp", "device"),
    "record": ("local_dp", "example"),
}

_WEIGHED_CLIP: list[dict[str, Any]] = [{"kind": "weigh"}, {"kind": "clip", "l2": 4.0}]

# Masks add integers of one grid that all devices share. The clip bounds the whole update. Behind the rotation a
# coordinate has the standard deviation l2 / sqrt(d) at most, and one in 16,000 lies beyond four of them.
_MASKED: list[dict[str, Any]] = [
    *_WEIGHED_CLIP,
    {"kind": "rotate"},
    {"kind": "clamp", "stds": 4.0},
    {"kind": "quantize", "bits": 4, "grid": "shared"},
    {"kind": "wrap"},
]


def chosen(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a recipe's word chooses for it, by dotted key; those that the recipe gives are not among them.

    Args:
        plain: the recipe's tables as they were read, not yet validated.
    """
    word = plain.get("privacy")
    out: dict[str, Any] = {}
    if word == "hidden":
        # The ladder of an adaptive codec brings grid and ring itself.
        out["stage"] = _WEIGHED_CLIP if plain.get("codec") == "adaptive" else _MASKED
    elif word in DP_WORDS:
        # Nothing about a device's data leaves it beside the noised sum, and noise enters adapters once.
        out |= {"metrics": "none", "stage": []}
        trainable = plain.get("trainable", {})
        if isinstance(trainable, dict) and "layers" not in trainable:
            out["trainable.kind"] = "ffa_lora"
    if word in ("hidden", "distributed_dp"):
        out["merge.kind"] = "secure_sum"
    drawn = plain.get("round")
    if word == "central_dp" and isinstance(drawn, dict) and drawn.get("sampling") == "poisson":
        out["round.minimum"] = 0.0  # an abandoned round would tell how many devices came
    return {key: value for key, value in out.items() if not _given(plain, key)}


def filled(plain: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, Any]:
    """The tables with ``chosen`` values put in; nothing is changed in place."""
    out = dict(plain)
    for key, value in choices.items():
        section, _, name = key.partition(".")
        out[section] = {**out.get(section, {}), name: value} if name else value
    return out


def _given(plain: Mapping[str, Any], key: str) -> bool:
    """Whether the recipe gives the key, or something in the section's place that validation refuses."""
    section, _, name = key.partition(".")
    table = plain.get(section)
    return section in plain and (not name or not isinstance(table, dict) or name in table)
