"""Faults in code that is not ours: an extension's codec, strategy, merge or trainer may raise anything, anywhere. That
becomes a named error which shows the line of its author's code, and no bug of edgewise.

    try:
        work()
    except Exception as e:
        if (fault := fault_of(e, ["my_codec"])) is not None:
            raise fault from e
        raise
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from edgewise.core.errors import EdgewiseError, RecipeError

FIX = "mend it there; --debug shows the whole traceback. A run that had begun goes on with --resume."


def fault_of(e: BaseException, modules: Sequence[str]) -> EdgewiseError | None:
    """RecipeError(E-EXTENSION) with file, line and reason where an exception came out of code of an extension; None
    where it did not, or where it has a code already.

    Args:
        modules: names of the extensions' modules; what they import beside them counts as theirs.
    """
    if isinstance(e, EdgewiseError | KeyboardInterrupt | GeneratorExit) or not any(
        _of(frame.f_globals.get("__name__", ""), modules) for frame, _ in traceback.walk_tb(e.__traceback__)
    ):
        return None
    first = (str(e).strip().splitlines() or [""])[0]
    said = f"{type(e).__name__}: {first}".rstrip(":. ")
    return RecipeError("E-EXTENSION", f"{_place(e, modules)}: {said}.", FIX)


def _of(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def line_of(e: BaseException) -> str:
    """``net.py:31, in fit``: the innermost line that is neither edgewise's nor that of an installed library.

    Empty where there is none. The file's name alone, since the reason may travel.
    """
    found = [at for at in traceback.extract_tb(e.__traceback__) if not is_library(at.filename)]
    return f"{Path(found[-1].filename).name}:{found[-1].lineno}, in {found[-1].name}" if found else ""


def type_and_line(e: BaseException) -> str:
    """``TypeError (net.py:31, in fit)``: what may be said of an exception whose message may quote text of a device."""
    at = line_of(e)
    return f"{type(e).__name__} ({at})" if at else type(e).__name__


def _place(e: BaseException, modules: Sequence[str]) -> str:
    """The innermost line of the extension, or of what it imports from beside itself."""
    own = [
        (frame.f_code, line)
        for frame, line in traceback.walk_tb(e.__traceback__)
        if _of(frame.f_globals.get("__name__", ""), modules) or not is_library(frame.f_code.co_filename)
    ]
    code, line = own[-1]
    return f"{Path(code.co_filename).name}:{line}, in {code.co_name}"


@cache
def _libraries() -> tuple[Path, ...]:
    places = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return (Path(__file__).parents[1], *map(Path, places))


@cache
def is_library(file: str) -> bool:
    """Whether a file is edgewise's, the standard library's or an installed package's; so is code without a file, except
    what a person types into Python or a notebook."""
    if file.startswith("<"):
        return not file.startswith(("<stdin", "<ipython"))
    return any(Path(file).is_relative_to(place) for place in _libraries())
