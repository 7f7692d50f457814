"""The port to the blobs of a server: content-addressed bytes in a folder or in an object store.

    with store.kept() as put:
        digest = put(raw)
        store.sync()
        ...                                # name the digest durably
    with store.held(digest):
        size = store.size(digest)          # None: there is no such blob
        piece = store.read(digest, 0, min(size, store.piece_bytes))

A blob is visible whole or not at all, also after a kill. What was put and never named goes with a later sweep.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from edgewise.core import vector
from edgewise.core.vector import Buffer


class BlobStore(Protocol):
    """Port to content-addressed bytes. A blob's name is the SHA-256 of its bytes, in hexadecimal.

    Several threads may call it. ``held`` and ``kept`` protect blobs from the sweeps of this object. A time of grace
    protects them from the sweeps of other processes.

    Attributes:
        piece_bytes: the largest useful number of bytes of one ``read``.
    """

    piece_bytes: int

    def put(self, raw: Buffer) -> str:
        """Store bytes and return their digest. Stored bytes that have changed are replaced, and the age begins anew.

        Call ``sync`` before anything durable names the digest.
        """

    def kept(self) -> AbstractContextManager[Callable[[Buffer], str]]:
        """Give a ``put`` whose blobs no sweep removes before the block ends.

        Name the blobs durably within the block. Sweeps that begin later find their names.
        """

    def held(self, digest: str) -> AbstractContextManager[None]:
        """Keep a blob from sweeps until the block ends. It need not exist."""

    def sync(self) -> None:
        """Make all that was put survive a power cut."""

    def get(self, digest: str) -> bytes:
        """Return the bytes of a digest.

        Raises:
            StoreError: E-CHECKPOINT where they are missing or are not those that were put.
        """

    def size(self, digest: str) -> int | None:
        """Return the size of a blob in bytes. None: there is no such blob."""

    def read(self, digest: str, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` up to ``stop``, unchecked. Whoever has all of them checks the digest.

        Raises:
            StoreError: E-CHECKPOINT where the blob is gone or shorter.
        """

    def fault(self) -> str | None:
        """Say why the store cannot be used at the moment. None: it can. The answer comes within a few seconds."""

    def sweep(self, named: Callable[[], Collection[str]]) -> None:
        """Remove all blobs that nothing names and nobody holds.

        Args:
            named: returns the digests that are named now. It is called once, after the blobs were listed.
        """


class Holds:
    """The blobs that sweeps of this process must spare, counted by digest. Readers never wait for a sweep."""

    def __init__(self) -> None:
        self._count, self._leaving = Counter[str](), set[str]()
        self._change, self._sweeping = threading.Condition(), threading.Lock()

    @contextmanager
    def held(self, digest: str) -> Iterator[None]:
        """Hold a digest until the block ends. It does not call back a removal that has begun."""
        with self._change:
            self._count[digest] += 1
        try:
            yield
        finally:
            self._release([digest])

    @contextmanager
    def together(self) -> Iterator[Callable[[str], None]]:
        """Give a ``take`` that holds digests until the block ends and no sweep is under way.

        ``take`` waits until a removal of the digest has ended. A sweep that is under way may have asked for the names
        before these digests had theirs.
        """
        held: list[str] = []

        def take(digest: str) -> None:
            with self._change:
                self._count[digest] += 1
                held.append(digest)
                self._change.wait_for(lambda: digest not in self._leaving)

        try:
            yield take
        finally:
            with self._sweeping:
                self._release(held)

    @contextmanager
    def kept(self, put_blob: Callable[[Buffer, str], str]) -> Iterator[Callable[[Buffer], str]]:
        """Give the ``put`` of ``BlobStore.kept``. ``put_blob``: stores bytes under their digest and returns it."""
        with self.together() as take:

            def put(raw: Buffer) -> str:
                digest = vector.digest(raw)
                take(digest)
                return put_blob(raw, digest)

            yield put

    def _release(self, digests: list[str]) -> None:
        with self._change:
            self._count = +(self._count - Counter(digests))

    @contextmanager
    def sweeping(self) -> Iterator[Callable[[str], AbstractContextManager[bool]]]:
        """Begin a sweep, one at a time. Gives ``removal(digest)``, a block that is told whether it may remove."""
        with self._sweeping:
            yield self._removal

    @contextmanager
    def _removal(self, digest: str) -> Iterator[bool]:
        with self._change:
            free = digest not in self._count
            if free:
                self._leaving.add(digest)
        try:
            yield free
        finally:
            with self._change:
                self._leaving.discard(digest)
                self._change.notify_all()
