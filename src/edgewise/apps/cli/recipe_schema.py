"""JSON schema of recipes, and descriptions of single keys, for ``edgewise schema`` and ``edgewise explain``.

print(describe("training.lr"))
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from edgewise.core.errors import RecipeError
from edgewise.plan.catalogue import BUILT_IN, Catalogue, schema
from edgewise.plan.recipe.recipe import Recipe

MOST_NAMED = 3  # A suggestion names so many keys at most.


class Key(NamedTuple):
    """A key, a table or a part of a recipe, from its JSON schema.

    ``path`` is ``training.lr`` or ``stage.quantize``. ``kind`` is its type and range in words. ``default`` is JSON. It
    is empty without a default, and for tables and lists of tables.
    """

    path: str
    kind: str
    default: str
    required: bool
    says: str
    below: tuple[Key, ...]


def everything(catalogue: Catalogue = BUILT_IN) -> str:
    """Return the whole schema as JSON text."""
    return json.dumps(_whole_schema(catalogue), indent=2)


def describe(field: str, catalogue: Catalogue = BUILT_IN) -> str:
    """Describe a key: ``training.lr``, a table ``training``, a part ``stage.quantize`` or ``stage.quantize.bits``.

    Raises RecipeError(E-KEY) with the nearest known key.
    """
    whole = _whole_schema(catalogue)
    at, walked = whole, ""
    for part in field.split("."):
        below = _nodes_below(at)
        if part not in below:
            hint = _similar_keys(whole, schema_paths(catalogue), field, part, below, walked)
            raise RecipeError("E-KEY", f"there is no recipe key `{field}`.", hint)
        at, walked = _followed_node(whole, below[part]), f"{walked}{part}."
    return "\n".join(_key_in_words(_schema_key(whole, field, at, False)))


def _similar_keys(
    whole: dict[str, Any], known: Sequence[str], field: str, part: str, below: dict[str, Any], walked: str
) -> str:
    """Suggest keys: those of the same name in other tables, else the nearest one here, else the nearest anywhere."""
    last = field.rsplit(".", 1)[-1]
    everywhere = [dotted for dotted in known if dotted.rsplit(".", 1)[-1] == last]
    if not everywhere and (near := difflib.get_close_matches(part, below, n=1, cutoff=0.5)):
        return f"did you mean `{walked}{near[0]}`?"
    if not everywhere:
        everywhere = difflib.get_close_matches(field, known, n=1, cutoff=0.6)
    if not everywhere:
        everywhere = [dotted for dotted in known if _description_begins(whole, dotted, last.replace("_", " "))]
    if not everywhere:
        names = sorted({dotted.rsplit(".", 1)[-1] for dotted in known})
        near = difflib.get_close_matches(last, names, n=1, cutoff=0.7)
        everywhere = [dotted for dotted in known if near and dotted.rsplit(".", 1)[-1] == near[0]]
    if everywhere:
        return f"did you mean {' or '.join(f'`{dotted}`' for dotted in everywhere[:MOST_NAMED])}?"
    return f"known here: {', '.join(below) or 'nothing'}."


def _description_begins(whole: dict[str, Any], field: str, words: str) -> bool:
    """Tell whether a key's description begins with ``words``."""
    at = whole
    for part in field.split("."):
        at = _followed_node(whole, _nodes_below(at)[part])
    return str(at.get("description", "")).startswith(words)


def schema_tree(catalogue: Catalogue = BUILT_IN) -> tuple[Key, ...]:
    """Return all keys of a recipe, each with its nested keys, in the order of the schema."""
    whole = _whole_schema(catalogue)
    return _schema_key(whole, "", whole, False).below


@cache
def schema_paths(catalogue: Catalogue = BUILT_IN) -> tuple[str, ...]:
    """List all keys, tables and parts as ``training.lr`` or ``stage.quantize.bits``, the shallow ones first."""
    whole = _whole_schema(catalogue)
    level, found = [("", whole)], list[str]()
    while level:
        level = [
            (f"{at}.{name}" if at else name, _followed_node(whole, child))
            for at, node in level
            for name, child in _nodes_below(node).items()
        ]
        found += [at for at, _ in level]
    return tuple(found)


@cache
def _whole_schema(catalogue: Catalogue) -> dict[str, Any]:
    """JSON schema of a recipe with the parts of a catalogue."""
    return schema(catalogue, Recipe.model_json_schema())


def _followed_node(whole: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Follow a node's reference. Keys beside the reference win."""
    if "$ref" not in node:
        return node
    target = whole["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return {**target, **{k: v for k, v in node.items() if k != "$ref"}}


def _nodes_below(node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the keys of a table, or the parts of a slot (``strategy``, ``stage`` ...)."""
    options = node.get("oneOf") or node.get("items", {}).get("oneOf")
    if options:
        return {one["title"]: one for one in options}
    return {k: v for k, v in node.get("properties", {}).items() if k != "kind" or "const" not in v}


def _schema_key(whole: dict[str, Any], path: str, node: dict[str, Any], required: bool) -> Key:
    """Build the key ``path`` from its schema ``node``, whose reference is followed."""
    needed = node.get("required", [])
    below = tuple(
        _schema_key(whole, f"{path}.{name}" if path else name, _followed_node(whole, child), name in needed)
        for name, child in _nodes_below(node).items()
    )
    default = node.get("default")
    shown = default is not None and not isinstance(default, dict) and not (isinstance(default, list) and below)
    description = " ".join(str(node.get("description", "")).split())
    return Key(path, _type_in_words(node), json.dumps(default) if shown else "", required, description, below)


def _key_in_words(key: Key) -> list[str]:
    """Format a key and its nested keys as lines for a terminal."""
    out = [f"{key.path}: {key.kind}"]
    if key.says:
        out.append(f"  {key.says}")
    if key.default:
        out.append(f"  default {key.default}")
    for child in key.below:
        default = f" (default {child.default})" if child.default else ""
        name = child.path.rsplit(".", 1)[-1]
        out.append(f"  {name}: {child.kind}{default}{'  ' + child.says if child.says else ''}")
    return out


def _type_in_words(node: dict[str, Any]) -> str:
    """Describe a node's type and range in words."""
    if "enum" in node:
        return " | ".join(json.dumps(v) for v in node["enum"])
    if "const" in node:
        return json.dumps(node["const"])
    if "oneOf" in node or "oneOf" in node.get("items", {}):
        return "list of parts" if "items" in node else "one part"
    if isinstance(values := node.get("additionalProperties"), dict):
        return f"name = {_type_in_words(values)}"
    if options := [one for one in node.get("anyOf", []) if one.get("type") != "null"]:
        return " | ".join(map(_type_in_words, options))
    kind = {"object": "table", "array": "list", "number": "number", "integer": "whole number", "string": "text"}
    limits = [
        f"{sign} {node[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in node
    ]
    return " ".join([kind.get(node.get("type", ""), node.get("type", "value")), *limits])
