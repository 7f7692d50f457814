"""Cost of a step without a clock: bytes it allocates at most, and calls of Python functions."""

from __future__ import annotations

import gc
import statistics
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


def allocated(step: Callable[[], object]) -> int:
    """Bytes that ``step`` holds at its worst moment beyond what was held before it."""
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    step()
    return tracemalloc.get_traced_memory()[1] - before


@contextmanager
def traced() -> Iterator[None]:
    """Context in which ``allocated`` can be asked."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def per_step(steps: Iterable[Callable[[], object]], last: int) -> float:
    """Run all steps in order. The median of what the ``last`` of them allocate: a table that is just then made larger
    for all of its entries is a rare one."""
    with traced():
        return statistics.median([allocated(step) for step in steps][-last:])


def calls(work: Callable[[], object]) -> int:
    """Calls of functions and of generators, also of those written in C."""
    n = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal n
        n += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return n


class Name(str):
    """A name that counts how often any name is compared."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__
