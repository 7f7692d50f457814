"""TOML text to plain tables, and bounds on what they may hold, so that nothing after them works without end."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from edgewise.core.errors import RecipeError
from edgewise.core.foreign import foreign

LONGEST = 1 << 18  # characters of a recipe; those that ship have some 2,000
DEEPEST = 8  # tables and lists inside one another; a recipe needs three
LARGEST = 2**63  # whole numbers below it are whole in TOML, in JSON and in the database
_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_LONG_KEY = re.compile(r"(?<![\w-])(?:" + _PART + "){64}")  # tomllib takes quadratic time for keys of many parts


def read(text: str, where: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises RecipeError(E-RECIPE-SYNTAX); ``where`` names the text in the message."""
    if len(text) > LONGEST:
        raise RecipeError("E-RECIPE-SYNTAX", f"{where} is longer than {LONGEST} characters.", "shorten it.")
    if _LONG_KEY.search(text):
        raise RecipeError("E-RECIPE-SYNTAX", f"{where}: a key has more than 64 parts.", "see `edgewise schema`.")
    with foreign(RecipeError, "E-RECIPE-SYNTAX", where):
        return tomllib.loads(text)


def value(text: str, where: str) -> Any:
    """A TOML value, or the text itself where it is none. Raises RecipeError(E-RECIPE-SYNTAX) as ``read``."""
    try:
        plain = read(f"value = {text}", where)
    except RecipeError as e:
        if isinstance(e.__cause__, tomllib.TOMLDecodeError):
            return text.strip()
        raise
    return plain["value"] if len(plain) == 1 else text.strip()  # a line feed in it begins another key


def bounded(plain: Any, where: str) -> None:
    """Raises RecipeError(E-VALUE) where values lie too deep, or a whole number is too large for what reads it next."""
    level = [plain]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for one in level:
            inner += one.values() if isinstance(one, dict) else one if isinstance(one, list | tuple) else ()
            if isinstance(one, int) and abs(one) >= LARGEST:
                fix = "no key takes a number of more than 18 digits."
                raise RecipeError("E-VALUE", f"{where}: a whole number of {one.bit_length()} bits.", fix)
        level = inner
        if not level:
            return
    raise RecipeError("E-VALUE", f"{where}: values lie more than {DEEPEST} levels deep.", "see `edgewise schema`.")
