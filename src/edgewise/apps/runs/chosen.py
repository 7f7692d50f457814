"""Which model of a run counts: the one that the report shows and that an export takes unless it is told another."""

from __future__ import annotations

from typing import NamedTuple

from edgewise.core.errors import StoreError
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine.evaluation import kept
from edgewise.plan.plan import evaluations
from edgewise.plan.recipe.recipe import from_plain


class Chosen(NamedTuple):
    """The model that counts.

    Attributes:
        played: it is the model after so many rounds; 0: the base.
        digest: of its parameters; empty before there are any.
        reached: rounds played so far.
        over: no round is left to play. stopped: ``round.patience`` ended the run before its last round.
        waited: evaluations since the one with the lowest held-out loss.
    """

    played: int
    digest: str
    reached: int
    over: bool
    stopped: bool
    waited: int


def chosen(store: RunStore) -> Chosen:
    """The model of the run in ``store`` that counts so far; its vector is ``store.blob(digest)``.

    Raises StoreError(E-RESUME) where there is no run; RecipeError for the recipe of an earlier version.
    """
    run = store.run()
    if run is None:
        raise StoreError("E-RESUME", f"there is no run in {store.out}.", "check the path of the run directory.")
    recipe, reached = from_plain(run["recipe"], f"the recipe of {store.out}"), max(0, run["next_round"])
    told = kept(evaluations(recipe), store.evaluations(), reached)
    stopped = told.stopped and reached < recipe.round.rounds
    over = stopped or reached >= recipe.round.rounds
    return Chosen(told.played, store.models().get(told.played, ""), reached, over, stopped, told.waited)
