"""Parts, a trainer and data that a script gives as Python objects, beside what a recipe can name.

They live in one process and have no name that another process could import. Their digests are part of the run's record,
so a run goes on only with the objects that it began with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from edgewise.plan.catalogue import Catalogue, Extension, with_extensions


@dataclass(frozen=True, eq=False)
class Objects:
    """Objects of this process.

    Attributes:
        extension: the parts and the trainer among them.
        digests: what each is called in messages -> digest of its source, weights or data.
        modules: where their code is defined, so that a fault in it is told as such.
        local: names of those that worker processes cannot import.
    """

    extension: Extension = field(default_factory=Extension)
    digests: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    local: tuple[str, ...] = ()


NO_OBJECTS = Objects()


def catalogue(extensions: Iterable[str], objects: Objects = NO_OBJECTS) -> Catalogue:
    """The built-in parts, those of importable modules, and the objects. Raises RecipeError(E-EXTENSION)."""
    return with_extensions(extensions).extended(objects.extension)
