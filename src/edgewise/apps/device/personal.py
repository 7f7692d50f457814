"""The owner's personal model of a run: made of the released model with the owner's text, and never sent.

    personalise(link, parts, home, run, 0)      once the run has finished; the agent calls it (``WaitingRuns``)

A run whose recipe has a section [personal] asks its devices for it. The model is a file in the run's folder on this
device (``drivers.storage.personal_models``), for its owner only. Nothing of it is sent: the module makes no frame, and
no answer to a server reads the file. `edgewise device leave` deletes it with the run's folder.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.core.errors import EdgewiseError, Interrupted, RecipeError, StoreError, TransportError
from edgewise.drivers.storage import files

if TYPE_CHECKING:  # `edgewise device status` only lists files.
    from edgewise.core.vector import Vector
    from edgewise.drivers.http.attend import RunPart
    from edgewise.drivers.http.link import Link
    from edgewise.drivers.storage.personal_models import PersonalModel
    from edgewise.plan.personal import PersonalTraining

LOG = logging.getLogger("edgewise")
RUNS, WANTED = "runs", "personal-wanted"  # a folder of the home, and a file in a run's folder: its id
LOOK_S = 20.0  # seconds between two questions whether a run has finished


def want_personal_model(folder: Path, run: str) -> None:
    """Note in a run's folder that its personal model is to be made when it has finished. Raises StoreError(E-DISK)."""
    files.write_durably(folder / WANTED, run.encode(), owner_only=True)


def wanted_personal_models(home: Path) -> list[str]:
    """List the runs whose personal model is not made yet, the latest first."""
    marks = sorted((home / RUNS).glob(f"*/{WANTED}"), key=lambda path: -path.stat().st_mtime)
    return [path.read_text(encoding="ascii") for path in marks]


def made_personal_models(home: Path) -> list[dict[str, Any]]:
    """List the personal models of this device: the beginning of the run's id, the file, and the time it was made."""
    from edgewise.drivers.storage.personal_models import FOLDER_NAME

    found = [
        {"run": path.parent.parent.name, "file": str(path), "at_s": path.stat().st_mtime}
        for path in (home / RUNS).glob(f"*/{FOLDER_NAME}/*.safetensors")
    ]
    return sorted(found, key=lambda one: -float(str(one["at_s"])))


def find(home: Path, run: str) -> str:
    """Complete the beginning of a run's id. Raises TransportError(E-UNKNOWN-ID) where it fits no run, or several."""
    from edgewise.apps.device import record

    known = {line.run for line in record.device_record_lines(home)} | set(wanted_personal_models(home))
    fits = sorted(one for one in known if one.startswith(run))
    if len(fits) != 1:
        what = f"{run:.64} is the beginning of {len(fits)} runs of this device."
        raise TransportError("E-UNKNOWN-ID", what, "give more of the id that `edgewise device status` shows.")
    return fits[0]


def personalise(link: Link, parts: Callable[[str], RunPart], home: Path, run: str, most_steps: int) -> PersonalModel:
    """Make the personal model of a finished run with the owner's text, and keep it. Replaces an earlier one.

    Args:
        parts: run -> this device's part in it (``apps.device.joining.Parts``).
        most_steps: the owner's limit of local steps; 0 = any number.
    Raises:
        RecipeError: E-PERSONAL while the run has not finished, where its recipe asks for no personal models, and where
            it asks for more steps than the owner's policy allows.
        TransportError: E-UNKNOWN-ID, E-CONNECT, E-BLOB.
        EdgewiseError: as ``Parts`` and the trainer.
    """
    from edgewise.drivers.storage.personal_models import PersonalModel
    from edgewise.drivers.workers.personal import personal_model

    found = download_released_model(link, parts, run)
    plan, trainer, store = found.part.devices.plan, found.part.devices.trainer, found.part.devices.store
    rule = found.training.rule
    if most_steps and (rule.epochs or rule.steps > most_steps):
        what = f"the personal model of run {run:.12} takes more steps than limits.local_steps = {most_steps} allows."
        raise RecipeError("E-PERSONAL", what, "raise limits.local_steps in your policy.")
    own = personal_model(plan, trainer, store, link.name, found.params, secrets.token_bytes(32))
    return keep_personal_model(home, run, PersonalModel(link.name, found.digest, found.training.method, own))


@dataclass(frozen=True)
class ReleasedRun:
    """The released model of a finished run that asks for personal models.

    Attributes:
        part: this device's part in the run.
        digest: of the model.
        params: float32[d], the model.
        training: the further training that the recipe asks for.
    """

    part: RunPart
    digest: str
    params: Vector = field(repr=False)
    training: PersonalTraining


def download_released_model(link: Link, parts: Callable[[str], RunPart], run: str) -> ReleasedRun:
    """Download the released model of a run. Raises as ``personalise``, but for the owner's limit of steps."""
    from edgewise.core import vector
    from edgewise.plan.personal import personal_training

    digest = str(link.call("GET", f"/v1/runs/{run}")["released"])
    if not digest:
        raise RecipeError("E-PERSONAL", f"run {run:.12} has not finished.", "wait for its last round.")
    part = parts(run)
    plan = part.devices.plan
    training = personal_training(plan, link.name)
    if training is None:
        fix = "ask the operator for a recipe with a section [personal]."
        raise RecipeError("E-PERSONAL", f"the recipe of run {run:.12} asks for no personal models.", fix)
    raw = link.download(digest, part.blobs, 4 * plan.spec.dim).read_bytes()
    return ReleasedRun(part, digest, vector.from_bytes(raw, plan.spec.dim), training)


def keep_personal_model(home: Path, run: str, model: PersonalModel) -> PersonalModel:
    """Write a personal model into the run's folder, for its owner only. Raises StoreError(E-DISK)."""
    from edgewise.drivers.storage.personal_models import keep_personal

    folder = home / RUNS / run[:32]
    keep_personal(folder, model)
    files.discard(folder / WANTED)
    return model


class WaitingRuns:
    """The runs whose personal model the agent makes when they have finished. Call it when there is no mail.

    It asks the server about each of them at most every ``LOOK_S`` seconds. A run that cannot have a personal model is
    asked about once, and the reason goes to the log.
    """

    def __init__(self, link: Link, parts: Callable[[str], RunPart], home: Path, most_steps: int) -> None:
        self._link, self._parts, self._home, self._most_steps = link, parts, home, most_steps
        self._looked_s = -LOOK_S
        self._failed: set[str] = set()

    def __call__(self) -> str | None:
        """Make the personal model of one finished run. Returns the run. None where there was none to make."""
        if time.monotonic() - self._looked_s < LOOK_S:
            return None
        self._looked_s = time.monotonic()
        for run in wanted_personal_models(self._home):
            if run in self._failed or not self._link.call("GET", f"/v1/runs/{run}")["released"]:
                continue
            try:
                personalise(self._link, self._parts, self._home, run, self._most_steps)
                return run
            except (StoreError, TransportError, Interrupted):
                raise
            except EdgewiseError as e:
                self._failed.add(run)
                LOG.warning("no personal model of run %.12s: %s", run, e)
        return None
