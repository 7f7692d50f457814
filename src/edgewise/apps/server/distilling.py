"""Distillation between the rounds of a served run. Teacher and public text lie in the server's folder ``distill``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from edgewise.core.errors import RecipeError
from edgewise.drivers.http.service import Service
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers.server_distiller import ServerDistiller
from edgewise.plan.recipe.data import SHIPPED
from edgewise.plan.recipe.recipe import Recipe, from_plain

PLACE = "distill"  # in the server's folder
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_names(recipe: Recipe) -> None:
    """Refuse a teacher or text that is named by a path, because a recipe must not read any file of the server.

    Raises RecipeError(E-COMBO).
    """
    section = recipe.distill
    if not section.active:
        return
    known = {"teacher": section.teacher == "bundled" or section.teacher.startswith("hub:")}
    known["public"] = section.public in SHIPPED
    for key, shipped in known.items():
        if not shipped and not NAME.fullmatch(name := getattr(section, key)):
            what = f"distill.{key} = {name!r:.80} is a path, and on a server it is a name in its folder `{PLACE}`."
            raise RecipeError("E-COMBO", what, f'the operator puts it there, and the recipe says {key} = "NAME".')


def distiller_of(
    service: Service, store: RunStore, tables: dict[str, object], stop: Callable[[], None] = lambda: None
) -> ServerDistiller | None:
    """Make the distiller of a run from its stored recipe. None where the recipe has no [distill].

    ``stop``: as in ``ServerDistiller``.
    """
    recipe = from_plain(tables, "the stored recipe")
    if not recipe.distill.active:
        return None
    place: Path = service.folder / PLACE
    return ServerDistiller(recipe, store.out, place, store, stop)
