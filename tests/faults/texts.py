"""A tiny language model that learns texts of three devices, with a teacher and public text beside it.

use(folder)                            the folder of models and texts; made when they are asked for first
make_recipe({"split.cut": 1})          the recipe with some keys replaced
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import tiny_model
from tqdm import tqdm

from edgewise.plan.recipe import recipe
from edgewise.plan.recipe.recipe import Recipe

TEXT = """
privacy = "none"
name = "texts"
[model]
base = "model"
precision = "float32"
[data]
source = "text"
path = "texts"
sequence_len = 16
[round]
sampling = "all"
overselect = 1.0
[training]
local_steps = 2
batch = 2
lr = 0.01
[strategy]
kind = "fedavg"
[eval]
every = 1
"""
_folder = Path()


def use(folder: Path) -> None:
    """Set the folder."""
    global _folder
    _folder = folder


@cache
def place() -> Path:
    """The folder with models and texts."""
    tqdm.monitor_interval = 0  # its thread would outlive the bars, and who has a thread cannot be forked
    tiny_model.save(_folder / "model", seed=1)
    tiny_model.save(_folder / "teacher", tie=False)
    (_folder / "public.txt").write_text("\n".join(f"{i} foxes jump over {i * 7} dogs" for i in range(200)))
    for owner in ("ann", "bob", "cat"):
        (_folder / "texts" / owner).mkdir(parents=True)
        (_folder / "texts" / owner / "1.txt").write_text("\n".join(tiny_model.LINES) + owner)
    return _folder


def make_recipe(overrides: dict[str, Any]) -> Recipe:
    """The recipe with some keys replaced. Its devices are those that have texts."""
    return recipe.parse(TEXT, overrides={k: v for k, v in overrides.items() if k != "data.devices"})
