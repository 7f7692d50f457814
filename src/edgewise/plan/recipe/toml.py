"""Read TOML text into plain tables, and bound their size and depth."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from edgewise.core.errors import RecipeError
from edgewise.core.foreign import foreign

LONGEST = 1 << 18  # Characters of a recipe. The bundled ones have some 2,000.
DEEPEST = 8  # Tables and lists inside one another. A recipe needs three.
LARGEST = 2**63  # TOML, JSON and the database all hold smaller integers exactly.
_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_LONG_KEY = re.compile(r"(?<![\w-])(?:" + _PART + "){64}")  # tomllib takes quadratic time for a key of many parts.


def read(text: str, where: str) -> dict[str, Any]:
    """Read the tables of a TOML text. Raises RecipeError(E-RECIPE-SYNTAX), with ``where`` as the name of the text."""
    if len(text) > LONGEST:
        raise RecipeError("E-RECIPE-SYNTAX", f"{where} is longer than {LONGEST} characters.", "shorten it.")
    if _LONG_KEY.search(text):
        raise RecipeError("E-RECIPE-SYNTAX", f"{where}: a key has more than 64 parts.", "see `edgewise schema`.")
    with foreign(RecipeError, "E-RECIPE-SYNTAX", where):
        return tomllib.loads(text)


def toml_value(text: str, where: str) -> Any:
    """Read a TOML value, or return the text itself if it is not one. Raises as ``read``."""
    try:
        plain = read(f"value = {text}", where)
    except RecipeError as e:
        if isinstance(e.__cause__, tomllib.TOMLDecodeError):
            return text.strip()
        raise
    return plain["value"] if len(plain) == 1 else text.strip()  # A line feed in the text would begin another key.


def bounded(plain: Any, where: str) -> None:
    """Check the depth of values and the size of whole numbers. Raises RecipeError(E-VALUE)."""
    level = [plain]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for one in level:
            inner += one.values() if isinstance(one, dict) else one if isinstance(one, list | tuple) else ()
            if isinstance(one, int) and abs(one) >= LARGEST:
                fix = "write a number of at most 18 digits."
                raise RecipeError("E-VALUE", f"{where}: a whole number has {one.bit_length()} bits.", fix)
        level = inner
        if not level:
            return
    raise RecipeError("E-VALUE", f"{where}: values lie more than {DEEPEST} levels deep.", "see `edgewise schema`.")
