"""Find the modules of extensions: on Python's path, in the current folder, and beside the recipe."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from edgewise.core.errors import RecipeError


def importable(given: Sequence[str], recipe_dir: Path) -> list[str]:
    """Make extension modules importable, also in worker processes.

    Returns their names for ``plan.catalogue.with_extensions``.

    A given name may be a module (``signs``, ``my.codecs``) or a file (``signs.py``, ``parts/signs.py``). The current
    folder, ``recipe_dir`` and the folders of files are added at the end of Python's path, so they never hide an
    installed package.

    Raises:
        RecipeError: E-EXTENSION for a file that does not exist, or that another module of its name hides.
    """
    if not given:
        return []
    _add_to_path(Path())
    _add_to_path(recipe_dir)
    return [_module_of_file(Path(one)) if one.endswith(".py") else one for one in given]


def _add_to_path(folder: Path) -> None:
    """Let Python find the modules of a folder, after all others."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.append(place)


def _module_of_file(file: Path) -> str:
    """Find the name of the module in a file."""
    if not file.is_file():
        raise RecipeError("E-EXTENSION", f"there is no file {file}.", "give the module's file, or its name.")
    if not file.stem.isidentifier():
        raise RecipeError("E-EXTENSION", f"{file.name} is not the name of a module.", "use letters, digits and _ only.")
    _add_to_path(file.parent)
    found = importlib.util.find_spec(file.stem)
    if found is None or found.origin is None or Path(found.origin).resolve() != file.resolve():
        where = found.origin if found is not None else "nowhere"
        what = f"Python finds another module than {file} by the name {file.stem}: {where}."
        raise RecipeError("E-EXTENSION", what, "give the file a name of its own.")
    return file.stem
