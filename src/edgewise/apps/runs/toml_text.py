"""Write a recipe as TOML text. The standard library reads TOML and does not write it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile("[A-Za-z0-9_-]+")


def toml(recipe: Mapping[str, Any]) -> str:
    """Write a recipe as TOML text that ``edgewise sim`` reads back to the same recipe. Recipes are two levels deep."""
    plain = [(k, v) for k, v in recipe.items() if not isinstance(v, dict) and not _is_tables(v)]
    lines = [f"{k} = {inline_toml(v)}" for k, v in plain]
    for key, value in recipe.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *(f"{k} = {inline_toml(v)}" for k, v in value.items())]
        elif _is_tables(value):
            for one in value:
                lines += ["", f"[[{key}]]", *(f"{k} = {inline_toml(v)}" for k, v in one.items())]
    return "\n".join(lines) + "\n"


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def inline_toml(value: Any) -> str:
    """Write one value as TOML in a line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(k)} = {inline_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(inline_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # Strings, numbers and booleans look the same in JSON and TOML.


def _toml_key(name: str) -> str:
    """Write a key, in quotes if it needs them."""
    return name if _BARE.fullmatch(name) else json.dumps(name)
