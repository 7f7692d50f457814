"""Locks by name: requests about one object run one after the other, and requests about other objects meanwhile.

    locks = NamedLocks()
    async with locks.of(upload): ...

The locks belong to one event loop. A lock exists only while a request holds it or waits for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class NamedLocks:
    """A lock for each name that is in use."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._asking = Counter[str]()

    @asynccontextmanager
    async def of(self, name: str, patience_s: float | None = None) -> AsyncIterator[None]:
        """Hold the lock of ``name``.

        Args:
            patience_s: longest wait in seconds; None: any.
        Raises:
            TimeoutError: for a longer wait.
        """
        lock = self._locks.setdefault(name, asyncio.Lock())
        self._asking[name] += 1
        try:
            async with asyncio.timeout(patience_s):
                await lock.acquire()
            try:
                yield
            finally:
                lock.release()
        finally:
            self._asking[name] -= 1
            if not self._asking[name]:  # A waiting request has this lock, so no other may replace it.
                del self._asking[name], self._locks[name]
