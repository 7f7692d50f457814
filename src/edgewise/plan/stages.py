"""Build the stages of a recipe in order, and the schedule of the parts that take turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgewise.core.errors import CompositionError
from edgewise.core.stage import Stage
from edgewise.core.vector import Segment, Spec
from edgewise.plan.catalogue import AnyPart, look_up, make


def planned_segment_turns(
    tables: Sequence[Mapping[str, Any]], spec: Spec, parts: Mapping[str, AnyPart]
) -> tuple[tuple[Segment, ...], ...]:
    """Return the groups of segments that take turns, one per phase. Empty where all rounds are alike.

    Raises:
        CompositionError: E-ORDER where a second stage has a schedule.
        RecipeError: as ``make``.
    """
    found: tuple[tuple[Segment, ...], ...] = ()
    for i, table in enumerate(tables):
        part = parts.get(str(table.get("kind")))
        if part is None or part.turns is None:
            continue
        where = f"[[stage]] {i + 1}"
        groups = tuple(tuple(group) for group in part.turns(look_up(parts, where, table)[1], spec))
        if len(groups) > 1 and found:
            raise CompositionError(
                "E-ORDER", f"{where} ({table['kind']}): an earlier stage already says what moves when.", "keep one."
            )
        found = groups if len(groups) > 1 else found
    return found


def build_stages(
    tables: Sequence[Mapping[str, Any]],
    spec: Spec,
    parts: Mapping[str, AnyPart],
    phase: int = 0,
    label: str = "[[stage]]",
) -> list[Stage]:
    """Build the stages of a recipe's list in order, as the rounds of ``phase`` use them.

    A stage with inner stages, such as ``feedback``, takes all stages after it as these.

    Args:
        label: the list's place in the recipe, for messages.
    """
    stages: list[Stage] = []
    for i, table in enumerate(tables):
        where = f"{label} {i + 1}"
        if "inner" in look_up(parts, where, table)[0].given:
            inner = build_stages(tables[i + 1 :], spec, parts, phase, label)
            return [*stages, make(parts, where, table, spec, inner, phase)]
        stages.append(make(parts, where, table, spec, phase=phase))
    return stages
