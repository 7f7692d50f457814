"""`edgewise schema`: the recipe's JSON schema, or one key of it in words."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from edgewise.core.errors import RecipeError
from edgewise.plan.catalogue import BUILT_IN, Catalogue, schema
from edgewise.plan.recipe import Recipe

MOST_NAMED = 3  # keys in one suggestion


def everything(catalogue: Catalogue = BUILT_IN) -> str:
    """The whole schema as JSON text."""
    return json.dumps(_schema(catalogue), indent=2)


def describe(field: str, catalogue: Catalogue = BUILT_IN) -> str:
    """What a key means: ``training.lr``, a table ``training``, a part ``stage.quantize``, its ``stage.quantize.bits``.

    Raises RecipeError(E-KEY) with the nearest known key.
    """
    whole = _schema(catalogue)
    at, walked = whole, ""
    for part in field.split("."):
        below = _below(whole, at)
        if part not in below:
            hint = _hint(whole, paths(catalogue), field, part, below, walked)
            raise RecipeError("E-KEY", f"there is no recipe key `{field}`.", hint)
        at, walked = _plain(whole, below[part]), f"{walked}{part}."
    return "\n".join(_words(whole, field, at))


def _hint(
    whole: dict[str, Any], known: Sequence[str], field: str, part: str, below: dict[str, Any], walked: str
) -> str:
    """What a person may have meant: keys of that very name elsewhere, else the nearest one here, else anywhere."""
    last = field.rsplit(".", 1)[-1]
    everywhere = [dotted for dotted in known if dotted.rsplit(".", 1)[-1] == last]
    if not everywhere and (near := difflib.get_close_matches(part, below, n=1, cutoff=0.5)):
        return f"did you mean `{walked}{near[0]}`?"
    if not everywhere:
        everywhere = difflib.get_close_matches(field, known, n=1, cutoff=0.6)
    if not everywhere:
        everywhere = [dotted for dotted in known if _says(whole, dotted, last.replace("_", " "))]
    if not everywhere:
        names = sorted({dotted.rsplit(".", 1)[-1] for dotted in known})
        near = difflib.get_close_matches(last, names, n=1, cutoff=0.7)
        everywhere = [dotted for dotted in known if near and dotted.rsplit(".", 1)[-1] == near[0]]
    if everywhere:
        return f"did you mean {' or '.join(f'`{dotted}`' for dotted in everywhere[:MOST_NAMED])}?"
    return f"known here: {', '.join(below) or 'nothing'}."


def _says(whole: dict[str, Any], field: str, said: str) -> bool:
    """Whether a key's description begins with these words."""
    at = whole
    for part in field.split("."):
        at = _plain(whole, _below(whole, at)[part])
    return str(at.get("description", "")).startswith(said)


@cache
def paths(catalogue: Catalogue = BUILT_IN) -> tuple[str, ...]:
    """All keys of a recipe as ``training.lr`` or ``stage.quantize.bits``, tables and parts too, shallow ones first."""
    whole = _schema(catalogue)
    level, found = [("", whole)], list[str]()
    while level:
        level = [
            (f"{at}.{name}" if at else name, _plain(whole, child))
            for at, node in level
            for name, child in _below(whole, node).items()
        ]
        found += [at for at, _ in level]
    return tuple(found)


@cache
def _schema(catalogue: Catalogue) -> dict[str, Any]:
    return schema(catalogue, Recipe.model_json_schema())


def _plain(whole: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """The node with its reference followed; what stands beside the reference wins."""
    if "$ref" not in node:
        return node
    target = whole["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return {**target, **{k: v for k, v in node.items() if k != "$ref"}}


def _below(whole: dict[str, Any], node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Keys of a table, or parts of a slot (``strategy``, ``stage`` ...)."""
    options = node.get("oneOf") or node.get("items", {}).get("oneOf")
    if options:
        return {one["title"]: one for one in options}
    return {k: v for k, v in node.get("properties", {}).items() if k != "kind" or "const" not in v}


def _words(whole: dict[str, Any], field: str, node: dict[str, Any]) -> list[str]:
    out = [f"{field}: {_kind(node)}"]
    if said := node.get("description"):
        out.append(f"  {said}")
    if "default" in node and not isinstance(node["default"], dict | list):
        out.append(f"  default {json.dumps(node['default'])}")
    for name, child in _below(whole, node).items():
        plain = _plain(whole, child)
        default = f" (default {json.dumps(plain['default'])})" if _simple(plain.get("default")) else ""
        said = " ".join(str(plain.get("description", "")).split())
        out.append(f"  {name}: {_kind(plain)}{default}{'  ' + said if said else ''}")
    return out


def _simple(value: Any) -> bool:
    return value is not None and not isinstance(value, dict | list)


def _kind(node: dict[str, Any]) -> str:
    """Type and range in words."""
    if "enum" in node:
        return " | ".join(json.dumps(v) for v in node["enum"])
    if "const" in node:
        return json.dumps(node["const"])
    if "oneOf" in node or "oneOf" in node.get("items", {}):
        return "list of parts" if "items" in node else "one part"
    if options := [one for one in node.get("anyOf", []) if one.get("type") != "null"]:
        return " | ".join(map(_kind, options))
    kind = {"object": "table", "array": "list", "number": "number", "integer": "whole number", "string": "text"}
    limits = [
        f"{sign} {node[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in node
    ]
    return " ".join([kind.get(node.get("type", ""), node.get("type", "value")), *limits])
