"""Decode a contribution: undo the stages of a pipeline in reverse order, and check what each of them returns.

body = undo(pipe.stages, pipe.spaces, payload, turn).dense(d).body
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from edgewise.core.errors import RecipeError
from edgewise.core.keys import Turn
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import Stage, placed

T = TypeVar("T")


def undo(stages: Sequence[Stage], spaces: Sequence[Space], payload: Payload, turn: Turn, level: int = 0) -> Payload:
    """Decode ``stages[level:]`` in reverse order. ``spaces[i]`` is before stage i. The result may be sparse."""
    for i in range(len(stages) - 1, level - 1, -1):
        stage, space = stages[i], spaces[i]
        if not stage.takes_support and payload.support is not None and not spaces[i + 1].sparse:
            payload = payload.dense(spaces[i + 1].dim)
        result = stage.decode(payload, space, placed(turn, stages, i))
        payload = of_kind(Payload, result, f"{stage.name}: decode")
    return payload


def of_kind(kind: type[T], given: object, who: str) -> T:
    """Check the type of a value that a part returned. The part may be an extension's.

    Raises:
        RecipeError: E-EXTENSION for a value of another type.
    """
    if not isinstance(given, kind):
        raise RecipeError("E-EXTENSION", f"{who} returned {type(given).__name__}, needs {kind.__name__}.")
    return given
