"""Named errors for faults in code of a user: an extension's codec, strategy, merge or trainer.

Such code may raise anything, anywhere. ``fault_of`` makes it an error that shows the line of the author's code, so that
it does not look like a bug of edgewise.

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

FIX = "correct that line. --debug shows the whole traceback, and --resume continues a run that had started."


def fault_of(e: BaseException, modules: Sequence[str]) -> EdgewiseError | None:
    """Name the fault of an extension behind an exception.

    Args:
        e: the exception.
        modules: names of the extensions' modules. Modules that they import from beside them count as theirs.
    Returns:
        RecipeError(E-EXTENSION) with file, line and reason. None if the exception did not come out of an extension, or
        has a code already.
    """
    if isinstance(e, EdgewiseError | KeyboardInterrupt | GeneratorExit) or not any(
        _is_module_of(frame.f_globals.get("__name__", ""), modules) for frame, _ in traceback.walk_tb(e.__traceback__)
    ):
        return None
    first = (str(e).strip().splitlines() or [""])[0]
    message = f"{type(e).__name__}: {first}".rstrip(":. ")
    return RecipeError("E-EXTENSION", f"{_failing_line(e, modules)}: {message}.", FIX)


def _is_module_of(name: str, modules: Sequence[str]) -> bool:
    """Tell whether a module is one of the extension's, or inside of one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def line_of(e: BaseException) -> str | None:
    """Find the innermost line of a traceback outside edgewise and installed libraries: ``net.py:31, in fit``.

    None if there is none. Only the name of the file is given, because the reason may travel.
    """
    frames = [frame for frame in traceback.extract_tb(e.__traceback__) if not is_library(frame.filename)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name}" if frames else None


def type_and_line(e: BaseException) -> str:
    """Describe an exception without its message, which may quote a device's text: ``TypeError (net.py:31, in fit)``."""
    line = line_of(e)
    return f"{type(e).__name__} ({line})" if line else type(e).__name__


def _failing_line(e: BaseException, modules: Sequence[str]) -> str:
    """Find the innermost line of the extension, or of a module that it imports from beside itself."""
    own = [
        (frame.f_code, line)
        for frame, line in traceback.walk_tb(e.__traceback__)
        if _is_module_of(frame.f_globals.get("__name__", ""), modules) or not is_library(frame.f_code.co_filename)
    ]
    code, line = own[-1]
    return f"{Path(code.co_filename).name}:{line}, in {code.co_name}"


@cache
def _library_folders() -> tuple[Path, ...]:
    """List the folders of the standard library, of packages, and of edgewise."""
    places = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return (Path(__file__).parents[1], *map(Path, places))


@cache
def is_library(file: str) -> bool:
    """Return True for files of edgewise, the standard library and installed packages.

    Code without a file counts as a library too, except code that a person types into Python or a notebook.
    """
    if file.startswith("<"):
        return not file.startswith(("<stdin", "<ipython"))
    return any(Path(file).is_relative_to(place) for place in _library_folders())
