"""A host of simulated devices. It gives frames to them (``drivers.workers.devices``), trains one alone, and measures.

The single-process simulator and worker processes use the same class. Only a run directory that cannot be written ends
the run. Any other failure costs one device its part.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from edgewise.core import frame, keys, vector
from edgewise.core.errors import DataError, EdgewiseError, StoreError
from edgewise.core.own_code import fault_of
from edgewise.core.training import FitRequest
from edgewise.drivers.simulation.keys import simulated_root, simulated_secrets, simulated_trust
from edgewise.drivers.storage.device_store import FolderFiles, SimulatedDevices, out_of_step
from edgewise.drivers.workers import arithmetic, jobs, speed
from edgewise.drivers.workers.devices import Devices, Given, TimedAnswer, guarded
from edgewise.drivers.workers.held_models import Downloads
from edgewise.drivers.workers.personal import personal_model, personalised
from edgewise.drivers.workers.records import in_steps, protect_records, records, without_noise
from edgewise.drivers.workers.trainers import make_trainer
from edgewise.engine.device_events import Failed
from edgewise.engine.device_state import remembers
from edgewise.engine.ports import DeviceStore
from edgewise.engine.trainer import Registered
from edgewise.plan.acceptance import planned
from edgewise.plan.catalogue import Catalogue
from edgewise.plan.facts import parse
from edgewise.plan.objects import NO_OBJECTS, Objects, catalogue
from edgewise.plan.participants import participants
from edgewise.plan.personal import as_many_alone
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import Recipe

LOG = logging.getLogger("edgewise")


def simulated_devices(plan: Plan, job: jobs.Setup) -> SimulatedDevices:
    """Open the store of a simulation's devices."""
    return SimulatedDevices(FolderFiles(Path(job.memory_dir)), plan.run, job.instance, remembers(plan))


class Host:
    """The devices of one process. It answers one job at a time."""

    def __init__(
        self,
        store: Callable[[Plan, jobs.Setup], DeviceStore] = simulated_devices,
        objects: Objects = NO_OBJECTS,
        worker: int = 0,
    ) -> None:
        """Begin without a trainer; the job ``Setup`` makes it.

        Args:
            store: makes the store of the devices' states.
            objects: objects of this process, used beside the extensions.
            worker: number of this process among several, from 0.
        """
        self._store, self._objects, self._worker = store, objects, worker
        self._recipe: Recipe
        self._setup_job: jobs.Setup
        self._catalogue: Catalogue
        self._trainer: Registered
        self._plan: Plan
        self._downloads: Downloads
        self._devices: Devices
        self._facts: dict[str, object]
        self._root: keys.Key

    def do(self, job: jobs.Job) -> jobs.Result | None:
        """Do one job.

        Errors of edgewise and of extensions become a ``Broken`` result. Those of extensions stop the run. Any other
        error is a fault of edgewise and propagates.
        """
        try:
            return self._do(job)
        except EdgewiseError as e:
            return jobs.Broken(id=job.id, code=e.code, what=e.what, fix=e.fix, stops=isinstance(e, StoreError))
        except (Exception, SystemExit) as e:  # boundary: a codec or a trainer of an extension may raise anything
            if (fault := fault_of(e, (*self._setup_job.extensions, *self._objects.modules))) is None:
                raise
            LOG.warning("an extension failed", exc_info=e)
            return jobs.Broken(id=job.id, code=fault.code, what=fault.what, fix=fault.fix, stops=True)

    def _do(self, job: jobs.Job) -> jobs.Result | None:
        match job:
            case jobs.Setup():
                return self._setup(job)
            case jobs.Compile():
                self._compile(job)
                return jobs.Ready(id=job.id)
            case jobs.Blob():
                self._downloads.put(job.digest, job.data, job.keep)
                return None
            case jobs.Held():
                self._downloads.hold(job.round, vector.from_bytes(job.data, self._plan.layout.given.dim))
                return None
            case jobs.Rest():
                assert self._trainer.splits is not None
                self._trainer.splits.sessions.use(job.round, np.array(_vector(job.data)))
                return None
            case jobs.Handle():
                return _handled(job, self._devices.answer(job.device, job.frame, job.elapsed_s, job.up_mbit))
            case jobs.HandleMany():
                given = [Given(item.device, item.frame, item.elapsed_s, item.up_mbit) for item in job.items]
                answers = zip(job.items, self._devices.answer_many(given), strict=True)
                return jobs.HandledMany(id=job.id, items=tuple(_handled(item, done) for item, done in answers))
            case jobs.Solo():
                return self._guarded(job, partial(self._train_alone, job))
            case jobs.Personalise():
                return self._guarded(job, partial(self._personalise, job))
            case jobs.Time():
                return self._timed(job)
            case jobs.Count():
                return jobs.CountedRecords(id=job.id, records=records(self._trainer, job.device))
            case jobs.Sample():
                return self._sample(job)
            case jobs.TakeMetrics():
                found = [] if self._trainer.metrics is None else self._trainer.metrics.noted()
                return jobs.MetricNotes(id=job.id, notes=[(*note,) for note in found])

    def _setup(self, job: jobs.Setup) -> jobs.Result:
        self._recipe = Recipe.model_validate(json.loads(job.recipe))
        self._setup_job = job
        self._catalogue = catalogue(job.extensions, self._objects)
        try:
            folders = Path(job.recipe_dir), Path(job.run_dir)
            self._trainer = make_trainer(self._recipe, *folders, self._catalogue, worker=self._worker)
        except ImportError as e:
            raise EdgewiseError(
                "E-DEPENDENCY", f"training needs {e.name or e}.", 'pip install "edgewise[train]", or `make setup`.'
            ) from None
        trainer, splits = self._trainer.trainer, self._trainer.splits
        self._facts = self._trainer.describe()
        return jobs.Described(
            id=job.id,
            spec=trainer.spec.to_list(),
            devices=list(trainer.devices()),
            initial=memoryview(
                bytes(vector.to_bytes(self._trainer.initial()))
            ),  # a copy, because a trainer may change its own array later
            facts={
                **self._facts,
                "arithmetic_sha256": arithmetic.digest(self._trainer.computes),
            },
            rest=None if splits is None else memoryview(bytes(vector.to_bytes(splits.rest_start))),
        )

    def _compile(self, job: jobs.Compile) -> None:
        plan = planned(parse(job.facts), self._trainer.trainer.spec, self._catalogue)
        self._plan, self._root = plan, simulated_root(plan, self._recipe.world, self._facts)
        self._downloads = Downloads(plan.layout.given.dim, plan.downlink)
        self._devices = Devices(
            plan=plan,
            trainer=self._trainer,
            store=self._store(plan, self._setup_job),
            downloads=self._downloads,
            trust=simulated_trust(self._root, participants(self._recipe, self._trainer.trainer.devices()).seen),
            secrets=partial(simulated_secrets, plan, self._root),
            out_of_step=partial(out_of_step, Path(self._setup_job.memory_dir)),
        )
        protect_records(plan, self._trainer)

    def _guarded(self, job: jobs.Solo | jobs.Personalise, work: Callable[[], jobs.Result]) -> jobs.Result:
        done = guarded(job.device, work)
        if isinstance(done, Failed):
            return jobs.Broken(id=job.id, code=done.code, what=done.reason, fix="")
        return done

    def _sample(self, job: jobs.Sample) -> jobs.Result:
        """Continue a device's text. Its randomness is the same for all models, so samples of models can be compared."""
        params = vector.from_bytes(job.params, self._trainer.trainer.spec.dim)
        key = keys.derive(keys.root(self._recipe.seed), "sample", job.device)
        if (continues := self._trainer.continues) is None:
            return jobs.Broken(id=job.id, code="E-COMBO", what="this trainer cannot continue a text.", fix="")
        done = guarded(job.device, lambda: continues.sample(job.device, params, key))
        if isinstance(done, Failed):
            return jobs.Broken(id=job.id, code=done.code, what=done.reason, fix="")
        prompt, actual, text = done
        return jobs.Continued(id=job.id, prompt=prompt, actual=actual, text=text)

    def _train_alone(self, job: jobs.Solo) -> jobs.TrainedAlone:
        began = time.perf_counter()
        trainer, params = self._trainer.whole(np.array(_vector(job.params)))
        played: Counter[int] = Counter()
        for number in job.rounds:
            rule = self._plan.rule(number)
            # Nothing is sent here, so layer groups take no turns: all segments train in every round.
            rule = frame.LocalRule(
                steps=rule.steps * job.scale, lr=rule.lr, epochs=rule.epochs if job.epochs is None else job.epochs
            )
            rule = in_steps(trainer, self._plan, job.device, rule)
            drawn = number + played[number] * self._plan.rounds  # a round that is played again takes other batches
            played[number] += 1
            key, secret = self._plan.batch_key(job.device, drawn), keys.derive(self._root, "alone", job.device, drawn)
            with without_noise(trainer):
                params += trainer.fit(FitRequest(job.device, number, params, rule, key, secret)).x
        seconds = time.perf_counter() - began
        self._held_metrics(job.device)  # Those of this training are of no round.
        if job.measure:
            measured, further = trainer.evaluate(job.device, params), (0.0, 0)
            metrics, further_metrics = self._held_metrics(job.device), dict[str, float]()
            if job.personal:
                wanted = as_many_alone(self._plan, job.device, len(job.rounds))
                assert wanted is not None
                secret = keys.derive(self._root, "personal", job.device)
                own = personalised(self._plan, trainer, job.device, params, secret, wanted)
                self._held_metrics(job.device)
                further = self._measured(job.device, own)
                further_metrics = self._held_metrics(job.device)
            return jobs.TrainedAlone(
                id=job.id, device=job.device, nll=measured.nll, tokens=measured.tokens, seconds=seconds,
                personal=further, metrics=metrics, personal_metrics=further_metrics,
            )  # fmt: skip
        return jobs.TrainedAlone(id=job.id, device=job.device, params=vector.to_bytes(params), seconds=seconds)

    def _personalise(self, job: jobs.Personalise) -> jobs.Personalised:
        given = vector.from_bytes(job.params, self._trainer.trainer.spec.dim)
        secret = keys.derive(self._root, "personal", job.device)
        params = personal_model(self._plan, self._trainer, self._devices.store, job.device, given, secret)
        elsewhere = [self._measured(device, params) for device in job.elsewhere]
        self._held_metrics(job.device)
        return jobs.Personalised(
            id=job.id, device=job.device, params=vector.to_bytes(params), own=self._measured(job.device, params),
            elsewhere=(sum(nll for nll, _ in elsewhere), sum(tokens for _, tokens in elsewhere)),
            metrics=self._held_metrics(job.device),
        )  # fmt: skip

    def _held_metrics(self, device: str) -> dict[str, float]:
        """Take the trainer's own metrics since the last call. Return those on this device's held-out data."""
        found = [] if self._trainer.metrics is None else self._trainer.metrics.noted()
        return {note.name: note.value for note in found if note.round is None and note.device == device}

    def _measured(self, device: str, params: vector.Vector) -> tuple[float, int]:
        """Measure the held-out loss of a model. No tokens where the device has no held-out text."""
        try:
            measured = self._trainer.evaluate(device, params)
        except DataError:
            return 0.0, 0
        return measured.nll, measured.tokens

    def _timed(self, job: jobs.Time) -> jobs.Timed:
        """Measure speeds for a forecast. No failure stops a run, except a disk that cannot be written."""
        try:
            return jobs.Timed(id=job.id, step_s=self._trainer.step_s(), encode_s=speed.encode_s(self._plan))
        except StoreError:
            raise
        except Exception:  # boundary: a trainer is foreign code
            LOG.warning("the speed of a step cannot be measured", exc_info=True)
            return jobs.Timed(id=job.id)


def _vector(raw: memoryview) -> vector.Vector:
    """Return the vector in a job, of whatever length: of the run's layout, or of a whole model."""
    return vector.from_bytes(raw, len(raw) // 4)


def _handled(job: jobs.Handle, done: TimedAnswer) -> jobs.Handled:
    return jobs.Handled(id=job.id, frame=done.frame, train_s=done.train_s, encode_s=done.encode_s)
