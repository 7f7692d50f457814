"""A host runs devices: it feeds frames to the pure device machine, trains where the machine asks, and keeps its memory.

One class for the single-process simulator and for worker processes. A device's codec memory is a file
(``drivers.memory``), replaced before the device's frame leaves; data and models stay with the trainer.

A trainer is foreign code: whatever it raises costs the device its part in the round, never the run. The server is told
the code and, of errors that are not edgewise's own, the name of the type; the traceback stays here, in the log
``edgewise``. Only a run directory that cannot be written ends the run.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgewise.codecs import pack
from edgewise.core import frame, keys, vector
from edgewise.core.errors import DecodeError, EdgewiseError, RecipeError, StoreError
from edgewise.core.training import FitRequest, HeldOut
from edgewise.drivers import arithmetic, jobs, speed
from edgewise.drivers.following import Following
from edgewise.drivers.identities import simulated_root, simulated_secrets, simulated_trust
from edgewise.drivers.memory import Memories
from edgewise.drivers.records import noise_steps, records, without_noise
from edgewise.engine import device as machine
from edgewise.engine import invitation
from edgewise.engine.broadcast import STALE
from edgewise.engine.ports import Trainer, Trust
from edgewise.plan.catalogue import Catalogue, make, with_extensions
from edgewise.plan.compile import Plan, compile
from edgewise.plan.recipe import Recipe
from edgewise.strategies.base import Strategy

LOG = logging.getLogger("edgewise")
T = TypeVar("T")


def make_trainer(recipe: Recipe, recipe_dir: Path, run_dir: Path, catalogue: Catalogue) -> Trainer:
    """The extension's trainer where there is one, else the text trainer (imports torch).

    Where the recipe's strategy works along directions, a torch trainer is wrapped so that its vector is their
    coefficients; another trainer stays as it is, and ``compile`` refuses it. Raises RecipeError(E-COMBO) where the
    recipe counts passes and the trainer does not count records, or asks for samples of text that it cannot give.
    """
    trainer: Trainer
    if catalogue.trainer is not None:
        trainer = catalogue.trainer(recipe)
    else:
        from edgewise.learn import trainer as text

        trainer = text.make(recipe, recipe_dir, run_dir / "cache")
    if recipe.training.local_epochs and not hasattr(trainer, "records"):
        what = "training.local_epochs needs a trainer that says how many records a device has."
        fix = "give training.local_steps, or build the trainer on learn.torch_trainer.TorchTrainer."
        raise RecipeError("E-COMBO", what, fix)
    if recipe.report.samples and not hasattr(trainer, "sample"):
        what = "report.samples needs a trainer that goes on with text."
        raise RecipeError("E-COMBO", what, "leave it out, or use the text trainer.")
    strategy: Strategy = make(catalogue.strategies, "[strategy]", recipe.strategy, trainer.spec)
    if strategy.directions is None:
        return trainer
    from edgewise.learn import zeroth_order

    return zeroth_order.wrapped(trainer, strategy.directions, keys.root(recipe.seed))


def in_steps(trainer: Trainer, plan: Plan, device: str, rule: frame.LocalRule) -> frame.LocalRule:
    """The rule as ``Trainer.fit`` takes it: passes over the device's records made into steps."""
    if not rule.epochs:
        return rule
    return rule.counted(records(trainer, device), plan.recipe.training.batch)


class Host:
    """Devices of one machine or process; answers one job at a time."""

    def __init__(self) -> None:
        self._blobs: dict[str, vector.Buffer] = {}
        self._recipe: Recipe
        self._setup_job: jobs.Setup
        self._memories: Memories
        self._catalogue: Catalogue
        self._trainer: Trainer
        self._plan: Plan
        self._following: Following
        self._trust: Trust
        self._facts: dict[str, object]
        self._root: keys.Key

    def do(self, job: jobs.Job) -> jobs.Result | None:
        """Do one job. Edgewise errors become a ``Broken`` result; anything else is a bug and propagates."""
        try:
            return self._do(job)
        except EdgewiseError as e:
            return jobs.Broken(id=job.id, code=e.code, what=e.what, fix=e.fix, stops=isinstance(e, StoreError))

    def _do(self, job: jobs.Job) -> jobs.Result | None:
        match job:
            case jobs.Setup():
                return self._setup(job)
            case jobs.Compile():
                self._plan = compile(self._recipe, self._trainer.spec, len(self._trainer.devices()), self._catalogue)
                self._following = Following(self._plan.downlink)
                self._root = simulated_root(self._plan, self._facts)
                self._trust = simulated_trust(self._root)
                self._memories = Memories(Path(self._setup_job.memory_dir), self._plan.run, self._setup_job.instance)
                noise_steps(self._plan, self._trainer)
                return jobs.Ready(id=job.id)
            case jobs.Blob():
                self._blobs = {d: b for d, b in self._blobs.items() if d in job.keep}
                if vector.digest(job.data) != job.digest:
                    LOG.warning("a blob is not the one that its name says: %.64r", job.digest)
                    return None
                self._blobs[job.digest] = job.data
                self._following.take(job.digest, job.data)
                return None
            case jobs.Held():
                model = vector.from_bytes(job.data, self._trainer.spec.dim)
                self._following.put(job.round, vector.digest(job.data), model)
                return None
            case jobs.Handle():
                return self._handle(job)
            case jobs.Solo():
                return self._solo(job)
            case jobs.Time():
                return self._timed(job)
            case jobs.Count():
                return jobs.Counted(id=job.id, records=records(self._trainer, job.device))
            case jobs.Sample():
                return self._sample(job)

    def _setup(self, job: jobs.Setup) -> jobs.Result:
        self._recipe = Recipe.model_validate(json.loads(job.recipe))
        self._setup_job = job
        self._catalogue = with_extensions(job.extensions)
        try:
            self._trainer = make_trainer(self._recipe, Path(job.recipe_dir), Path(job.run_dir), self._catalogue)
        except ImportError as e:
            raise EdgewiseError(
                "E-DEPENDENCY", f"training needs {e.name or e}.", 'pip install "edgewise[train]", or `make setup`.'
            ) from None
        describe: Callable[[], dict[str, object]] | None = getattr(self._trainer, "describe", None)
        self._facts = describe() if describe is not None else {}
        return jobs.Described(
            id=job.id,
            spec=self._trainer.spec.to_list(),
            devices=list(self._trainer.devices()),
            initial=memoryview(bytes(vector.to_bytes(self._trainer.initial()))),  # a trainer may go on with its own
            facts={
                **self._facts,
                "arithmetic_sha256": arithmetic.digest(self._trainer),
            },
        )

    def _blob(self, digest: str) -> vector.Buffer:
        if digest not in self._blobs:
            raise DecodeError("E-BLOB", f"blob {digest[:12]} was never published here.")
        return self._blobs[digest]

    def _params(self, digest: str) -> vector.Vector:
        return vector.from_bytes(self._blob(digest), self._trainer.spec.dim)

    def _invited(self, job: jobs.Handle, invite: frame.Invite) -> machine.Invited | machine.Unready:
        """The invitation with what it names: the model by its snapshot or by the deltas, the last release's support.
        Nothing is looked up for an invitation that will be refused."""
        code, reason = invitation.refused(self._plan, invite, job.answered)
        if reason:
            return machine.Unready(invite, code, reason)
        try:
            return self._ready(job.device, invite)
        except DecodeError as e:
            return machine.Unready(invite, e.code, e.what)

    def _ready(self, device: str, invite: frame.Invite) -> machine.Invited | machine.Unready:
        params = self._following.find(invite) if invite.base else self._params(invite.model)
        if params is None:
            return machine.Unready(invite, STALE, "the deltas start from a model that this device no longer has")
        if not invite.base:
            self._following.put(invite.round, invite.model, params)
        support, dim = None, self._trainer.spec.dim
        if most := self._plan.at(invite.round).encoded.support:
            support = np.zeros(0, np.int64)
            if invite.support:
                support = pack.unpack_support(self._blob(invite.support), most, dim)
        secrets = simulated_secrets(self._plan, self._root, device, invite.round, invite.nonce)
        return machine.Invited(invite, params, secrets, support)

    def _handle(self, job: jobs.Handle) -> jobs.Result:
        message = frame.from_server(job.frame, self._plan.frame_limit_bytes)
        if isinstance(message, frame.Step):
            return self._letter(job, message)
        if isinstance(message, frame.Probe):
            told = frame.dump(self._measure(job.device, message))
            return jobs.Handled(id=job.id, device=job.device, frame=told, answered=job.answered)
        known = self._recall(job)
        state = machine.restore_session(job.session, known)
        state, effects = machine.step(self._plan, state, self._invited(job, message))
        if any(isinstance(effect, machine.Remember) for effect in effects):  # it would begin anew with empty memory
            raise self._memories.out_of_step(known, message.accepted)
        train_s = encode_s = 0.0
        for effect in effects:
            if isinstance(effect, machine.Train):
                began = time.perf_counter()
                event = [self._trained(job, effect.request)]
                trained = time.perf_counter()
                # The machine gets the only reference, so that the update is gone before the frame is made.
                state, effects = machine.step(self._plan, state, event.pop(), self._trust)
                train_s, encode_s = trained - began, time.perf_counter() - trained
        return self._handled(job, state, effects, train_s, encode_s)

    def _trained(self, job: jobs.Handle, request: FitRequest) -> machine.Trained | machine.Failed:
        request = replace(request, rule=in_steps(self._trainer, self._plan, job.device, request.rule))
        update = _guarded(job.device, partial(self._trainer.fit, request))
        return update if isinstance(update, machine.Failed) else machine.Trained(update, job.elapsed_s, job.up_mbit)

    def _letter(self, job: jobs.Handle, message: frame.Step) -> jobs.Result:
        began = time.perf_counter()
        state = machine.restore_session(job.session, self._recall(job))
        state, effects = machine.step(self._plan, state, machine.Letter(message), self._trust)
        return self._handled(job, state, effects, 0.0, time.perf_counter() - began)

    def _handled(
        self,
        job: jobs.Handle,
        state: machine.State,
        effects: Sequence[machine.Effect],
        train_s: float,
        encode_s: float,
    ) -> jobs.Handled:
        answered = job.answered
        for effect in effects:
            if isinstance(effect, machine.Remember):
                if machine.remembers(self._plan):
                    self._memories.save(effect.state)
                answered = effect.state.answered
        return jobs.Handled(
            id=job.id,
            device=job.device,
            frame=next((effect.frame for effect in effects if isinstance(effect, machine.Send)), b""),
            session=machine.save_session(state),
            answered=answered,
            train_s=train_s,
            encode_s=encode_s,
        )

    def _measure(self, device: str, probe: frame.Probe) -> frame.Measurement | frame.Refusal:
        run, number = probe.run, probe.round
        held: HeldOut | machine.Failed
        if run != self._plan.run or not -1 <= number < self._plan.rounds:
            held = machine.Failed("E-FRAME", "the probe is for another run, or for a round that this one does not have")
        else:
            held = _guarded(device, lambda: self._trainer.evaluate(device, self._params(probe.model)))
        if isinstance(held, machine.Failed):
            return frame.Refusal(
                run=run, round=number, device=device, code=held.code, reason=frame.legible(held.reason)
            )
        return frame.Measurement(run=run, round=number, device=device, nll=held.nll, tokens=held.tokens)

    def _solo(self, job: jobs.Solo) -> jobs.Result:
        done = _guarded(job.device, partial(self._train_alone, job))
        if isinstance(done, machine.Failed):
            return jobs.Broken(id=job.id, code=done.code, what=done.reason, fix="")
        return done

    def _sample(self, job: jobs.Sample) -> jobs.Result:
        """A device has one sample: its randomness is the same for all models."""
        params = vector.from_bytes(job.params, self._trainer.spec.dim)
        key = keys.derive(keys.root(self._recipe.seed), "sample", job.device)
        done = _guarded(job.device, lambda: self._trainer.sample(job.device, params, key))  # type: ignore[attr-defined]
        if isinstance(done, machine.Failed):
            return jobs.Broken(id=job.id, code=done.code, what=done.reason, fix="")
        prompt, actual, text = done
        return jobs.Continued(id=job.id, prompt=prompt, actual=actual, text=text)

    def _train_alone(self, job: jobs.Solo) -> jobs.Trained:
        began = time.perf_counter()
        params = np.array(vector.from_bytes(job.params, self._trainer.spec.dim))
        played: Counter[int] = Counter()
        for number in job.rounds:
            rule = self._plan.rule(number)
            # Nothing travels here, so nothing takes turns: all segments train in every round.
            rule = frame.LocalRule(steps=rule.steps * job.scale, lr=rule.lr, epochs=job.epochs or rule.epochs)
            rule = in_steps(self._trainer, self._plan, job.device, rule)
            drawn = number + played[number] * self._plan.rounds  # other batches when a round is played again
            played[number] += 1
            key, secret = self._plan.batch_key(job.device, drawn), keys.derive(self._root, "alone", job.device, drawn)
            with without_noise(self._trainer):
                params += self._trainer.fit(FitRequest(job.device, number, params, rule, key, secret)).x
        seconds = time.perf_counter() - began
        if job.measure:
            held = self._trainer.evaluate(job.device, params)
            return jobs.Trained(id=job.id, device=job.device, nll=held.nll, tokens=held.tokens, seconds=seconds)
        return jobs.Trained(id=job.id, device=job.device, params=vector.to_bytes(params), seconds=seconds)

    def _timed(self, job: jobs.Time) -> jobs.Timed:
        """For a forecast only, so nothing that goes wrong here stops a run but a disk that cannot be written."""
        try:
            step_s = speed.sizes(self._trainer, measure=True).get("step_s", 0.0)
            return jobs.Timed(id=job.id, step_s=step_s, encode_s=speed.encode_s(self._plan))
        except StoreError:
            raise
        except Exception:  # boundary: a trainer is foreign code
            LOG.warning("the speed of a step cannot be measured", exc_info=True)
            return jobs.Timed(id=job.id)

    def _recall(self, job: jobs.Handle) -> machine.Idle:
        """A device's codec memory from the disk. Which rounds it has answered it knows from memory only: simulated
        devices begin with their run, so that a run which goes on plays a round that was cut off again."""
        kept = self._memories.load(job.device) if machine.remembers(self._plan) else None
        return replace(kept or machine.join(self._plan, job.device), answered=job.answered)


def _guarded(device: str, work: Callable[[], T]) -> T | machine.Failed:
    """What the trainer gives, or why it failed. Raises StoreError only."""
    try:
        return work()
    except StoreError:
        raise
    except EdgewiseError as e:
        if e.__cause__ is not None:
            LOG.warning("device %.60r: %s", device, e.code, exc_info=e)
        return machine.Failed(e.code, e.what)
    except Exception as e:  # boundary: a trainer may raise anything, and its message may quote the device's text
        LOG.warning("device %.60r: local training failed", device, exc_info=e)
        return machine.Failed("E-TRAIN", type(e).__name__)
