"""The statistics that a run has released, read from its folder: of a simulation or of enrolled devices.

    found = read_statistics(out)
    found["parts"]["lengths"]["values"]          # one value for each bucket, with the noise on it

Nothing is changed, and no lock is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.core import vector
from edgewise.core.errors import RecipeError
from edgewise.core.vector import Spec, Vector
from edgewise.drivers.storage import run_record
from edgewise.drivers.storage.run_record import RunRecord
from edgewise.learn.text import cross_site
from edgewise.learn.text import statistics as text
from edgewise.plan.acceptance import planned
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.facts import parse
from edgewise.plan.plan import Plan
from edgewise.plan.promise import Noiser

MODULES: Mapping[str, Any] = {"text": text, "loss": cross_site}  # a word of ``statistics.of`` -> its parts and bounds


def read_statistics(out: Path) -> dict[str, Any]:
    """Read the statistics of the run in a folder. A part that no round has released is left out.

    Returns:
        ``devices``: their number. ``contributed``: contributions of each released round. ``parts``: name -> ``values``
        (float64 list), ``noise_std`` (of the noise on each value), and ``kind`` (``devices`` for shares of devices,
        ``documents``, ``tokens``). ``privacy``: the recipe's word. ``epsilon``: spent; None without a promise.
        ``budget``: of epsilon.
    Raises:
        RecipeError: E-COMBO where the run trains a model.
        StoreError: as ``run_record.read_run_record``.
    """
    record = run_record.read_run_record(out)
    of = record.run["recipe"].get("statistics", {}).get("of", "none")
    if of == "none":
        what = f"the run {record.run['name']} trains a model, and has no statistics."
        raise RecipeError("E-COMBO", what, "make a run of statistics with `edgewise stats`.")
    facts, spec = parse(record.run["facts"]["plan_facts"].encode()), Spec.of(record.run["facts"]["spec"])
    plan = planned(facts, spec, BUILT_IN)
    released = [row for row in record.rounds if row.total is not None]
    return {
        "devices": facts.population,
        "contributed": [row.n for row in released],
        "privacy": str(record.run["recipe"]["privacy"]),
        "epsilon": None if plan.spend is None else float(record.run["epsilon"]),
        "budget": None if plan.spend is None else plan.spend.budget.epsilon,
        "parts": _statistics_parts(record, spec, MODULES[of].PARTS, plan, released),
    }


def _statistics_parts(
    record: RunRecord, spec: Spec, of: Mapping[str, tuple[str, int]], plan: Plan, released: Sequence[Any]
) -> dict[str, dict[str, Any]]:
    """Read each part: the change of the model in the released round in which devices contribute it.

    ``of``: name -> kind, and number of the released round.
    """
    found: dict[str, dict[str, Any]] = {}
    for i, row in enumerate(released):
        before, after = (_model_after(record, played, spec) for played in (row.round, row.round + 1))
        for segment in spec.segments:
            here, (kind, number) = slice(segment.start, segment.stop), of[segment.name]
            if number == i:
                values = after[here].astype(np.float64) - before[here]
                noise_std = statistic_noise_std(plan, row.n)
                found[segment.name] = {"values": values.tolist(), "noise_std": noise_std, "kind": kind}
    return {name: found[name] for name in of if name in found}


def _model_after(record: RunRecord, played: int, spec: Spec) -> Vector:
    return vector.from_bytes(record.blobs.get(record.models[played].params), spec.dim)


def statistic_noise_std(plan: Plan, contributions: int) -> float:
    """Return the standard deviation of the noise on a value. Noise of devices adds up over those that contributed."""
    pipe = plan.pipelines[0]
    of_server = plan.promise.who_noises in (Noiser.NOBODY, Noiser.SERVER)
    std = pipe.total.noise_std if of_server else pipe.encoded.noise.std * sqrt(contributions)
    return std / max(1.0, plan.sampling.expected)
