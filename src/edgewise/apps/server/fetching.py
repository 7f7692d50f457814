"""Fetch the promoted model from a server into a folder. Every file is compared with the digest that names it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from edgewise.apps.runs.fetched_folder import BASE, FACTS, LINEAGE, TRAINED
from edgewise.core import vector
from edgewise.core.errors import StoreError, TransportError
from edgewise.core.foreign import foreign
from edgewise.core.vector import Spec
from edgewise.drivers.http import package
from edgewise.drivers.http.answers import entry
from edgewise.drivers.http.link import Link
from edgewise.drivers.storage.files import sync_folder

PART_SUFFIX = ".part"
OPERATOR = "tell the operator of the server."


def fetch(link: Link, dest: Path) -> dict[str, Any]:
    """Fetch a server's promoted model into a new folder ``dest``. Returns the model's lineage.

    Raises:
        TransportError: E-UNKNOWN-ID if no model is promoted. E-BLOB for a blob that does not have its digest or its
            form. E-CONNECT for an answer that no edgewise server gives.
        DecodeError(E-FACTS): for a malformed list of files.
        StoreError: E-FILE-EXISTS, E-DISK.
    """
    if dest.exists():
        raise StoreError("E-FILE-EXISTS", f"{dest} exists already.", "name a new folder.")
    one: dict[str, Any] = link.call("GET", "/v1/models/promoted")
    entry(one, "name", str)  # What uses the model reads these from its lineage.
    entry(one, "played", int)
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", suffix=PART_SUFFIX, dir=dest.parent) as folder:
            part, blobs = Path(folder) / "model", Path(folder) / "blobs"
            part.mkdir()
            blobs.mkdir()
            _write(link, one, blobs, part)
            (part / LINEAGE).write_text(json.dumps(one, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            os.rename(part, dest)
        sync_folder(dest.parent)
    except OSError as e:
        raise StoreError("E-DISK", f"cannot write {dest}: {e.strerror}.", "free some space, or name another.") from None
    return one


def _write(link: Link, one: Mapping[str, Any], blobs: Path, part: Path) -> None:
    def get(digest: str) -> Path:
        return link.download(digest, blobs, entry(one.get("blobs"), digest, int))

    shutil.move(get(entry(one, "run", str)), part / FACTS)  # The digest of its facts is the id of a run.
    layout = get(entry(one, "layout", str)).read_bytes()
    with foreign(TransportError, "E-BLOB", "the layout of the promoted model cannot be read", OPERATOR):
        spec = Spec.of([(name, tuple(shape), dtype) for name, shape, dtype in json.loads(layout)])
    raw = get(entry(one, "model", str)).read_bytes()
    if len(raw) != 4 * spec.dim:
        raise TransportError("E-BLOB", "the promoted model is not of its layout.", OPERATOR)
    save_file(vector.unpack(vector.from_bytes(raw, spec.dim), spec), part / TRAINED)
    if (manifest := package.package_digest_in(entry(one, "base", str))) is not None:
        (part / BASE).mkdir()
        for name, digest in package.parse(get(manifest).read_bytes()).items():
            shutil.move(get(digest), part / BASE / name)
