"""Find the model of a run's folder or of a server's folder, with what is needed to rebuild it.

one = released.released_model(Path("runs/plays-1a2b3c4d"), played=None)
one.played, one.digest, one.params
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgewise.apps.runs.chosen import chosen_model
from edgewise.apps.runs.joined import model_vector
from edgewise.apps.runs.run_dirs import opened
from edgewise.core.errors import EdgewiseError
from edgewise.core.vector import Spec, Vector, from_bytes
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.recipe.recipe import Recipe, from_plain
from edgewise.plan.strategy import strategy_of
from edgewise.strategies.base import Directions


class ReleasedModel(NamedTuple):
    """The model of a run.

    Attributes:
        run_dir: the run's folder.
        recipe, facts: of the run.
        played: number of rounds after which it is the model.
        digest: of its parameters.
        params: float32[d].
        directions: the directions whose coefficients ``params`` holds. None where it holds parameters.
        code: of the errors.
    """

    run_dir: Path
    recipe: Recipe
    facts: Mapping[str, Any]
    played: int
    digest: str
    params: Vector
    directions: Directions | None
    code: str

    @property
    def cache_dir(self) -> Path | None:
        """The run's cache folder, which may hold a quantized copy of the base. None if it is gone."""
        folder = self.run_dir / "cache"
        return folder if folder.is_dir() else None

    def base(self, given: str | None) -> tuple[str, Path]:
        """Return the model that the run began with, and the folder that its relative path starts from.

        The recipe's folder is first looked for relative to the run's folder, so a project can move as a whole.

        Args:
            given: a folder, ``hub:owner/name`` or ``bundled``, in place of the recipe's ``model.base``. None: the
                recipe's.
        Raises:
            EdgewiseError: ``code`` where the base is not found.
        """
        if given is not None:
            hub = given.startswith("hub:") or given == "bundled"
            return given if hub else str(Path(given).resolve()), Path()
        base = self.recipe.model.base
        if base == "bundled":
            return base, Path()
        if base.startswith("hub:"):
            pinned = self.facts.get("model_commit")
            return f"{base.partition('@')[0]}@{pinned}" if pinned else base, Path()
        from_run = self.facts.get("recipe_from_run")
        places = [self.run_dir / from_run] if from_run else []
        places.append(Path(self.facts.get("recipe_dir") or "."))
        for place in places:
            if (place / Path(base).expanduser()).is_dir():
                return base, place
        looked = " and ".join(str((place / base).resolve()) for place in places)
        what = f"the run's base {base!r} is not at {looked}."
        raise EdgewiseError(self.code, what, "name its folder with --base FOLDER.")

    def refuse_own_models(self, fix: str) -> None:
        """Refuse a model of the user's own code, which edgewise cannot rebuild, with this ``code``."""
        # The fact "vocabulary" is of the text trainer alone.
        facts = self.facts
        if (facts.get("extensions") or facts.get("objects")) and "vocabulary" not in facts:
            own = f"its extension ({', '.join(facts['extensions'])})" if facts.get("extensions") else "a script's own"
            raise EdgewiseError(self.code, f"the run trained a model of {own}, which edgewise cannot rebuild.", fix)


def released_model(
    folder: Path, played: int | None, *, code: str = "E-EXPORT", unfinished: bool = False
) -> ReleasedModel:
    """Find the released model of a run's folder or of a server's folder.

    Args:
        folder: the folder of a run, or of a server, whose promoted model is then taken.
        played: the number of rounds after which the model is wanted. None: the model that counts.
        code: of the errors.
        unfinished: of a run that has not ended take the newest model.
    Raises:
        EdgewiseError: ``code`` for a model that is not there, E-RESUME without a run.
        TransportError: E-UNKNOWN-ID where a server has promoted no model.
    """
    promoted = None
    if (folder / "server.db").is_file():
        promoted = _promoted_model(folder, played, code)
        folder = folder / "runs" / promoted[0][:32]
    with opened(folder) as store:
        run = store.run()
        assert run is not None
        recipe = from_plain(run["recipe"], f"the recipe of {folder}")
        number, digest, params = (
            promoted[1:] if promoted else _model_params(store, recipe, run["facts"], played, code, unfinished)
        )
    return ReleasedModel(folder, recipe, run["facts"], number, digest, params, directions_of(recipe), code)


def _promoted_model(folder: Path, played: int | None, code: str) -> tuple[str, int, str, Vector]:
    """Return (run, rounds played, digest, vector) of a server's promoted model."""
    from edgewise.drivers.fleet import promotions
    from edgewise.drivers.storage.blobs import Blobs

    if played is not None:
        what = "--round is for the folder of a run; of a server its promoted model is taken."
        raise EdgewiseError(code, what, "leave it out.")
    found = promotions.read_promotion(folder)
    raw = Blobs(folder / "blobs").get(found.model)
    return found.run, found.played, found.model, from_bytes(raw, len(raw) // 4)


def _model_params(
    store: RunStore, recipe: Recipe, facts: Mapping[str, Any], played: int | None, code: str, unfinished: bool
) -> tuple[int, str, Vector]:
    """Return (rounds played, digest, vector) of the wanted model version."""
    models, which = store.models(), chosen_model(store)
    if played is None:
        if not which.over and not unfinished:
            what = f"the run has played {which.reached} of {recipe.round.rounds} rounds."
            raise EdgewiseError(
                code, what, f"finish it with --resume, or take what is there with --round {which.reached}."
            )
        played = which.played if which.over else which.reached
    stored = [n for n, digest in models.items() if (store.out / "blobs" / digest).exists()]
    if played not in stored:
        what = f"there is no model after {played} rounds any more." if played in models else f"no round {played} yet."
        fix = f"these are stored: --round {', '.join(map(str, stored)) or 'none'}."
        raise EdgewiseError(code, what, fix)
    return played, models[played], model_vector(store, recipe, facts, played)


def directions_of(recipe: Recipe) -> Directions | None:
    """Return the directions whose coefficients the run's vector holds. None: it holds parameters.

    A strategy of an extension is unknown here. Its vector is taken for parameters, and refused if it is too short.
    """
    if recipe.strategy["kind"] not in BUILT_IN.strategies:
        return None
    return strategy_of(recipe, BUILT_IN, Spec(()), population=1).directions
