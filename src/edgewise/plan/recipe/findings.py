"""What is wrong with a recipe, where it stands, and what to do; all of it in one message."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from edgewise.core.errors import RecipeError
from edgewise.plan.recipe import toml
from edgewise.plan.recipe.privacy import RENAMED
from edgewise.plan.recipe.sections import MOVED, SettingError

LONGEST_NAME = 64  # of a key that is looked for among the known ones
MOST_SHOWN = 5  # faults that one message tells
UNION = ("str", "list[str]")  # pydantic names the type that it tried, which is no key
Place = tuple[str | int, ...]
_KEY = re.compile(r"\b[a-z]+\.[a-z_0-9]+\b")


class Origin(NamedTuple):
    """Where the values of a recipe came from: the file's name and text, and the keys that ``--set`` put over them.

    ``help``: the next step for a value that cannot be, where it is not that of a recipe.
    """

    where: str
    text: str
    overrides: tuple[str, ...]
    help: str = ""


class _Finding(NamedTuple):
    code: str
    what: str
    fix: str


def put(plain: dict[str, Any], dotted: str, value: Any) -> None:
    """Put a value at ``section.key`` or ``list.number.key``. Raises RecipeError(E-KEY) where there is no such place."""
    *path, last = dotted.split(".")
    if len(path) >= toml.DEEPEST:
        raise RecipeError("E-KEY", f"--set {dotted}: no key has {len(path) + 1} parts.", "see `edgewise schema`.")
    at: Any = plain
    for i, part in enumerate(path):
        if isinstance(at, list):
            at = at[_number(at, part, dotted)]
        else:
            at = at.setdefault(part, [] if not i and part in ("stage", "downlink", "post") else {})
        if not isinstance(at, dict | list):
            raise RecipeError("E-KEY", f"--set {dotted}: {part} is not a table.", "see `edgewise schema`.")
    at[_number(at, last, dotted) if isinstance(at, list) else last] = value


def _number(at: list[Any], part: str, dotted: str) -> int:
    numbers = [str(i) for i in range(len(at))]
    if part not in numbers:
        fix = f"they are numbered from 0 to {len(at) - 1}." if at else "write them into the recipe first."
        raise RecipeError("E-KEY", f"--set {dotted}: the recipe lists no number {part!r:.40} there.", fix)
    return int(part)


def explain(error: ValidationError, model: type[BaseModel], origin: Origin) -> RecipeError:
    """Everything that a validation found, as one error: the first cause; its fix has a line for each other fault.

    A misspelt key is also a missing one, so misspellings come first.
    """
    each = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first, *others = [_finding(e, model, origin) for e in each]
    told = [f"also {f.code}: {f.what} Fix: {f.fix}" for f in others[: MOST_SHOWN - 1]]
    if len(others) >= MOST_SHOWN:
        told.append(f"and {len(others) - MOST_SHOWN + 1} more.")
    return RecipeError(first.code, first.what, "\n".join([first.fix, *told]))


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that a person may have meant; empty where none is near."""
    return next(iter(difflib.get_close_matches(word[:LONGEST_NAME], list(known), n=1, cutoff=0.5)), "")


def _finding(e: Mapping[str, Any], model: type[BaseModel], origin: Origin) -> _Finding:
    loc, kind = tuple(part for part in e["loc"] if part not in UNION), e["type"]
    dotted = ".".join(map(str, loc))
    at = _at(origin, loc)
    if kind == "extra_forbidden":
        known = _known(model, loc[:-1])
        near = nearest(str(loc[-1]), known)
        hint = f"did you mean `{near}`?" if near else f"known keys: {', '.join(known)}."
        hint = f"write `{MOVED[dotted]}`." if dotted in MOVED else hint
        return _Finding("E-KEY", f"{at}: unknown key `{dotted}`.", hint)
    if kind == "missing":
        hint = 'write `privacy = "none"` at the top.' if loc == ("privacy",) else "add it."
        return _Finding("E-MISSING", f"{at}: `{dotted}` is required.", hint)
    cause = e.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        at = _at(origin, loc, cause.what)
        return _Finding(cause.code, f"{at}: {cause.what}.", f"{cause.fix}.")
    if loc == ("privacy",) and isinstance(e["input"], str) and e["input"] in RENAMED:
        word, unit = RENAMED[e["input"]]
        hint = f'write privacy = "{word}"' + (f', and unit = "{unit}" in [dp].' if unit != "device" else ".")
        return _Finding("E-VALUE", f'{at}: privacy = "{e["input"]}" has another name now.', hint)
    code = "E-TYPE" if kind.endswith(("_type", "_parsing")) else "E-VALUE"
    got = repr(e["input"])[:80]
    fix = origin.help or f"see `edgewise schema --field {'.'.join(map(str, loc[:2]))}`."
    return _Finding(code, f"{at}: `{dotted}` = {got}: {e['msg']}.", fix)


def _at(origin: Origin, loc: Place, said: str = "") -> str:
    """``at`` of a fault; ``said``: of one in several keys, the sentence that names them."""
    places: list[Place] = [tuple(key.split(".")) for key in _KEY.findall(said)]
    return at(origin, loc, places or [loc])


def at(origin: Origin, loc: Place, places: Sequence[Place]) -> str:
    """``--set training.lr`` for a key that the command line put there, else ``recipe.toml:14``, or the file alone.

    ``places``: the keys that may be at fault, the likeliest first; ``loc``: the one that is named where none of them
    stands in the file.
    """
    for place in places:
        for key in origin.overrides:
            if f"{'.'.join(map(str, place))}.".startswith(f"{key}."):
                return f"--set {key}"
    inline = [loc[:1]] if len(loc) > 1 and isinstance(loc[1], int) else []  # stage = [{...}]
    lines = (_line(origin.text, place) for place in [*places, loc, *inline])
    return f"{origin.where}{next(filter(None, lines), '')}"


def _known(model: type[BaseModel], path: Place) -> list[str]:
    at: Any = model
    for part in path:
        info = at.model_fields.get(part) if isinstance(part, str) else None
        at = info.annotation if info is not None else None
        if not (isinstance(at, type) and issubclass(at, BaseModel)):
            return []
    return [f.alias or k for k, f in at.model_fields.items()]


def _line(text: str, loc: Place) -> str:
    """``":14"`` where the key's line can be found in the text, else nothing. Tables of a list (``[[stage]]``) are
    counted; a value in a list stands where its key does."""
    if len(loc) > 2 and isinstance(loc[-1], int):
        loc = loc[:-1]
    if len(loc) > 1 and isinstance(loc[1], int):
        header, nth, keys = f"[[{loc[0]}]]", loc[1], loc[2:]
    else:
        header, nth, keys = f"[{'.'.join(map(str, loc[:-1]))}]" if loc[:-1] else "", 0, loc[-1:]
    names = ".".join(str(part) for part in loc if isinstance(part, str))
    current, seen = "", Counter[str]()
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.split("#")[0].strip()
        if stripped.startswith("["):
            current = re.sub(r"[\s]", "", stripped)
            seen[current] += 1
            if (not keys and current == header and seen[header] == nth + 1) or current == f"[{names}]":
                return f":{number}"
            continue
        here = current == header and (not header or seen[header] == nth + 1)
        if keys and here and stripped.split("=")[0].strip().strip('"') == str(keys[-1]):
            return f":{number}"
    return ""
