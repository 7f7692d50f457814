"""Recipes that ship with edgewise: their names, texts and purposes, and copies for a person to change."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from edgewise.core.errors import RecipeError
from edgewise.drivers.storage.files import write_new
from edgewise.plan.recipe.findings import nearest

_ASSETS = Path(str(resources.files("edgewise"))) / "assets"
FOLDER, STUDENT = _ASSETS / "recipes", _ASSETS / "student"  # STUDENT is the bundled model.


def shipped_recipe_names() -> list[str]:
    """List the names of all shipped recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def text(name: str) -> str:
    """Read a shipped recipe. Raises RecipeError(E-UNKNOWN) with the nearest name."""
    wanted = name.removesuffix(".toml")
    if wanted not in shipped_recipe_names():
        near = nearest(wanted, shipped_recipe_names())
        hint = f"did you mean `{near}`?" if near else f"one of: {', '.join(shipped_recipe_names())}."
        raise RecipeError("E-UNKNOWN", f"no recipe is called {name!r:.80}.", hint)
    return (FOLDER / f"{wanted}.toml").read_text(encoding="utf-8")


def recipe_purpose(name: str) -> str:
    """Return the first sentence of a recipe's heading comment."""
    lines = []
    for line in text(name).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).split(". ")[0].rstrip(".:") + "."


def copy_shipped_recipe(name: str, to: Path) -> Path:
    """Write a shipped recipe to the file ``to``, or under its own name into the folder ``to``. Returns the file.

    Raises:
        RecipeError: E-UNKNOWN. StoreError: E-FILE-EXISTS if the file exists, E-DISK.
    """
    target = to / f"{name.removesuffix('.toml')}.toml" if to.is_dir() else to
    write_new(target, text(name).encode())
    return target
