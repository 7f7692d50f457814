"""Find the place of a key: a line of the recipe's file, or the ``--set`` that put it there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

Place = tuple[str | int, ...]  # ("training", "lr"), ("stage", 0, "bits")


class Origin(NamedTuple):
    """The source of a recipe's values: the file's name and text, and the keys that ``--set`` put over them."""

    where: str = ""
    text: str = ""
    overrides: tuple[str, ...] = ()


class LocatedKey(NamedTuple):
    """A place for a message: ``recipe.toml:14``, ``--set training.lr``, or the file alone.

    ``file`` is None for a key of the command line. ``line`` is None if no line has the key.
    """

    label: str
    file: str | None
    line: int | None


def located_key(origin: Origin, places: Sequence[Place]) -> LocatedKey:
    """Find the first of the places that the command line or the file has. ``places``: the likeliest first."""
    for place in places:
        for key in origin.overrides:
            if f"{'.'.join(map(str, place))}.".startswith(f"{key}."):
                return LocatedKey(f"--set {key}", None, None)
    inline = [place[:1] for place in places if len(place) > 1 and isinstance(place[1], int)]  # stage = [{...}]
    for place in (*places, *inline):
        if (line := _line_of_key(origin.text, place)) is not None:
            return LocatedKey(f"{origin.where}:{line}", origin.where, line)
    return LocatedKey(origin.where, origin.where, None)


def _line_of_key(text: str, place: Place) -> int | None:
    """Find the line of a key, counted from 1. None if no line has it.

    Tables of a list (``[[stage]]``) are counted. A value in a list stands on the line of its key.
    """
    if len(place) > 2 and isinstance(place[-1], int):
        place = place[:-1]
    if len(place) > 1 and isinstance(place[1], int):
        header, nth, keys = f"[[{place[0]}]]", place[1], place[2:]
    else:
        header, nth, keys = f"[{'.'.join(map(str, place[:-1]))}]" if place[:-1] else "", 0, place[-1:]
    names = ".".join(str(part) for part in place if isinstance(part, str))
    current, seen = "", Counter[str]()
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.split("#")[0].strip()
        if stripped.startswith("["):
            current = re.sub(r"[\s]", "", stripped)
            seen[current] += 1
            if (not keys and current == header and seen[header] == nth + 1) or current == f"[{names}]":
                return number
            continue
        here = current == header and (not header or seen[header] == nth + 1)
        if keys and here and stripped.split("=")[0].strip().strip('"') == str(keys[-1]):
            return number
    return None
