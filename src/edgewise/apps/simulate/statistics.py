"""Statistics of a federation's text before training, as a hidden and noised sum.

    found = play_statistics(recipe, recipe_dir, out)
    found["parts"]["lengths"]          # one value for each bucket, with the noise on it

The recipe's words on privacy, its text and its cohorts decide a run of two rounds, in which devices contribute
histograms (``learn.text.statistics``) instead of updates. So stages, secure aggregation, noise, ledger and budget are
those of any run. The run's folder can be looked at and verified as others can.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.apps.simulate import simulation
from edgewise.core import events, vector
from edgewise.core.vector import Spec
from edgewise.drivers.storage.run_store import RunStore
from edgewise.learn.text import cross_site
from edgewise.learn.text import statistics as text
from edgewise.plan.acceptance import planned
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.facts import parse
from edgewise.plan.plan import Plan
from edgewise.plan.promise import Noiser
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.statistics import counting_recipe

MODULES: Mapping[str, Any] = {"text": text, "loss": cross_site}


def statistics_recipe(recipe: Recipe, recipe_dir: Path, what: str = "text") -> Recipe:
    """Make the recipe of the statistics, with absolute paths. ``what`` as in ``play_statistics``. Raises as
    ``counting``."""
    module = MODULES[what]
    return counting_recipe(recipe, module.ROUNDS, module.BOUND_L2, lambda path: _placed(path, recipe_dir))


def play_statistics(
    recipe: Recipe, recipe_dir: Path, out: Path, what: str = "text", sinks: tuple[events.Sink, ...] = ()
) -> dict[str, Any]:
    """Play the run of the statistics in a new folder ``out``, and read the result.

    Args:
        what: ``text`` counts text, and ``loss`` measures the recipe's model at every site.
    Returns:
        ``devices``: their number. ``contributed``: contributions of each round. ``parts``: name -> ``values`` (float64
        list), ``noise_std`` (of the noise on each value), and ``kind`` (``devices`` for shares of devices,
        ``documents``, ``tokens``). ``epsilon``: spent; None without a promise.
    Raises:
        RecipeError: as ``statistics_recipe``. Others as ``simulation.play``.
    """
    made, module = statistics_recipe(recipe, recipe_dir, what), MODULES[what]
    extensions = [module.__name__]
    simulation.run(made, out=out, recipe_dir=recipe_dir, extensions=extensions, sinks=sinks, report=False)
    with RunStore(out) as store:
        known = store.run()
        assert known is not None  # It was just played.
        spec, facts = Spec.of(known["facts"]["spec"]), parse(known["facts"]["plan_facts"].encode())
        models = {played: store.blob(digest) for played, digest in store.models().items()}
        ended = [e for e in store.events("round_finished") if isinstance(e, events.RoundFinished)]
    plan = planned(facts, spec, with_extensions(extensions))
    noise = _noise_std(plan, min((e.accepted for e in ended), default=0))
    return {
        "devices": facts.population,
        "contributed": [e.accepted for e in ended],
        "privacy": made.privacy,
        "epsilon": ended[-1].epsilon if ended else None,
        "budget": None if plan.spend is None else plan.spend.budget.epsilon,
        "parts": parts(spec, module.PARTS, models, noise),
    }


def parts(
    spec: Spec, of: Mapping[str, tuple[str, int]], models: Mapping[int, vector.Vector], noise_std: float
) -> dict[str, dict[str, Any]]:
    """Read the parts of the statistics: the change of the model in the round in which each is contributed.

    ``of``: name -> kind and round. ``models``: by the number of rounds played, from 0.
    """
    found: dict[str, dict[str, Any]] = {}
    for segment in spec.segments:
        here, (kind, round) = slice(segment.start, segment.stop), of[segment.name]
        values = models[round + 1][here].astype(np.float64) - models[round][here]
        found[segment.name] = {"values": values.tolist(), "noise_std": noise_std, "kind": kind}
    return found


def _noise_std(plan: Plan, contributions: int) -> float:
    """Return the standard deviation of the noise on a value. Noise of devices adds up over those that contributed."""
    pipe = plan.pipelines[0]
    of_server = plan.promise.who_noises in (Noiser.NOBODY, Noiser.SERVER)
    std = pipe.total.noise_std if of_server else pipe.encoded.noise.std * sqrt(contributions)
    return std / max(1.0, plan.sampling.expected)


def token_names(recipe: Recipe, recipe_dir: Path) -> dict[int, str]:
    """Return the text of each bucket of the vocabulary. Empty where ids are hashed."""
    from edgewise.learn.models.load import locate_model
    from edgewise.learn.text import tokens

    known = tokens.load_tokenizer(locate_model(recipe.model.base, recipe_dir)[0])
    return {} if known.size > text.VOCABULARY else {i: known.decode([i]) for i in range(known.size)}


def _placed(path: str, recipe_dir: Path) -> str:
    """Make a path of the recipe absolute, because the counting does not know the recipe's folder."""
    if not path or path == "bundled" or ":" in path:
        return path
    return str((recipe_dir / Path(path).expanduser()).resolve())
