"""Describe the values that a key takes in words: ``a whole number from 1 to 16``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

_TYPES = {
    "number": "a number",
    "integer": "a whole number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a table",
}


def schema_choices(node: Mapping[str, Any]) -> list[str]:
    """Return the words that a key may have, by its JSON schema. Empty if it takes other values."""
    return [word for word in node.get("enum", []) if isinstance(word, str)]


def schema_wanted(node: Mapping[str, Any]) -> str:
    """Describe the values that a key takes, by its JSON schema."""
    if "enum" in node:
        return f"one of {', '.join(json.dumps(one) for one in node['enum'])}"
    if "const" in node:
        return json.dumps(node["const"])
    if "$ref" in node:
        return "a table"
    if options := [one for one in node.get("anyOf", []) if one.get("type") != "null"]:
        return " or ".join(map(schema_wanted, options))
    kind = _TYPES.get(str(node.get("type")), "another value")
    if kind == "a list":
        inner = node.get("items", {})
        of = "tables" if "$ref" in inner or inner.get("type") == "object" else _TYPES.get(inner.get("type"), "values")
        return f"a list of {of}{_length_in_words(node)}"
    if "pattern" in node:
        return f"text of the form {node['pattern']}"
    return f"{kind}{_range_in_words(node)}"


def _length_in_words(node: Mapping[str, Any]) -> str:
    """Describe how many values a list takes."""
    least, most = node.get("minItems"), node.get("maxItems")
    return (f", at least {least} of them" if least else "") + (f", at most {most} of them" if most else "")


def _range_in_words(node: Mapping[str, Any]) -> str:
    """Describe the limits of a number."""
    least, most = node.get("minimum"), node.get("maximum")
    above, below = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
    low = f" from {least:.10g}" if least is not None else f" above {above:.10g}" if above is not None else ""
    if low.startswith(" from") and most is None and below is None:
        return f" of {least:.10g} or more"
    high = f"at most {most:.10g}" if most is not None else f"below {below:.10g}" if below is not None else ""
    if low.startswith(" from") and most is not None:
        return f"{low} to {most:.10g}"
    return low + (" and " if low and high else " " if high else "") + high


@cache
def model_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a model."""
    return model.model_json_schema()


def schema_node(model: type[BaseModel], path: tuple[str | int, ...]) -> Mapping[str, Any]:
    """Return the JSON schema of one key. Empty if there is none. The last reference is not followed."""
    whole = model_schema(model)
    node: Mapping[str, Any] = whole
    for part in path:
        if "$ref" in node:
            node = whole["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
    return node
