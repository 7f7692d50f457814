"""Digests by which an owner allows an installed package: of all its files, by name and content.

digest = SHA-256("PATH\\0SHA256\\n" of each file, sorted by path)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from edgewise.core.errors import RecipeError

GROUP = "edgewise.extensions"  # entry points of packages with trainers and codecs; their value is a module
_COMPILED = (".pyc", ".pyo")


def of_package(name: str) -> str:
    """The digest of the installed files of a package, without what Python compiles from them.

    Raises RecipeError(E-EXTENSION) where it is not installed, or does not list its files.
    """
    return _digest(_files(_distribution(name)))


def extensions(allowed: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Modules for ``plan.catalogue.with_extensions``, of installed packages that the owner allows.

    Args:
        allowed: name and digest of each.
    Raises:
        RecipeError(E-EXTENSION): a package that is not installed, has another digest, or no entry point in ``GROUP``.
            Nothing of it is imported then.
    """
    modules: list[str] = []
    for name, digest in allowed:
        package = _distribution(name)
        if (found := _digest(_files(package))) != digest:
            what = f"the installed package {name} is not the one that the policy allows: its digest is {found}."
            raise RecipeError("E-EXTENSION", what, "install the one you allowed, or write the digest into the policy.")
        points = sorted(point.module for point in package.entry_points if point.group == GROUP)
        if not points:
            what = f"the package {name} has no entry point in {GROUP}."
            raise RecipeError("E-EXTENSION", what, f'its pyproject.toml needs [project.entry-points."{GROUP}"].')
        modules += points
    return tuple(modules)


def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        what = f"the package {name} is not installed."
        raise RecipeError("E-EXTENSION", what, "install it, or take it out of the policy.") from None


def _files(package: metadata.Distribution) -> list[tuple[str, Path]]:
    listed = [one for one in package.files or [] if one.suffix not in _COMPILED]
    own = [one for one in listed if not any(part.endswith(".dist-info") for part in one.parts)]
    if not own:
        raise RecipeError("E-EXTENSION", f"{package.name} does not list its files.", "install it from a wheel.")
    return [(one.as_posix(), Path(str(one.locate()))) for one in own]


def _digest(files: Iterable[tuple[str, Path]]) -> str:
    whole = hashlib.sha256()
    for name, path in sorted(files):
        with open(path, "rb") as f:
            whole.update(f"{name}\0{hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
