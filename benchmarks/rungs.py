"""What ``frontier.py`` compares: each rung is a way to send updates, as changes to a task's recipe.

``stage`` are the ``[[stage]]`` tables after ``weigh`` (none: float32). Any other key is a table of the recipe: one of
another ``kind`` replaces the task's, else its keys are put over the task's; a list (``downlink``, ``post``) replaces.
The first word of a name is its family: one colour in the plot. ``REFERENCE`` is what the others are measured against.
"""

from __future__ import annotations

from typing import Any

Table = dict[str, Any]


def feedback(*stages: Table) -> list[Table]:
    """Error feedback around ``stages``."""
    return [{"kind": "feedback"}, *stages]


def quantize(bits: int) -> Table:
    """One scale per block of 64."""
    return {"kind": "quantize", "bits": bits}


def top_k(fraction: float) -> Table:
    """Each device's largest coordinates."""
    return {"kind": "top_k", "fraction": fraction}


REFERENCE = "float32"
RUNGS: dict[str, Table] = {
    REFERENCE: {"stage": []},
    "quantize 8": {"stage": [quantize(8)]},
    "quantize 4": {"stage": [quantize(4)]},
    "quantize 2": {"stage": [quantize(2)]},
    "random_k 10 %": {"stage": feedback({"kind": "random_k", "fraction": 0.1, "unbiased": False})},
    "top_k 5 %": {"stage": feedback(top_k(0.05))},
    "top_k 1 %": {"stage": feedback(top_k(0.01))},
    "top_k 0.5 % x 4 bit": {"stage": feedback(top_k(0.005), quantize(4))},
}


def applied(base: Table, rung: Table) -> Table:
    """A task's recipe with a rung's changes. ``base`` has ``weigh`` as its only stage."""
    out = {**base}
    for key, value in rung.items():
        if key == "stage":
            out[key] = [*base["stage"], *value]
        elif isinstance(value, dict) and value.get("kind") in (None, base.get(key, {}).get("kind")):
            out[key] = {**base.get(key, {}), **value}
        else:
            out[key] = value
    return out
