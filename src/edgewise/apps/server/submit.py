"""Submit a recipe to a server. The model's files and first values are sent before it, in pieces."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from edgewise.apps.server.submission import Submission
from edgewise.core import vector
from edgewise.core.errors import ModelError, RecipeError, TransportError
from edgewise.core.vector import Spec, Vector
from edgewise.drivers import extension_packages
from edgewise.drivers.http import package
from edgewise.drivers.http.link import SLOW_S, Link
from edgewise.drivers.http.staging import Staging
from edgewise.drivers.workers.trainers import make_trainer
from edgewise.engine.trainer import Trainer
from edgewise.plan.catalogue import BUILT_IN, Catalogue
from edgewise.plan.facts import ExtensionPackage
from edgewise.plan.recipe.keywords import SOURCE
from edgewise.plan.recipe.recipe import Recipe

PIECE_BYTES = 2**22


@dataclass(frozen=True)
class StagedRun:
    """A submission, and the blobs to send before it: digest, bytes or a file of them, size."""

    wanted: Submission
    blobs: Sequence[tuple[str, bytes | Path, int]] = field(repr=False)


def submit(
    link: Link,
    recipe: Recipe,
    recipe_dir: Path,
    tags: Sequence[str] = (),
    extensions: Sequence[str] = (),
    sent: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Begin a run of a recipe on the devices of a server. Returns the server's answer.

    Args:
        recipe_dir: the folder that relative paths of the recipe start from.
        tags: only devices with all these tags take part.
        extensions: modules of installed packages with your own parts.
        sent: called with the number of bytes that have arrived and the number of all bytes.
    Raises:
        RecipeError, ModelError: as ``prepared_submission``.
        RecipeError, TransportError: as the server answers.
    """
    catalogue = extension_packages.catalogue(extension_packages.installed_packages(extensions))
    with tempfile.TemporaryDirectory(prefix="edgewise-") as shards:
        made = prepared_submission(recipe, recipe_dir, tags, catalogue, Path(shards))
        total, done = sum(size for _, _, size in made.blobs), 0
        for digest, source, size in made.blobs:
            for here in _staged(link, digest, source, size):
                sent(done + here, total)
            done += size
    document = msgspec.to_builtins(made.wanted)
    found: dict[str, Any] = link.call("POST", "/v1/runs", document=document, answer_s=SLOW_S, once=True)
    return found


def prepared_submission(
    recipe: Recipe,
    recipe_dir: Path,
    tags: Sequence[str] = (),
    catalogue: Catalogue = BUILT_IN,
    shards: Path | None = None,
) -> StagedRun:
    """Collect the submission of a recipe and its blobs.

    Args:
        catalogue: the packages that the recipe uses.
        shards: as in ``learn.models.untrained.load_untrained``. The folder has to stay until the blobs are sent.
    Raises:
        RecipeError(E-COMBO), and ModelError as the trainer. StoreError: E-DISK.
    """
    check_submission(recipe)
    if catalogue.trainer is not None:
        return _of_trainer(recipe, recipe_dir, tags, catalogue)
    if recipe.data.source == SOURCE:
        return _of_keywords(recipe, recipe_dir, tags)
    from edgewise.learn.models.untrained import load_unmeasured, load_untrained

    load = load_unmeasured if recipe.statistics.active else load_untrained
    begun = load(recipe, recipe_dir, shards)
    names = {path.name: path for path in begun.files}
    if odd := [name for name in names if not package.is_packed_file(name)]:
        what = f"the model's folder has a file that does not travel: {odd[0]}."
        raise ModelError("E-MODEL", what, "rename or remove it.")
    digests = {name: _digest(path) for name, path in names.items()}
    manifest = package.dump_package(digests) if digests else b""
    model = vector.digest(manifest) if manifest else None
    made = submission_of_vector(recipe, begun.spec, begun.initial, model, begun.facts, tags, catalogue.packages)
    if begun.rest is not None and begun.rest.size:
        raw = bytes(vector.to_bytes(begun.rest))
        rest = vector.digest(raw)
        wanted = msgspec.structs.replace(made.wanted, rest=rest)
        made = StagedRun(wanted, (*made.blobs, (rest, raw, len(raw))))
    files: list[tuple[str, bytes | Path, int]] = []
    if manifest:
        files.append((vector.digest(manifest), manifest, len(manifest)))
        files += [(digests[name], path, path.stat().st_size) for name, path in names.items()]
    return replace(made, blobs=(*made.blobs, *files))


def _of_keywords(recipe: Recipe, recipe_dir: Path, tags: Sequence[str]) -> StagedRun:
    """Make the submission of a recipe of keywords: the base, trained on the public clips, and the keywords' order."""
    from edgewise.learn.keywords.heard import heard_clips

    heard, light = heard_clips(recipe, recipe_dir, public_only=True), recipe.keywords.computes == "numpy"
    with tempfile.TemporaryDirectory(prefix="edgewise-") as cache:
        trainer: Trainer
        if light:
            from edgewise.learn.keywords.light_trainer import LightTrainer

            trainer = LightTrainer(recipe, heard, Path(cache))
        else:
            from edgewise.learn.keywords.trainer import KeywordTrainer

            trainer = KeywordTrainer(recipe, heard, Path(cache))
    words = recipe.keywords.model_copy(update={"words": list(heard.names)})
    facts = {"model": "KeywordNet", "parameters": trainer.spec.dim, "trainable": trainer.spec.dim}
    named = recipe.model_copy(update={"keywords": words})
    return submission_of_vector(named, trainer.spec, trainer.initial(), None, facts, tags)


def _of_trainer(recipe: Recipe, recipe_dir: Path, tags: Sequence[str], catalogue: Catalogue) -> StagedRun:
    """Make the submission of a recipe whose trainer comes from a package. The trainer gives layout and first values."""
    if recipe.model.base != "bundled":
        what = f"model.base = {recipe.model.base!r} with a trainer of a package: the package brings the model."
        raise RecipeError("E-COMBO", what, "leave out model.base; put the model's files into the package.")
    made = make_trainer(recipe, recipe_dir, recipe_dir, catalogue)
    sizes = made.trainer.sizes()
    facts = {
        "model": type(made.trainer).__name__,
        "parameters": int(sizes["parameters"]),
        "trainable": made.trainer.spec.dim,
    }
    return submission_of_vector(recipe, made.trainer.spec, made.initial(), None, facts, tags, catalogue.packages)


def submission_of_vector(
    recipe: Recipe,
    spec: Spec,
    initial: Vector,
    model: str | None,
    facts: dict[str, Any],
    tags: Sequence[str] = (),
    packages: Sequence[ExtensionPackage] = (),
) -> StagedRun:
    """Make the submission of a recipe and the first values of the trained parameters, float32 of ``spec``.

    ``model``, ``facts``, ``tags`` and ``packages`` are as in ``Submission``.
    """
    raw = bytes(vector.to_bytes(initial))
    wanted = Submission(
        recipe=recipe.resolved(), spec=spec.to_list(), initial=vector.digest(raw), model=model, facts=facts,
        tags=tuple(tags), packages=tuple(packages),
    )  # fmt: skip
    return StagedRun(wanted, [(wanted.initial, raw, len(raw))])


def submission_from_values(made: StagedRun, initial: Vector) -> StagedRun:
    """Make a submission of the same run that begins with other values of the trained parameters."""
    raw = bytes(vector.to_bytes(initial))
    wanted = msgspec.structs.replace(made.wanted, initial=vector.digest(raw))
    blobs = [blob for blob in made.blobs if blob[0] != made.wanted.initial]
    return StagedRun(wanted, [(wanted.initial, raw, len(raw)), *blobs])


def check_submission(recipe: Recipe) -> None:
    """Check that enrolled devices can train a recipe. Raises RecipeError(E-COMBO) if they cannot."""
    if recipe.strategy.get("kind") == "zeroth_order":
        what = 'strategy = "zeroth_order" trains along directions, which enrolled devices are not given yet.'
        raise RecipeError("E-COMBO", what, "take another strategy, or simulate the recipe.")


def stage_submission(staging: Staging, made: StagedRun) -> None:
    """Put the blobs into a server of this process. Raises as ``Staging.put``."""
    for digest, source, size in made.blobs:
        while (here := staging.received(digest)) < size:
            staging.put(digest, here, size, _piece(source, here))


def _staged(link: Link, digest: str, source: bytes | Path, size: int) -> Iterator[int]:
    """Send a blob to the server from where an earlier attempt stopped. Yields the number of bytes that have arrived."""
    path = f"/v1/staged/{digest}"
    here = int(link.call("GET", path)["received"])
    while here < size:
        piece = _piece(source, here)
        try:
            here = int(link.call("PUT", path, {"offset": here, "size": size}, body=piece)["received"])
        except TransportError as e:
            if e.code != "E-OFFSET":
                raise
            here = int(link.call("GET", path)["received"])  # The answer was lost, so the server already has the piece.
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
