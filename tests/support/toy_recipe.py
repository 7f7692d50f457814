"""The recipe of the toy federation: memory, sparse support and quantization, so that everything has state to lose."""

from __future__ import annotations

from typing import Any

from edgewise.plan.recipe import recipe
from edgewise.plan.recipe.recipe import Recipe

TEXT = """
privacy = "none"
name = "toy"
[data]
partition = "iid"
devices = 8
[round]
rounds = 4
[training]
lr = 0.3
local_steps = 4
[strategy]
kind = "fedadam"
lr = 0.1
[[stage]]
kind = "weigh"
cap = 160
[[stage]]
kind = "feedback"
[[stage]]
kind = "top_k"
fraction = 0.2
[[stage]]
kind = "quantize"
bits = 4
[eval]
every = 2
"""


PLAIN = """
schema = 1
name = "toy"
privacy = "none"
[round]
rounds = 3
[training]
local_steps = 2
[eval]
every = 1
"""  # nothing but averaging, over six devices


def make_recipe(overrides: dict[str, Any] | None = None) -> Recipe:
    """The toy recipe with some keys replaced."""
    return recipe.parse(TEXT, overrides=overrides)
