"""Compilation of loops with numba at their first call, so that a program that calls none does not import numba.

Loops use integer arithmetic and IEEE float64 without contraction or reordering, so their bits are the same on every
little-endian platform. Inner loops run over slices from 0 to their size. Only then does the compiler know that no index
is negative, and use vector instructions.

``interpret_loops`` leaves numba out, for devices with little memory and models of some 100,000 parameters. A round then
takes up to seconds longer, and the bits are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


def compiled(f: F) -> F:
    """Compile with numba in no-Python mode, cached on disk, without the GIL. The type of ``f`` stays visible.

    numba is imported at the first call, because the import takes a second. Compiled loops that ``f`` calls are globals
    of its module, under their own names.

    Example:
        @compiled
        def total(x: NDArray[np.int64]) -> int:
            ...
    """
    return cast(F, _Loop(cast(FunctionType, f)))


class _Loop:
    """A loop that is compiled at its first call. A dispatcher of numba then stands in its place in its module."""

    def __init__(self, f: FunctionType) -> None:
        functools.update_wrapper(self, f)
        self._f = f
        self._dispatcher: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self._dispatcher is None and _Mode.interpreted:
            with np.errstate(over="ignore"):  # Products of 64-bit words wrap, as numba's do.
                return self._f(*arguments)
        return self.dispatcher()(*arguments)

    def dispatcher(self) -> Any:
        """Return the dispatcher of numba. numba looks up what ``f`` calls in its globals, so they come first."""
        if self._dispatcher is None:
            from numba import njit

            here = self._f.__globals__
            made = njit(cache=True, nogil=True)(self._f)  # Two threads may each make one. Either computes the same.
            for name in _names(self._f.__code__) | {self._f.__name__}:
                if isinstance(loop := here.get(name), _Loop):
                    here[name] = made if loop is self else loop.dispatcher()
            self._dispatcher = made
        return self._dispatcher


class _Mode:
    """How the loops of this process run."""

    interpreted = False


def interpret_loops() -> None:
    """Interpret the loops of this process from now on, but for those that are compiled already."""
    _Mode.interpreted = True


def _names(code: CodeType) -> set[str]:
    """List the globals that a function names, and those of functions inside of it."""
    inner = (_names(c) for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*inner)
