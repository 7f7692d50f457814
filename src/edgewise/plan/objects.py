"""Parts, a trainer and data that a script gives as Python objects.

Objects live in one process, and other processes may not be able to import them. Their digests are part of the run's
record, so a run resumes only with the objects that it began with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from edgewise.plan.catalogue import Catalogue, Extension, with_extensions


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of a script.

    Attributes:
        extension: the parts and the trainer among them.
        digests: digest of each object's source, weights or data, by its name in messages.
        modules: modules that define their code, so that an error can point into them.
        local: names of the objects that worker processes cannot import.
    """

    extension: Extension = field(default_factory=Extension)
    digests: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    local: tuple[str, ...] = ()


NO_OBJECTS = Objects()


def catalogue(extensions: Iterable[str], objects: Objects = NO_OBJECTS) -> Catalogue:
    """Join the built-in parts, those of importable modules, and a script's. Raises RecipeError(E-EXTENSION)."""
    return with_extensions(extensions).extended(objects.extension)
