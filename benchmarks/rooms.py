"""Count the modules that a recipe visits on its way to a plan, and the pairs of modules by which it climbs.

    python benchmarks/rooms.py

A call climbs from a function to one in a module of an upper layer (pyproject.toml). Each pair of modules counts once,
and imports do not count. Calls by way of other packages, as pydantic, count as calls of the module that called these.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from types import FrameType
from typing import Any

from edgewise.core.vector import Spec
from edgewise.plan import compile as compiling
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.recipe.recipe import from_plain

SOURCE = Path(compiling.__file__).resolve().parents[1]
SPEC = Spec.of([("w", (64, 8), "float32")])
DEVICES = 40


def heights() -> dict[str, int]:
    """Return the height of the layer of each package."""
    tools = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    (layers,) = (one["layers"] for one in tools["importlinter"]["contracts"] if one["name"] == "layers")
    return {name.strip(" ()"): -place for place, row in enumerate(layers) for name in row.split("|")}


def room(frame: FrameType) -> str | None:
    """Return the module of edgewise whose function a frame plays. None for code of others."""
    path = Path(frame.f_code.co_filename)
    return path.relative_to(SOURCE).with_suffix("").as_posix() if path.is_relative_to(SOURCE) else None


def visited(plain: dict[str, Any]) -> tuple[set[str], set[tuple[str, str]]]:
    """Return the modules that a recipe visits, and the pairs by which it climbs."""
    rooms, climbs, height = set[str](), set[tuple[str, str]](), heights()

    def enter(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or frame.f_code.co_name == "<module>" or (to := room(frame)) is None:
            return
        rooms.add(to)
        before = frame.f_back
        while before is not None and room(before) is None:
            before = before.f_back
        start = room(before) if before is not None else None
        if start is not None and height[to.split("/")[0]] > height[start.split("/")[0]]:
            climbs.add((start, to))

    sys.setprofile(enter)
    try:
        compiling.compile(from_plain(plain), SPEC, DEVICES, BUILT_IN)
    finally:
        sys.setprofile(None)
    return rooms, climbs


if __name__ == "__main__":
    for word in ("none", "hidden"):
        rooms, climbs = visited({"privacy": word})
        print(f'privacy = "{word}": {len(rooms)} modules, {len(climbs)} climbs, from {sorted({a for a, _ in climbs})}')
