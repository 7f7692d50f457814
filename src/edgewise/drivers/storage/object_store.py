"""Blobs in a bucket of an S3-compatible object store: a ``BlobStore`` over the package obstore.

    store = ObjectStore(store_place.parse("s3://BUCKET/PREFIX", "https://minio.example:9000"), 3600.0)
    digest = store.put(raw)

    PREFIX/DIGEST     a blob
    PREFIX/owner      the name of the server to which the blobs belong (``claim``)
    PREFIX/clock      put by each sweep: its age is the store's own time

Credentials come from the environment or from where the machine runs, and never from the URL. No error shows them or a
text of the store's answers. Calls are repeated where the connection breaks or the store is busy. That is safe, because
a repeated call has the same result.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.core import vector
from edgewise.core.errors import StoreError, TransportError
from edgewise.drivers.storage.blob_store import Holds
from edgewise.drivers.storage.store_place import StorePlace

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Store

PART_BYTES = 2**23  # bytes of one request where a blob has more
ANSWER_S, PROBE_S, CONNECT_S, GIVE_UP_S, TRIES = 30.0, 3.0, 3.0, 15.0, 4
OWNER, CLOCK = "owner", "clock"
REPAIR = "restore the server from a backup, or submit the run again."
_DIGEST = re.compile(r"[0-9a-f]{64}")
_STATUS, _CODE = re.compile(r"status code: (\d{3})"), re.compile(r"<Code>(\w{1,60})</Code>")
_METADATA = ("169.254.169.254", "169.254.170.2", "fd00:ec2::254")  # where machines of a cloud ask for credentials
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_CREDENTIALS = {"ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"}


class ObjectStore:
    """The blobs at a place: a ``BlobStore``.

    Args:
        place: where they are.
        grace_s: sweeps leave blobs that were put within this time, by the store's own clock.
    Raises:
        TransportError: E-DEPENDENCY without the package obstore.
        StoreError: E-STORE-ACCESS for settings in the environment that contradict themselves.
    Every call raises StoreError: E-STORE-CONNECT, E-STORE-ACCESS, E-STORE-BUCKET.
    """

    piece_bytes = 2**20

    def __init__(self, place: StorePlace, grace_s: float) -> None:
        self.place, self._grace_s, self._holds = place, grace_s, Holds()
        self._store, self._probe = _client(place, ANSWER_S, TRIES - 1), _client(place, PROBE_S, 0)

    def put(self, raw: vector.Buffer) -> str:
        """See BlobStore. It always sends the bytes: an object store cannot make a blob young in another way."""
        return self._put_blob(raw, vector.digest(raw))

    def _put_blob(self, raw: vector.Buffer, digest: str) -> str:
        self._write(digest, raw)
        return digest

    def _write(self, name: str, raw: vector.Buffer) -> None:
        import obstore

        view = memoryview(raw)
        with self._errors():
            flat = view if view.format == "B" and view.ndim == 1 else view.cast("B")
            obstore.put(self._store, name, flat, chunk_size=PART_BYTES, max_concurrency=TRIES)

    def kept(self) -> AbstractContextManager[Callable[[vector.Buffer], str]]:
        """See BlobStore."""
        return self._holds.kept(self._put_blob)

    def held(self, digest: str) -> AbstractContextManager[None]:
        """See BlobStore."""
        return self._holds.held(digest)

    def sync(self) -> None:
        """See BlobStore. What an object store has acknowledged is durable."""

    def get(self, digest: str) -> bytes:
        """See BlobStore."""
        size = self.size(digest)
        if size is None:
            raise StoreError("E-CHECKPOINT", f"{self.place.url} lacks the blob {digest:.64}.", REPAIR)
        raw = b"".join(self.read(digest, at, min(at + PART_BYTES, size)) for at in range(0, size, PART_BYTES))
        if vector.digest(raw) != digest:
            what = f"the blob {digest:.64} in {self.place.url} is not what was put there."
            raise StoreError("E-CHECKPOINT", what, REPAIR)
        return raw

    def size(self, digest: str) -> int | None:
        """See BlobStore."""
        found = self._head(digest)
        return None if found is None else found["size"]

    def _head(self, name: str) -> ObjectMeta | None:
        import obstore

        with self._errors():
            try:
                return obstore.head(self._store, name)
            except FileNotFoundError:
                return None

    def read(self, digest: str, start: int, stop: int) -> bytes:
        """See BlobStore."""
        import obstore

        if start == stop:
            return b""
        raw = b""
        with self._errors():
            try:
                raw = bytes(obstore.get_range(self._store, digest, start=start, end=stop))
            except FileNotFoundError:
                pass
            except obstore.exceptions.GenericError as e:
                if _status(e) != 416:
                    raise
        if len(raw) != stop - start:
            what = f"the blob {digest:.64} in {self.place.url} is gone, or ends before byte {stop}."
            raise StoreError("E-CHECKPOINT", what, REPAIR)
        return raw

    def sweep(self, named: Callable[[], Collection[str]]) -> None:
        """See BlobStore."""
        import obstore

        with self._holds.sweeping() as removal:
            now = self._now() if self._grace_s else None
            listed = self._listed()
            for digest in set(filter(_DIGEST.fullmatch, listed)).difference(named()):
                at = listed[digest]["last_modified"]
                if now is not None and (now - at).total_seconds() <= self._grace_s:
                    continue
                with removal(digest) as free:
                    # Another server may have put it again after it was listed.
                    if free and (found := self._head(digest)) is not None and found["last_modified"] == at:
                        with self._errors():
                            obstore.delete(self._store, digest)

    def _now(self) -> datetime.datetime:
        """Return the store's time: that of an object which is put now. Raises StoreError(E-STORE-CONNECT)."""
        self._write(CLOCK, b"")
        if (found := self._head(CLOCK)) is None:
            what = f"the object store of {self.place.url} lacks what was just put there."
            raise StoreError("E-STORE-CONNECT", what, "use a store that shows an object once it has acknowledged it.")
        return found["last_modified"]

    def _listed(self) -> dict[str, ObjectMeta]:
        import obstore

        with self._errors():
            return {one["path"]: one for page in obstore.list(self._store) for one in page}

    def fault(self) -> str | None:
        """See BlobStore."""
        import obstore

        try:
            with self._errors():
                obstore.head(self._probe, OWNER)
        except StoreError as e:
            return str(e)
        return None

    def owner(self) -> str | None:
        """Return the name of the server to which the blobs belong. None: nobody has claimed the place."""
        size = self.size(OWNER)
        return None if size is None else self.read(OWNER, 0, min(size, 256)).decode("utf-8", "replace")

    def claim(self, name: str) -> None:
        """Name the server to which the blobs belong, unless it has a name. Of two claims one wins: see ``owner``."""
        import obstore

        with self._errors():
            try:
                obstore.put(self._store, OWNER, name.encode(), mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                return

    def measured(self) -> tuple[int, int]:
        """Return the number of blobs and their bytes."""
        sizes = [one["size"] for name, one in self._listed().items() if _DIGEST.fullmatch(name)]
        return len(sizes), sum(sizes)

    def check_rights(self) -> None:
        """Check that this machine may put, list and delete."""
        import obstore

        self._write(CLOCK, b"")
        self._listed()
        with self._errors():
            obstore.delete(self._store, CLOCK)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of the store into errors of edgewise. What may be absent is caught within the block."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError) as e:
            raise _error(self.place, e) from None


def _client(place: StorePlace, answer_s: float, again: int) -> S3Store:
    """Make a client. It takes region and credentials from the environment or from where the machine runs."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ModuleNotFoundError:
        what = "blobs in an object store need the package obstore."
        raise TransportError("E-DEPENDENCY", what, 'pip install "edgewise[s3]".') from None
    config: S3Config = {"disable_bulk_delete": True}
    options: ClientConfig = {
        "timeout": _seconds(answer_s),
        "connect_timeout": _seconds(CONNECT_S),
        "allow_http": place.endpoint is not None and place.endpoint.startswith("http://"),
    }
    if place.endpoint is not None:
        # Both names are set, because the second one in the environment would count more than the first one here.
        config["endpoint"] = config["aws_endpoint_url_s3"] = place.endpoint
    if (authorities := _authorities()) is not None:
        options["root_certificate"] = authorities
    retries: RetryConfig = {
        "max_retries": again,
        "retry_timeout": _seconds(GIVE_UP_S),
        "backoff": {"init_backoff": _seconds(0.1), "max_backoff": _seconds(3.0), "base": 2},
    }
    try:
        return S3Store(place.bucket, prefix=place.prefix, config=config, client_options=options, retry_config=retries)
    except BaseError:
        what = "the settings of the object store in the environment (AWS_...) cannot be used."
        fix = "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, both or neither, and look at the others."
        raise StoreError("E-STORE-ACCESS", what, fix) from None


def _seconds(s: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=s)


def _authorities() -> bytes | None:
    """Read the certificates of further authorities from the file AWS_CA_BUNDLE. Raises StoreError(E-STORE-ACCESS)."""
    path = os.environ.get("AWS_CA_BUNDLE", "")
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as e:
        what = f"the file of AWS_CA_BUNDLE cannot be read: {e.strerror}."
        raise StoreError("E-STORE-ACCESS", what, "name a file of certificates (PEM), or unset it.") from None


def _error(place: StorePlace, e: Exception) -> StoreError:
    """Say what kind of fault it is. The text of ``e`` is not shown: it may quote the store, keys and all."""
    text, where = str(e), f"{place.url}{'' if place.endpoint is None else f' at {place.endpoint}'}"
    found = _CODE.search(text)
    status, code = _status(e), "" if found is None else found[1]
    if any(address in text.partition("Debug source")[0] for address in _METADATA):
        what = f"no credentials were found for {where}."
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role."
        return StoreError("E-STORE-ACCESS", what, fix)
    if code in _REGION or "BareRedirect" in text:
        what = f"the bucket of {where} is in another region."
        return StoreError("E-STORE-BUCKET", what, "set AWS_REGION to the region of the bucket.")
    if code in _CREDENTIALS or status in (401, 403):
        what = f"{where} refuses these credentials{f' ({code})' if code else ''}."
        fix = "allow them to list the bucket, and to get, put and delete under the prefix. Check the clock too."
        return StoreError("E-STORE-ACCESS", what, fix)
    if isinstance(e, FileNotFoundError) or status == 404:
        return StoreError("E-STORE-BUCKET", f"there is no bucket of {where}.", "make it, or correct the URL.")
    how = f"answers with status {status}{f' ({code})' if code else ''}" if status else "cannot be reached"
    fix = "look at the store and the way to it. Work goes on by itself when it answers."
    return StoreError("E-STORE-CONNECT", f"the object store of {where} {how}.", fix)


def _status(e: Exception) -> int:
    found = _STATUS.search(str(e))
    return int(found[1]) if found else 0
