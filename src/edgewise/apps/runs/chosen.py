"""Choose the model of a run that counts. The report shows it, and an export takes it by default."""

from __future__ import annotations

from typing import NamedTuple

from edgewise.core.errors import StoreError
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine.evaluation import kept
from edgewise.plan.evaluations import planned_evaluations
from edgewise.plan.recipe.recipe import from_plain


class Chosen(NamedTuple):
    """The model that counts.

    Attributes:
        played: the number of rounds after which it is the model; 0 for the base.
        digest: of its parameters; empty before there are any.
        reached: rounds played so far.
        over: no round remains to be played.
        stopped: ``round.patience`` ended the run before its last round.
        waited: evaluations since the one with the lowest held-out loss.
    """

    played: int
    digest: str
    reached: int
    over: bool
    stopped: bool
    waited: int


def chosen_model(store: RunStore) -> Chosen:
    """Choose the model of the run in ``store`` that counts so far. Its vector is ``store.blob(digest)``.

    Raises StoreError(E-RESUME) for a store without a run, and RecipeError for the recipe of an earlier version.
    """
    run = store.run()
    if run is None:
        raise StoreError("E-RESUME", f"there is no run in {store.out}.", "check the path of the run directory.")
    recipe, reached = from_plain(run["recipe"], f"the recipe of {store.out}"), max(0, run["next_round"])
    choice = kept(planned_evaluations(recipe), store.evaluations(), reached)
    stopped = choice.stopped and reached < recipe.round.rounds
    over = stopped or reached >= recipe.round.rounds
    return Chosen(choice.played, store.models().get(choice.played, ""), reached, over, stopped, choice.waited)
