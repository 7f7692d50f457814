"""A host runs devices: it feeds frames to the pure device machine, trains where the machine asks, and keeps its memory.

One class for the single-process simulator and for worker processes. A device's codec memory is a safetensors file in
``run_dir/devices``, replaced atomically before the device's frame leaves; data and models stay with the trainer.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from edgewise.core import frame, keys, vector
from edgewise.core.errors import DataError, DecodeError, EdgewiseError, StoreError
from edgewise.drivers import jobs
from edgewise.engine import device as machine
from edgewise.engine.ports import FitRequest, HeldOut, Trainer
from edgewise.plan.catalogue import Catalogue, with_extensions
from edgewise.plan.compile import Plan, compile
from edgewise.plan.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable


def make_trainer(recipe: Recipe, recipe_dir: Path, run_dir: Path, catalogue: Catalogue) -> Trainer:
    """The extension's trainer where there is one, else the text trainer (imports torch)."""
    if catalogue.trainer is not None:
        trainer: Trainer = catalogue.trainer(recipe)
        return trainer
    from edgewise.learn import trainer as text

    return text.make(recipe, recipe_dir, run_dir / "cache")


class Host:
    """Devices of one machine or process; answers one job at a time."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._recipe: Recipe
        self._run_dir: Path
        self._catalogue: Catalogue
        self._trainer: Trainer
        self._plan: Plan

    def do(self, job: jobs.Job) -> jobs.Result | None:
        """Do one job. Edgewise errors become a ``Broken`` result; anything else is a bug and propagates."""
        try:
            return self._do(job)
        except EdgewiseError as e:
            return jobs.Broken(id=job.id, code=e.code, what=e.what, fix=e.fix)

    def _do(self, job: jobs.Job) -> jobs.Result | None:
        match job:
            case jobs.Setup():
                return self._setup(job)
            case jobs.Compile():
                self._plan = compile(self._recipe, self._trainer.spec, len(self._trainer.devices()), self._catalogue)
                return jobs.Ready(id=job.id)
            case jobs.Blob():
                self._blobs = {d: b for d, b in self._blobs.items() if d in job.keep}
                self._blobs[job.digest] = job.data
                return None
            case jobs.Handle():
                return self._handle(job)
            case jobs.Solo():
                return self._solo(job)
            case jobs.Sizes():
                return jobs.Sized(id=job.id, sizes=dict(self._trainer.sizes()))

    def _setup(self, job: jobs.Setup) -> jobs.Result:
        self._recipe = Recipe.model_validate(json.loads(job.recipe))
        self._run_dir = Path(job.run_dir)
        self._catalogue = with_extensions(job.extensions)
        self._trainer = make_trainer(self._recipe, Path(job.recipe_dir), self._run_dir, self._catalogue)
        describe: Callable[[], dict[str, object]] | None = getattr(self._trainer, "describe", None)
        return jobs.Described(
            id=job.id,
            spec=self._trainer.spec.to_list(),
            devices=list(self._trainer.devices()),
            initial=vector.to_bytes(self._trainer.initial()),
            facts=describe() if describe is not None else {},
        )

    def _params(self, digest: str) -> vector.Vector:
        if digest not in self._blobs:
            raise DecodeError("E-BLOB", f"blob {digest[:12]} was never published here.")
        return vector.from_bytes(self._blobs[digest], self._trainer.spec.dim)

    def _handle(self, job: jobs.Handle) -> jobs.Result:
        message = frame.load(job.frame)
        if isinstance(message, frame.Probe):
            try:
                held = self._trainer.evaluate(job.device, self._params(message.model))
            except DataError:  # nothing to measure on: zero tokens says so, and the device is left out of the means
                held = HeldOut(0.0, 0)
            answer = frame.Measurement(
                run=message.run, round=message.round, device=job.device, nll=held.nll, tokens=held.tokens
            )
            return jobs.Handled(id=job.id, device=job.device, frame=frame.dump(answer))
        if not isinstance(message, frame.Invite):
            raise DecodeError("E-FRAME", "a device was sent something that is neither an invitation nor a probe.")
        state, effects = machine.step(
            self._plan, self._recall(job.device), machine.Invited(message, self._params(message.model))
        )
        train_s = encode_s = 0.0
        for effect in effects:
            if isinstance(effect, machine.Train):
                began = time.perf_counter()
                event: machine.Trained | machine.Failed
                try:
                    event = machine.Trained(self._trainer.fit(effect.request))
                except EdgewiseError as e:
                    event = machine.Failed(e.code, e.what)
                trained = time.perf_counter()
                state, effects = machine.step(self._plan, state, event)
                train_s, encode_s = trained - began, time.perf_counter() - trained
        for effect in effects:
            if isinstance(effect, machine.Remember):
                self._remember(effect.state)
        sent = next(effect.frame for effect in effects if isinstance(effect, machine.Send))
        return jobs.Handled(id=job.id, device=job.device, frame=sent, train_s=train_s, encode_s=encode_s)

    def _solo(self, job: jobs.Solo) -> jobs.Result:
        began = time.perf_counter()
        params = np.array(vector.from_bytes(job.params, self._trainer.spec.dim))
        for number in range(job.first_round, job.first_round + job.rounds):
            rule = self._plan.rule(number)
            rule = frame.LocalRule(steps=rule.steps * job.scale, lr=rule.lr)
            key = keys.derive(self._plan.key, "fit", job.device, number)
            params += self._trainer.fit(FitRequest(job.device, number, params, rule, key)).x
        seconds = time.perf_counter() - began
        if job.measure:
            held = self._trainer.evaluate(job.device, params)
            return jobs.Trained(id=job.id, device=job.device, nll=held.nll, tokens=held.tokens, seconds=seconds)
        return jobs.Trained(id=job.id, device=job.device, params=vector.to_bytes(params), seconds=seconds)

    def _memory_path(self, device: str) -> Path:
        return self._run_dir / "devices" / (hashlib.sha256(device.encode()).hexdigest()[:32] + ".safetensors")

    def _recall(self, device: str) -> machine.Idle:
        if not self._plan.pipeline.encoded.memory:
            return machine.join(self._plan, device)
        path = self._memory_path(device)
        if not path.exists():
            return machine.join(self._plan, device)
        try:
            return machine.restore(device, load_file(path))
        except (SafetensorError, KeyError, OSError) as e:
            raise StoreError(
                "E-CHECKPOINT", f"codec memory of device {device} is damaged ({path}: {e}).", f"delete {path}."
            ) from None

    def _remember(self, state: machine.Idle) -> None:
        path = self._memory_path(state.device)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({k: np.ascontiguousarray(v) for k, v in machine.save(state).items()}, temporary)
            os.replace(temporary, path)
        except OSError as e:
            temporary.unlink(missing_ok=True)
            raise StoreError(
                "E-DISK", f"cannot write {path}: {e.strerror}.", "free some space, then --resume."
            ) from None
