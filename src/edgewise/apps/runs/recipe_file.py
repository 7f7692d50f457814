"""Read a recipe from its file, with values that a command line replaces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgewise.core.errors import RecipeError
from edgewise.plan.recipe import toml
from edgewise.plan.recipe.recipe import Recipe


def assignments(given: list[str] | None) -> dict[str, Any]:
    """Parse ``["training.lr=0.01", "name=x"]`` to ``{"training.lr": 0.01, "name": "x"}``.

    Values are TOML. A value that is not TOML is text.

    Raises RecipeError: E-VALUE without ``=``, E-RECIPE-SYNTAX for TOML that is too deep or too long.
    """
    out: dict[str, Any] = {}
    for one in given or []:
        key, equals, text = one.partition("=")
        if not (equals and key.strip()):
            raise RecipeError("E-VALUE", f"--set {one!r} assigns nothing.", "write --set section.key=value.")
        out[key.strip()] = toml.toml_value(text, f"--set {key.strip()}")
    return out


def read(path: Path, overrides: dict[str, Any], extensions: Sequence[str]) -> tuple[Recipe, list[str]]:
    """Read a recipe from its file. Returns it, and the names of its extension modules, which become importable.

    Raises RecipeError as ``plan.recipe.loading.load``, ``extensions.importable`` and ``catalogue.with_extensions``.
    """
    from edgewise.apps.runs.extensions import importable
    from edgewise.plan.catalogue import with_extensions
    from edgewise.plan.recipe.loading import load

    parts = importable(extensions, path.parent)
    return load(path, overrides, with_extensions(parts)), parts
