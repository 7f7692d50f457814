"""Boundary around parsers of other libraries. Their exceptions become errors with a code."""

from __future__ import annotations

from types import TracebackType

from edgewise.core.errors import EdgewiseError


class foreign:
    """Turn any exception of a foreign parser into an error with a code.

    No list of the exceptions that a parser may raise is complete. Damaged input also ends in RecursionError,
    ZeroDivisionError or an exception type of the parser's own. Put the foreign call alone inside, and none of our own
    code. Otherwise a bug of ours would be reported as a fault of the input. The exception stays the cause of the error,
    so ``--debug`` shows its origin. Errors that already have a code pass unchanged. So do exits and Ctrl-C.

        with foreign(RecipeError, "E-RECIPE-SYNTAX", path):
            plain = tomllib.loads(text)

    Args:
        error: the class of error to raise.
        code: a code of the registry.
        what: the input that cannot be read. The reason follows it.
        fix: what the reader should do.
    """

    __slots__ = ("_code", "_error", "_fix", "_what")

    def __init__(self, error: type[EdgewiseError], code: str, what: str, fix: str = "") -> None:
        self._error, self._code, self._what, self._fix = error, code, what, fix

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(e, Exception) and not isinstance(e, EdgewiseError):
            raise self._error(self._code, f"{self._what}: {reason(e)}.", self._fix) from e


def reason(e: BaseException) -> str:
    """Say why another library failed: the first line of its message, with the type if that says more."""
    if isinstance(e, OSError) and e.strerror:
        return e.strerror
    first = (str(e).strip().splitlines() or [""])[0].rstrip(".")
    if not first or isinstance(e, LookupError | ArithmeticError | MemoryError | RecursionError | AttributeError):
        return f"{type(e).__name__} {first}".strip()
    return first
