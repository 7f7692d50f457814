"""Where the blobs of a server are: in its folder, or in an object store that the folder notes.

    FOLDER/blobs/               the blobs, or nothing
    FOLDER/blobs-elsewhere      the place of the blobs in an object store: JSON of URL and endpoint, and no secret

A place belongs to one server: its object ``owner`` has the server's name, because a second server would sweep what it
does not name itself. The first start with an object store copies the folder's blobs there. It notes the place when all
are there and then removes the folder's, so that a start that was killed is repeated.
"""

from __future__ import annotations

import json
from pathlib import Path

from edgewise.core.digests import is_digest
from edgewise.core.errors import StoreError
from edgewise.drivers.storage import store_place
from edgewise.drivers.storage.blob_store import BlobStore
from edgewise.drivers.storage.blobs import Blobs
from edgewise.drivers.storage.fencing import GRACE_S
from edgewise.drivers.storage.files import FOLDER, discard, sync_folder, write_durably
from edgewise.drivers.storage.object_store import ObjectStore
from edgewise.drivers.storage.store_place import StorePlace

BLOBS, ELSEWHERE = "blobs", "blobs-elsewhere"


def opened_server_blobs(folder: Path, place: StorePlace | None, owner: str, grace_s: float) -> BlobStore:
    """Open the blobs of a server.

    Args:
        folder: the server's folder.
        place: where they are. None: in the folder.
        owner: name of the server.
        grace_s: sweeps of a folder leave blobs that were put within this time.
    Raises:
        StoreError: E-STORE-BUCKET where the folder or the place says that they are elsewhere or another server's, and
            as ``ObjectStore``. E-DISK.
        TransportError: E-DEPENDENCY.
    """
    (folder / BLOBS).mkdir(FOLDER, exist_ok=True)
    known = noted_object_store(folder)
    if place is None:
        if known is not None:
            what = f"the blobs of {folder} are in {known.url}."
            raise StoreError("E-STORE-BUCKET", what, "give the place (--blobs, or EDGEWISE_BLOBS).")
        return Blobs(folder / BLOBS, grace_s)
    store = ObjectStore(place, GRACE_S)
    store.check_rights()
    found = store.owner()
    if known is not None and found is None:
        lost = "has no blobs of this server any more" if known == place else f"has no copy of those in {known.url}"
        fix = "copy all objects of the old place, `owner` too, or restore the server from a backup."
        raise StoreError("E-STORE-BUCKET", f"{place.url} {lost}.", fix)
    if found is None:
        store.claim(owner)
        found = store.owner()
    if found != owner:
        what = f"{place.url} belongs to another server ({found:.80})."
        raise StoreError("E-STORE-BUCKET", what, "name a prefix of its own for each server.")
    if known != place:
        _move(folder, store)
    return store


def noted_object_store(folder: Path) -> StorePlace | None:
    """Return the object store that a folder notes. None: the blobs are in the folder.

    Raises:
        StoreError: E-CHECKPOINT where the note cannot be read.
    """
    try:
        raw = json.loads((folder / ELSEWHERE).read_bytes())
        return store_place.parse_store_place(str(raw["url"]), str(raw["endpoint"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        what = f"{folder / ELSEWHERE} cannot be read."
        raise StoreError("E-CHECKPOINT", what, "restore the folder from a backup.") from None


def _move(folder: Path, store: ObjectStore) -> None:
    """Copy the folder's blobs to a store, note the place, and remove the folder's."""
    old = Blobs(folder / BLOBS)
    digests = [path.name for path in (folder / BLOBS).iterdir() if is_digest(path.name)]
    for digest in digests:
        store.put(old.get(digest))
    text = json.dumps({"url": store.place.url, "endpoint": store.place.endpoint or ""})
    write_durably(folder / ELSEWHERE, text.encode(), owner_only=True)
    sync_folder(folder)
    for digest in digests:
        discard(old.path(digest))
