"""Installed extension packages, identified by name and digest. No code travels between machines: server, devices and
gateway of a run each have the same package, and the owner of a machine decides which ones may be used there.

    packages = installed_packages(["own_codecs"])                # submitter: modules -> packages, with the digests of
    this machine catalogue(packages)                             # server: the submitter's packages are those installed
    here catalogue(facts.packages, allowed={"own-codecs": "5f2a..."})      # device, gateway: and the owner allows them

A package has an entry point in ``GROUP`` whose value is a module with ``EDGEWISE = Extension(...)``.

digest = SHA-256("PATH\\0SHA256\\n" of each file, sorted by path)
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from edgewise.core.errors import RecipeError
from edgewise.plan.catalogue import Catalogue, with_extensions
from edgewise.plan.facts import ExtensionPackage

GROUP = "edgewise.extensions"  # group of the entry points; their value is a module
_COMPILED = "__pycache__"  # Python compiles these files from others that are in the digest


def package_files_digest(name: str) -> str:
    """Return the digest of a package's installed files, without those that Python compiles from them.

    Raises:
        RecipeError: E-EXTENSION where the package is not installed, or does not list its files.
    """
    found = _installed_package(name)
    if found is None:
        raise RecipeError("E-EXTENSION", f"the package {name} is not installed.", "install it in this environment.")
    return _package_digest(_package_files(found))


def installed_packages(modules: Iterable[str]) -> tuple[ExtensionPackage, ...]:
    """Find the installed packages that have these modules as entry points, sorted.

    Raises:
        RecipeError: E-EXTENSION for a module that belongs to no such package, because no other machine could have it.
    """
    found: dict[str, ExtensionPackage] = {}
    for module in modules:
        points = [point for point in metadata.entry_points(group=GROUP) if point.module == module]
        if not points or points[0].dist is None:
            what = f"{module} is the entry point of no installed package, and a server sends no code to devices."
            fix = f'put it into a package with [project.entry-points."{GROUP}"], and install it on all machines.'
            raise RecipeError("E-EXTENSION", what, fix)
        name = points[0].dist.name
        found[name] = ExtensionPackage(name=name, sha256=package_files_digest(name))
    return tuple(sorted(found.values()))


def package_entry_point(function_module: str) -> str:
    """Return the entry point whose module contains a part's function. Empty where no installed package has one."""
    points = {point.module for point in metadata.entry_points(group=GROUP)}
    return next((m for m in sorted(points) if function_module == m or function_module.startswith(f"{m}.")), "")


def catalogue(
    packages: Sequence[ExtensionPackage],
    allowed: Mapping[str, str] | None = None,
    always: Collection[str] = (),
) -> Catalogue:
    """Add the parts of a run's packages to the built-in parts.

    Args:
        packages: the packages in the run's facts.
        allowed: name -> digest of the packages that may be used here. None: all installed ones.
        always: those of the allowed packages that bring the trainer where no package of the run does.
    Raises:
        RecipeError: E-PACKAGE for a package that is not allowed here, is not installed, or has another digest. None of
            the packages is imported then. E-EXTENSION as ``with_extensions``.
    """
    modules = [module for package in packages for module in _checked_package(package, allowed)]
    made = replace(with_extensions(modules), packages=tuple(packages))
    if made.trainer is not None:
        return made
    trainer_packages = [ExtensionPackage(name=name, sha256=(allowed or {})[name]) for name in always]
    more = [
        module for package in trainer_packages for module in _checked_package(package, allowed) if module not in modules
    ]
    return replace(made, trainer=with_extensions(more).trainer) if more else made


def modules(packages: Iterable[ExtensionPackage]) -> list[str]:
    """Return the modules of packages that ``catalogue`` has accepted."""
    return [module for package in packages for module in _extension_modules(package.name)]


def _checked_package(package: ExtensionPackage, allowed: Mapping[str, str] | None) -> list[str]:
    """Find an allowed package of the digest that the run names."""
    name, wanted = package.name, package.sha256
    if allowed is not None and name not in allowed:
        what = f"the run uses parts of the package {name}, which the owner of this machine does not allow."
        raise RecipeError("E-PACKAGE", what, f'read its code, install it, and allow its digest, "{wanted}".')
    if allowed is not None and allowed[name] != wanted:
        what = (
            f"the run uses the package {name} with digest {wanted}; the owner of this machine allows {allowed[name]}."
        )
        raise RecipeError("E-PACKAGE", what, "read the changes, install that version, and allow its digest.")
    found = _installed_package(name)
    if found is None:
        what = f"the run uses parts of the package {name}, which is not installed here."
        raise RecipeError("E-PACKAGE", what, f"install the version with digest {wanted}.")
    if (here := _package_digest(_package_files(found))) != wanted:
        what = f"the run uses the package {name} with digest {wanted}; the installed one has {here}."
        raise RecipeError(
            "E-PACKAGE", what, "install the same version on all machines, and leave its files as they are."
        )
    points = _extension_modules(name)
    if not points:
        what = f"the package {name} has no entry point in {GROUP}."
        raise RecipeError("E-PACKAGE", what, f'its pyproject.toml needs [project.entry-points."{GROUP}"].')
    for module in points:
        _check_origin(name, module, {str(path.resolve()) for _, path in _package_files(found)})
    return points


def _check_origin(name: str, module: str, files: Collection[str]) -> None:
    """Refuse a module that Python would not import from the package's files. Raises RecipeError(E-PACKAGE)."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    origin = "" if spec is None or spec.origin is None else spec.origin
    if str(Path(origin).resolve()) not in files:
        what = f"Python finds {module} at {origin or 'no place'}, and not among the files of the package {name}."
        raise RecipeError("E-PACKAGE", what, "install the package from a wheel, and rename the module that hides it.")


def _installed_package(name: str) -> metadata.Distribution | None:
    """Find an installed package. None where there is none."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _extension_modules(name: str) -> list[str]:
    """List the modules that a package offers as extensions."""
    found = _installed_package(name)
    return [] if found is None else sorted({p.module for p in found.entry_points if p.group == GROUP})


def _package_files(package: metadata.Distribution) -> list[tuple[str, Path]]:
    """List the files of a package that its digest covers."""
    files = [
        file
        for file in package.files or []
        if _COMPILED not in file.parts and not any(part.endswith(".dist-info") for part in file.parts)
    ]
    if not files:
        raise RecipeError("E-EXTENSION", f"{package.name} does not list its files.", "install it from a wheel.")
    return [(file.as_posix(), Path(str(file.locate()))) for file in files]


def _package_digest(files: Iterable[tuple[str, Path]]) -> str:
    """Compute the digest of files and their names."""
    hasher = hashlib.sha256()
    for name, path in sorted(files):
        try:
            with open(path, "rb") as f:
                found = hashlib.file_digest(f, "sha256").hexdigest()
        except OSError as e:
            raise RecipeError(
                "E-EXTENSION", f"{path} of a package cannot be read: {e.strerror}.", "install it again."
            ) from None
        hasher.update(f"{name}\0{found}\n".encode())
    return hasher.hexdigest()
