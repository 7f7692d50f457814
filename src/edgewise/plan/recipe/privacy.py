"""The words of ``privacy`` and the defaults that each chooses.

    >>> chosen({"privacy": "hidden"})["merge.kind"]
    'secure_sum'

A word alone makes a complete recipe, except for the numbers of [dp] that only a person can decide. ``hidden`` and
``distributed_dp`` choose the masks of one server (``secure_sum``) for any population. The two servers of
``shared_sum`` need a second operator, whom no recipe can assume. A key that the recipe gives is never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Privacy = Literal["none", "hidden", "central_dp", "distributed_dp", "local_dp"]
DP_WORDS = ("central_dp", "distributed_dp", "local_dp")  # These words promise an epsilon.

AUTO = "auto"  # the value of a key that the recipe leaves to the word of privacy

# Words of earlier versions. Each has the word, and ``dp.unit``, that replace it.
RENAMED = {
    "central": ("central_dp", "device"),
    "distributed": ("distributed_dp", "device"),
    "local": ("local_dp", "device"),
    "record": ("local_dp", "example"),
}

_WEIGHED_CLIP: list[dict[str, Any]] = [{"kind": "weigh"}, {"kind": "clip", "l2": 4.0}]

# Masks add integers of one grid that all devices share. The clip bounds the whole update. After the rotation a
# coordinate has a standard deviation of at most l2 / sqrt(d), and one in 16,000 lies beyond four of them.
_MASKED: list[dict[str, Any]] = [
    *_WEIGHED_CLIP,
    {"kind": "rotate"},
    {"kind": "clamp", "stds": 4.0},
    {"kind": "quantize", "bits": 4, "grid": "shared"},
    {"kind": "wrap"},
]


# A device that sums records of its own takes no step: the server does.
RECORD_SUMS: dict[str, Any] = {
    "training.optimizer": "sgd",
    "training.lr": 1.0,
    "training.schedule": "constant",
    "training.local_steps": 1,
    "training.clip_grad": 0.0,
}


# The rule that averages adapters, where the recipe leaves it to the word (`trainable.rule = "auto"`), and the reason.
RULES = {
    "none": ("fedit", "both factors train, and the error of averaging them apart is small at usual learning rates"),
    "hidden": ("fedit", "it is linear, as a hidden sum needs; both factors train"),
    **dict.fromkeys(DP_WORDS, ("ffa", "A is fixed, so noise enters the product of the factors once")),
}


def chosen(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a recipe's word chooses, by dotted key. Keys that the recipe gives are left out.

    Args:
        plain: the recipe's tables as they were read, not yet validated.
    """
    word = plain.get("privacy")
    out: dict[str, Any] = {}
    if word == "hidden":
        # An adaptive codec brings its own grid and ring.
        out["stage"] = _WEIGHED_CLIP if plain.get("codec") == "adaptive" else _MASKED
    elif word in DP_WORDS:
        # Only the noised update may leave a device. With a fixed factor A, noise enters the product of an adapter once.
        out |= {"metrics": "none", "stage": []}
    trainable = plain.get("trainable", {})
    if isinstance(trainable, dict):
        if word in DP_WORDS and "layers" not in trainable:
            out["trainable.kind"] = "lora"
        if isinstance(word, str) and word in RULES and trainable.get("kind", out.get("trainable.kind")) == "lora":
            out["trainable.rule"] = "ffa" if trainable.get("ranks") or trainable.get("rank_shares") else RULES[word][0]
    if word in ("hidden", "distributed_dp"):
        out["merge.kind"] = "secure_sum"
    dp = plain.get("dp")
    if word == "distributed_dp" and isinstance(dp, dict) and dp.get("unit") == "example":
        out |= RECORD_SUMS
    drawn = plain.get("round")
    if word == "central_dp" and isinstance(drawn, dict) and drawn.get("sampling") == "poisson":
        out["round.minimum"] = 0.0  # An abandoned round would reveal the number of devices that came.
    return {key: value for key, value in out.items() if not _is_given(plain, key)}


def filled(plain: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables with the ``chosen`` values put in. The arguments stay as they are."""
    out = dict(plain)
    for key, value in choices.items():
        section, _, name = key.partition(".")
        out[section] = {**out.get(section, {}), name: value} if name else value
    return out


def reason_of_word(word: str, key: str, value: Any) -> str | None:
    """Return why a word chooses this value of a key, where that is not plain from the word itself. Else None."""
    if key != "trainable.rule":
        return None
    return RULES[word][1] if value == RULES[word][0] else "devices of unequal rank share one A"


def _is_given(plain: Mapping[str, Any], key: str) -> bool:
    """Tell whether the recipe gives the key. "auto" leaves it to the word.

    A wrong value in the section's place counts as given, and validation refuses it.
    """
    section, _, name = key.partition(".")
    table = plain.get(section)
    return section in plain and (not name or not isinstance(table, dict) or table.get(name, AUTO) != AUTO)
