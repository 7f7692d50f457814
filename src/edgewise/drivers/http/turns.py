"""Turns: requests about one object are handled one after the other, and those about other objects meanwhile.

    turns = Turns()
    async with turns.of(upload): ...

For one event loop. It remembers an object only while a request is about it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """A lock for each name that somebody asks for."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._asking = Counter[str]()

    @asynccontextmanager
    async def of(self, name: str, patience_s: float | None = None) -> AsyncIterator[None]:
        """Wait for the turn.

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
            if not self._asking[name]:  # who waits has this lock, so nobody may get another one before
                del self._asking[name], self._locks[name]
