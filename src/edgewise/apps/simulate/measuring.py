"""Measure the models of a served run on text of this machine, with a simulation of the recipe's devices.

    with Measuring(recipe, recipe_dir, scratch) as here:
        here.probes.evaluate("federated", 3, params)       # the port ``engine.ports.Evaluator``

No enrolled device is asked. The measured text is the held-out text of the recipe's [data].
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from edgewise.core.errors import DataError
from edgewise.core.vector import Spec
from edgewise.drivers.simulation.cohort import SimulatedCohort, World
from edgewise.drivers.simulation.probes import Probes
from edgewise.drivers.storage.files import FOLDER
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.executor import Executor, Inproc, checked
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.facts import canonical
from edgewise.plan.recipe.recipe import Recipe


class Measuring:
    """The simulated devices of a recipe. It is a context manager.

    Args:
        recipe_dir: the folder that relative paths of the recipe start from.
        scratch: folder for blocks of text. It may be removed.
    Attributes:
        executor: has the devices.
        probes: measures models on their held-out text.
    Raises:
        EdgewiseError: as the recipe's trainer and ``compile``.
    """

    def __init__(self, recipe: Recipe, recipe_dir: Path, scratch: Path) -> None:
        (scratch / "memory").mkdir(FOLDER, parents=True, exist_ok=True)
        self.executor: Executor = Inproc()
        try:
            setup = jobs.Setup(
                recipe=json.dumps(recipe.resolved()), recipe_dir=str(recipe_dir.resolve()),
                run_dir=str(scratch.resolve()), memory_dir=str((scratch / "memory").resolve()), instance="measuring",
                extensions=(),
            )  # fmt: skip
            (described,) = checked(self.executor.broadcast(setup))
            assert isinstance(described, jobs.Described)
            if not described.devices:
                raise DataError("E-DATA-EMPTY", "no device has text to measure on.", "check [data] of the recipe.")
            spec = Spec.of([(name, shape, dtype) for name, shape, dtype in described.spec])
            plan = compile(recipe, spec, len(described.devices), BUILT_IN)
            checked(self.executor.broadcast(jobs.Compile(facts=canonical(plan.facts))))
        except BaseException:
            self.executor.close()
            raise
        cohort = SimulatedCohort(self.executor, plan, World(recipe.simulation, plan.key, ()))
        self.probes = Probes(cohort, plan, tuple(described.devices), time.perf_counter)

    def __enter__(self) -> Measuring:
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.close()
