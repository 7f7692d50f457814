"""Submitting a recipe to a server: the model's files and first values go ahead of it, in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgewise.core import vector
from edgewise.core.errors import ModelError, RecipeError, TransportError
from edgewise.drivers.http import package
from edgewise.drivers.http.link import Link
from edgewise.plan.recipe import Recipe

PIECE_BYTES = 2**22


def submit(
    link: Link,
    recipe: Recipe,
    recipe_dir: Path,
    tags: Sequence[str] = (),
    sent: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Begin a run of a recipe on the devices of a server; returns what the server says of it.

    Args:
        recipe_dir: relative paths of the recipe start here. tags: of the devices that take part. sent: called with the
            bytes that are at the server, and with all there are.
    Raises:
        ModelError as the trainer; RecipeError, TransportError as the server.
    """
    from edgewise.learn.untrained import untrained

    if recipe.strategy.get("kind") == "zeroth_order":
        what = 'strategy = "zeroth_order" trains along directions, which enrolled devices are not given yet.'
        raise RecipeError("E-COMBO", what, "take another strategy, or simulate the recipe.")
    begun = untrained(recipe, recipe_dir)
    names = {path.name: path for path in begun.files}
    if odd := [name for name in names if not package.packed(name)]:
        what = f"the model's folder has a file that does not travel: {odd[0]}."
        raise ModelError("E-MODEL", what, "rename or remove it.")
    digests = {name: _digest(path) for name, path in names.items()}
    manifest = package.dump(digests) if digests else b""
    initial = bytes(vector.to_bytes(begun.initial))
    blobs: list[tuple[str, bytes | Path, int]] = [(vector.digest(initial), initial, len(initial))]
    if manifest:
        blobs.append((vector.digest(manifest), manifest, len(manifest)))
        blobs += [(digests[name], path, path.stat().st_size) for name, path in names.items()]
    total, done = sum(size for _, _, size in blobs), 0
    for digest, source, size in blobs:
        for here in _staged(link, digest, source, size):
            sent(done + here, total)
        done += size
    document = {
        "recipe": recipe.resolved(),
        "spec": begun.spec.to_list(),
        "initial": vector.digest(initial),
        "model": vector.digest(manifest) if manifest else "",
        "facts": begun.facts,
        "tags": list(tags),
    }
    found: dict[str, Any] = link.call("POST", "/v1/runs", document=document)
    return found


def _staged(link: Link, digest: str, source: bytes | Path, size: int) -> Iterator[int]:
    """Bring a blob to the server, from where it stands; yields how much of it is there."""
    path = f"/v1/staged/{digest}"
    here = int(link.call("GET", path)["received"])
    while here < size:
        piece = _piece(source, here)
        try:
            here = int(link.call("PUT", path, {"offset": here, "size": size}, body=piece)["received"])
        except TransportError as e:
            if e.code != "E-OFFSET":
                raise
            here = int(link.call("GET", path)["received"])  # an answer was lost: the server has the piece
        yield here


def _piece(source: bytes | Path, at: int) -> bytes:
    if isinstance(source, bytes):
        return source[at : at + PIECE_BYTES]
    with open(source, "rb") as f:
        f.seek(at)
        return f.read(PIECE_BYTES)


def _digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
