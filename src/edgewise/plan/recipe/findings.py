"""Collect all faults of a recipe in one error. Each has its code, its line, and what to do.

value, found = examined(Recipe, tables)
raise error(found, Origin("recipe.toml", text))
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from edgewise.core.errors import LONGEST_LIST, Fault, RecipeError
from edgewise.plan.recipe import toml, words
from edgewise.plan.recipe.aliases import ALIASES, MOVED, PART_ALIASES
from edgewise.plan.recipe.places import Origin, Place, located_key
from edgewise.plan.recipe.privacy import RENAMED
from edgewise.plan.recipe.rules import UNKNOWN, BrokenRules, Section, SettingError
from edgewise.plan.recipe.trainable import RENAMED_KINDS

LONGEST_NAME = 64  # Characters of a name that is compared with known ones.
MOST_SHOWN = 24  # Faults that one message shows.
LONGEST_FIX = LONGEST_LIST - 100  # Characters of the list of faults in one message.
M = TypeVar("M", bound=Section)
_KEY = re.compile(r"\b[a-z]+\.[a-z_0-9]+\b")


class Finding(NamedTuple):
    """One fault. ``places``: the keys that may be at fault, the likeliest first."""

    code: str
    what: str
    fix: str
    places: tuple[Place, ...] = ()


class Examined(NamedTuple, Generic[M]):
    """A validated value, or the faults that were found.

    Attributes:
        value: None where there are findings.
        judged: The value with ``UNKNOWN`` in place of wrong ones, for rules across sections. None if value is given.
        tables: The tables with the values that others imply.
    """

    value: M | None
    judged: M | None
    tables: Mapping[str, Any]
    findings: list[Finding]


def put(plain: dict[str, Any], dotted: str, value: Any) -> None:
    """Put a value at ``section.key`` or ``list.number.key``. Raises RecipeError(E-KEY) where there is no such place."""
    *path, last = dotted.split(".")
    if len(path) >= toml.DEEPEST:
        raise RecipeError("E-KEY", f"--set {dotted}: no key has {len(path) + 1} parts.", "see `edgewise schema`.")
    at: Any = plain
    for i, part in enumerate(path):
        if isinstance(at, list):
            at = at[_list_index(at, part, dotted)]
        else:
            at = at.setdefault(part, [] if not i and part in ("stage", "downlink", "post") else {})
        if not isinstance(at, dict | list):
            raise RecipeError("E-KEY", f"--set {dotted}: {part} is not a table.", "see `edgewise schema`.")
    at[_list_index(at, last, dotted) if isinstance(at, list) else last] = value


def _list_index(at: list[Any], part: str, dotted: str) -> int:
    """Read the number of a table in a dotted ``--set`` key."""
    numbers = [str(i) for i in range(len(at))]
    if part not in numbers:
        fix = f"they are numbered from 0 to {len(at) - 1}." if at else "write them into the recipe first."
        raise RecipeError("E-KEY", f"--set {dotted}: the recipe lists no number {part!r:.40} there.", fix)
    return int(part)


def error(found: Sequence[Finding], origin: Origin) -> RecipeError:
    """Make one error of all findings, in the order of lines. Those of the command line come last.

    Its code, cause and first ``fix`` line are of the first finding. Each further line of ``fix`` is another one, and
    ``RecipeError.faults`` lists all of them.
    """
    faults = []
    for finding in found:
        label, file, line = located_key(origin, finding.places)
        what = f"{label}: {finding.what}" if label and not finding.what.startswith("--set ") else finding.what
        faults.append(Fault(finding.code, what, finding.fix, file or None, line))
    first, *others = faults = sorted(faults, key=lambda fault: (fault.file is None, fault.line or 0))
    lines, room = [first.fix], LONGEST_FIX - len(first.fix)
    for fault in others[: MOST_SHOWN - 1]:
        line_of_text = f"also {fault.code}: {fault.what} Fix: {fault.fix}"
        room -= len(line_of_text) + 1
        if room < 0:
            break
        lines.append(line_of_text)
    if unshown := len(faults) - len(lines):
        lines.append(f"and {unshown} more.")
    return RecipeError(first.code, first.what, "\n".join(lines), faults)


def examined(model: type[M], plain: Any, help: str | None = None) -> Examined[M]:
    """Validate tables. Find everything that is wrong with them.

    The rules of a section run although others of its values are wrong: those that read a wrong value make no
    statement.

    Args:
        model: of the whole. help: the next step for a wrong value; None for that of a recipe.
    """
    try:
        return Examined(model.model_validate(plain, strict=True), None, plain, [])
    except ValidationError as e:
        errors = e.errors()
    if not isinstance(plain, dict):
        fix = help or "see `edgewise schema`."
        return Examined(None, None, {}, [Finding("E-TYPE", f"{plain!r:.80} is not a table.", fix)])
    found, unknown = faults_of(errors, model, plain, help=help)
    tables = _with_renamed_words(plain, unknown)
    judged = _lenient_section(model, tables, (), unknown)
    for place, section in _nested_sections(judged, ()):
        found += [_broken_rule(fault, place) for fault in section.faults()]
    return Examined(None, judged, model.completed(tables), found)


def faults_of(
    errors: Sequence[Any], model: type[BaseModel], plain: Mapping[str, Any], label: str = "", path: str | None = None,
    help: str | None = None,
) -> tuple[list[Finding], set[Place]]:  # fmt: skip
    """Find the faults of single values, and the keys whose value is not known because of them.

    Args:
        errors: of pydantic. label: the table's name in messages, if it is that of a part. path: of the part, as
            ``edgewise schema --field`` takes it.
    """
    found: dict[Place, Finding] = {}
    misspelt: set[Place] = set()
    missing: list[Place] = []
    kinds: dict[Place, set[str]] = {}
    for e in errors:
        cause = e.get("ctx", {}).get("error")
        if isinstance(cause, BrokenRules):
            continue
        place = _without_alternatives(model, e["loc"])
        kinds.setdefault(place, set()).add(e["type"])
        if e["type"] == "extra_forbidden":
            meant, fix = _suggested_keys(model, place, label)
            misspelt |= {key for key in meant if _value_at(plain, key) is None}
            found[place] = Finding("E-KEY", f"{label}unknown key `{_dotted_key(place)}`.", fix, (place,))
        elif e["type"] == "missing":
            missing.append(place)
        else:
            found[place] = _wrong_value(model, place, kinds[place], _value_at(plain, place), label, path, help)
    for place in missing:
        if place not in misspelt:
            fix = 'write `privacy = "none"` at the top.' if place == ("privacy",) else "add it."
            found[place] = Finding(
                "E-MISSING",
                f"{label}`{_dotted_key(place)}` is required.",
                fix,
                (place, ("kind",) if label else place[:-1]),
            )
    return [*found.values()], {*found, *misspelt, *missing}


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that a person may have meant. Empty if none is near."""
    return next(iter(difflib.get_close_matches(word[:LONGEST_NAME], list(known), n=1, cutoff=0.5)), "")


def key_hint(name: str, model: type[BaseModel]) -> tuple[tuple[str, ...], str]:
    """Return the dotted keys that an unknown name may stand for, and the sentence that says so."""
    leaves = _places_of_keys(model)
    meant = tuple(key for key in ALIASES.get(name, ()) if _is_key(model, key)) or leaves.get(name, ())
    if meant:
        return meant, f"write {_keys_in_words(meant)}."
    if near := nearest(name, [*leaves, *model.model_fields]):
        return leaves.get(near, (near,)), f"did you mean `{near}`?"
    return (), "see `edgewise schema`."


def _suggested_keys(model: type[BaseModel], place: Place, label: str) -> tuple[list[Place], str]:
    """Return the keys that an unknown one may stand for, and what to do."""
    name, known = str(place[-1]), _known_keys(model, place[:-1])
    if label:
        return _suggested_part_keys(name, known, label)
    table = ".".join(str(part) for part in place[:-1] if isinstance(part, str))
    dotted = f"{table}.{name}" if table else name
    leaves = _places_of_keys(model)
    keys: tuple[str, ...] = (MOVED[dotted],) if dotted in MOVED and _is_key(model, MOVED[dotted]) else ()
    keys = keys or tuple(key for key in ALIASES.get(name, ()) if _is_key(model, key))
    keys = tuple(key for key in keys if key.rpartition(".")[0] == table) or keys  # one of this table is the answer
    keys = keys or leaves.get(name, ())
    if keys:
        here = keys[0].removeprefix(f"{table}.") if table and len(keys) == 1 else ""
        text = f"`{here}`" if here and here != keys[0] else _keys_in_words(keys)
        return [tuple(key.split(".")) for key in keys[:1]], f"write {text}."
    if near := nearest(name, known):
        return [(*place[:-1], near)], f"did you mean `{near}`?"
    return [], f"known keys: {', '.join(known)}."


def _suggested_part_keys(name: str, known: Sequence[str], label: str) -> tuple[list[Place], str]:
    where = label.split()[0].strip("[]")
    if moved := MOVED.get(f"{where}.{name}"):
        return [], f"write `{moved}`."
    if same := [key for key in PART_ALIASES.get(name, ()) if key in known]:
        return [(same[0],)], f"write `{same[0]}`."
    if near := nearest(name, known):
        return [(near,)], f"did you mean `{near}`?"
    return [], f"it knows: {', '.join(known) or 'no parameters'}."


def _keys_in_words(keys: Sequence[str]) -> str:
    """Join keys with "or"."""
    return " or ".join(f"`{key}`" if "." in key or key in ("seed", "name") else f"[{key}]" for key in keys)


def _wrong_value(
    model: type[BaseModel], place: Place, kinds: set[str], got: Any, label: str, path: str | None, help: str | None
) -> Finding:
    """Describe a value that its key does not take."""
    node, dotted = words.schema_node(model, place), _dotted_key(place)
    typed = all(kind.endswith(("_type", "_parsing")) for kind in kinds)
    code = "E-TYPE" if typed else "E-VALUE"
    if place == ("privacy",) and isinstance(got, str) and got in RENAMED:
        word, unit = RENAMED[got]
        fix = f'write privacy = "{word}"' + (f', and unit = "{unit}" in [dp].' if unit != "device" else ".")
        return Finding("E-VALUE", f'privacy = "{got}" has another name now.', fix, (place,))
    if place == ("trainable", "kind") and isinstance(got, str) and got in RENAMED_KINDS:
        what = f'trainable.kind = "{got}" has another name now.'
        return Finding("E-VALUE", what, f"write {RENAMED_KINDS[got]} in [trainable].", (place,))
    what = f"{label}`{dotted}` = {repr(got)[:80]} is not {words.schema_wanted(node)}."
    field = f"{path}.{dotted}" if path is not None else ".".join(map(str, place[:2]))
    fix = help or f"see `edgewise schema --field {field}`."
    if isinstance(got, str) and (near := nearest(got, words.schema_choices(node))):
        fix = f'did you mean "{near}"?'
    return Finding(code, what, fix, (place,))


def _broken_rule(fault: SettingError, place: Place) -> Finding:
    """Make a finding of a rule's fault. Its places are the keys that its sentence names."""
    named = tuple(tuple(key.split(".")) for key in _KEY.findall(fault.what))
    sections = tuple(key[:1] for key in named)
    places: tuple[Place, ...] = (*named, place, *sections) if place else (*named, *sections) or (("privacy",),)
    return Finding(fault.code, f"{fault.what}.", f"{fault.fix}.", places)


def _dotted_key(place: Place) -> str:
    """Join a place with dots."""
    return ".".join(map(str, place))


def _value_at(plain: Any, place: Place) -> Any:
    """Return the value at a place. None if there is none."""
    for part in place:
        if isinstance(plain, Mapping):
            plain = plain.get(part)
        elif isinstance(plain, list | tuple) and isinstance(part, int) and part < len(plain):
            plain = plain[part]
        else:
            return None
    return plain


def _without_alternatives(model: type[BaseModel], loc: Sequence[Any]) -> Place:
    """Return the place of a fault without the alternatives that the validator tried. They are no keys."""
    at: Any = model
    place: list[str | int] = []
    for i, part in enumerate(loc):
        place.append(part)
        if isinstance(part, int):
            continue
        names = {info.alias or name: info for name, info in at.model_fields.items()}
        if part not in names:
            break
        section = _section_of(names[part].annotation)
        if section is None:
            place += [one for one in loc[i + 1 : i + 2] if isinstance(one, int)]
            break
        at = section
    return tuple(place)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field holds, or holds a list of. None for any other field."""
    for one in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def _known_keys(model: type[BaseModel], path: Place) -> list[str]:
    """List the keys of a section."""
    at: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, str) and at is not None:
            info = at.model_fields.get(part)
            at = _section_of(info.annotation) if info is not None else None
    return [f.alias or k for k, f in at.model_fields.items()] if at is not None else []


@cache
def _places_of_keys(model: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """Map each key of a section to its dotted places."""
    found: dict[str, tuple[str, ...]] = {}
    for name, info in model.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            for key in section.model_fields:
                found[key] = (*found.get(key, ()), f"{name}.{key}")
    return found


def _is_key(model: type[BaseModel], dotted: str) -> bool:
    """Tell whether a dotted name is a key of a recipe."""
    return dotted in model.model_fields or dotted in _places_of_keys(model).get(dotted.rpartition(".")[2], ())


def _with_renamed_words(plain: dict[str, Any], unknown: set[Place]) -> dict[str, Any]:
    """Put today's word for that of an earlier version, so that rules can judge the tables."""
    word = plain.get("privacy")
    if not (isinstance(word, str) and word in RENAMED):
        return plain
    unknown.discard(("privacy",))
    unknown.add(("dp", "unit"))  # The message says which unit to write.
    return {**plain, "privacy": RENAMED[word][0]}


def _lenient_section(model: type[Section], plain: dict[str, Any], at: Place, unknown: set[Place]) -> Any:
    """Build a section with ``UNKNOWN`` in place of wrong values. Other values are not validated again."""
    tables, values = model.completed(plain), dict[str, Any]()
    for name, info in model.model_fields.items():
        key = info.alias or name
        place = (*at, key)
        section = _section_of(info.annotation)
        given = tables.get(key)
        if key not in tables:
            if place in unknown or info.is_required():
                values[name] = UNKNOWN
        elif place in unknown:
            values[name] = UNKNOWN
        elif section is not None and issubclass(section, Section) and isinstance(given, dict):
            values[name] = _lenient_section(section, given, place, unknown)
        elif section is not None and issubclass(section, Section) and isinstance(given, list):
            each = enumerate(given)
            values[name] = [
                _lenient_section(section, one, (*place, i), unknown) if isinstance(one, dict) else UNKNOWN
                for i, one in each
            ]
        elif any(one[: len(place)] == place for one in unknown):
            values[name] = UNKNOWN  # An element of its list is wrong.
        else:
            values[name] = given
    return model.model_construct(**values)


def _nested_sections(section: Section, at: Place) -> Iterator[tuple[Place, Section]]:
    """Yield a section and those in it, the innermost first, each with its place."""
    for name, value in vars(section).items():
        each = [((*at, name), value)]
        if isinstance(value, list):
            each = [((*at, name, i), one) for i, one in enumerate(value)]
        for place, one in each:
            if isinstance(one, Section):
                yield from _nested_sections(one, place)
    yield at, section
