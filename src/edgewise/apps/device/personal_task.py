"""The personal model of a finished run, for a script that trains it with its own loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.apps.device import personal
from edgewise.apps.device.task import refused_task
from edgewise.core.vector import Spec, Vector
from edgewise.drivers.storage.personal_models import PersonalModel
from edgewise.plan.plan import Plan


@dataclass
class PersonalTask:
    """The further training of one finished run on this device. ``edgewise.Device.personal`` makes it.

        further = device.personal(run)
        further.load_into(model)                    # the released model
        for _ in range(further.steps): ...          # own data, own loss, own optimizer
        further.keep(model)                         # in the home folder, for its owner only

    Nothing of it is sent: the object has no connection.

    Attributes:
        plan: the plan of the run.
        files: folder of the model's files, or None.
        params: the released model, float32[d].
        home: the device's folder.
    """

    plan: Plan
    files: Path | None
    home: Path
    _found: personal.ReleasedRun = field(repr=False)
    _device: str = field(repr=False)
    _loaded: bool = field(default=False, repr=False)

    @property
    def run(self) -> str:
        """The run's id."""
        return self.plan.run

    @property
    def spec(self) -> Spec:
        """The layout of the trained parameters: names, shapes."""
        return self.plan.spec

    @property
    def params(self) -> Vector:
        """The released model, float32[d]."""
        return self._found.params

    @property
    def steps(self) -> int:
        """The optimizer steps that the recipe asks for; an upper limit where it gives ``epochs``."""
        return self._found.training.rule.steps

    @property
    def epochs(self) -> float:
        """The passes over the device's text that the recipe asks for. 0 where it gives ``steps``."""
        return self._found.training.rule.epochs

    @property
    def lr(self) -> float:
        """The learning rate of the further steps."""
        return self._found.training.rule.lr

    def load_into(self, model: Any) -> None:
        """Write the released model into a torch module. Raises ModelError(E-LAYOUT) as ``Task.load_into``."""
        from edgewise.learn.models import modules

        modules.load_module_vector(model, self.spec, self.params, ())
        self._loaded = True

    def keep(self, model: Any, share: float | None = None) -> Vector:
        """Keep the trained module as this device's personal model, for its owner only. Replaces an earlier one.

            personal model = w + share (v - w)          w the released model, v the module

        Args:
            share: of the module in the personal model, above 0 and at most 1. None: the recipe's, which is 1 with
                ``fine_tune`` and ``personal.weight`` with ``interpolate``. Where that is 0, the device chooses it, so a
                script has to give it.
        Returns:
            The personal model, float32[d].
        Raises:
            TrainingError(E-TASK): the model was not loaded, or no share is known.
            ModelError(E-LAYOUT): the module is not the run's.
            StoreError(E-DISK): no room.
        """
        from edgewise.learn.models import modules

        if not self._loaded:
            raise refused_task("the released model was not loaded: call load_into(model) first")
        taken = self._found.training.share if share is None else share
        if not 0 < taken <= 1:
            raise refused_task(
                f"share = {taken:g}: the recipe lets each device choose it; give keep(model, share=...) in (0, 1]"
            )
        own = self.params + np.float32(taken) * (modules.read_module_vector(model, self.spec) - self.params)
        made = PersonalModel(self._device, self._found.digest, self._found.training.method, own)
        return personal.keep_personal_model(self.home, self.run, made).params
