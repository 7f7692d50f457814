"""A round that a script trains, and the outcome of its update."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.apps.device.handover import Desk
from edgewise.core.errors import ModelError, TrainingError
from edgewise.core.metric import HELD_OUT, HELD_SHARE, LOSSES
from edgewise.core.training import FitRequest, Update
from edgewise.core.vector import Spec, Vector
from edgewise.plan import explain
from edgewise.plan.metrics import LOSS
from edgewise.plan.plan import Plan
from edgewise.privacy import card

LOOK_S = 0.25  # wait between two questions for a round's end; the server answers each at the end


@dataclass(frozen=True)
class FramesThatLeft:
    """The total of the frames that the device sent in one round, by its record.

    ``refusal`` is the code and reason of a refusal. None without one.
    """

    bytes: int = 0
    epsilon: float | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a script's update. Print it to see a sentence.

    Attributes:
        run, round: the round.
        released: whether the released model contains the update. This is the server's word.
        why: the reason with its code, if the update was dropped. None if it was released, or the reason is not known.
        bytes: sent by this device in the round, all frames together.
        epsilon: spent. By ``counted`` this is the epsilon that all runs of this device have spent together, if its
            owner's policy has a budget. Otherwise it is the most that this run may spend in all its rounds. None: no
            noise is added, and ``counted`` is None too.
        metrics: the numbers that travelled.
    """

    run: str
    round: int
    released: bool
    why: str | None = None
    bytes: int = 0
    epsilon: float | None = None
    counted: str | None = None
    metrics: tuple[str, ...] = ()

    def __str__(self) -> str:
        end = "released" if self.released else f"dropped ({self.why or 'the round closed without it'})"
        epsilon = "no epsilon" if self.epsilon is None else f"epsilon {self.epsilon:.3g} {self.counted}"
        return f"round {self.round}: {end}, {self.bytes:,} bytes, {epsilon}"


@dataclass
class Task:
    """One round of a run, for a script to train. ``edgewise.Device.tasks`` yields them.

        task.load_into(model)                       # the round's model
        for _ in range(task.steps): ...             # own data, own loss, own optimizer
        print(task.submit(model, examples=len(texts), metrics={"loss": loss}))

    Print it to see the server's request: local training, the update pipeline, the privacy card, the deadline.

    Attributes:
        plan: the plan that the server and this device agreed on.
        files: folder of the model's files, each with the digest that the server has signed. None: no files travel.
    """

    plan: Plan
    files: Path | None
    _request: FitRequest = field(repr=False)
    _desk: Desk = field(repr=False)
    _end: Callable[[int], Mapping[str, Any]] = field(repr=False)  # asks the server for a round's outcome
    _left: Callable[[int], FramesThatLeft] = field(repr=False)
    _loaded: bool = field(default=False, repr=False)
    _corrected: int = field(default=0, repr=False)
    _done: bool = field(default=False, repr=False)

    @property
    def run(self) -> str:
        """The run's id."""
        return self.plan.run

    @property
    def round(self) -> int:
        """The number of the round, from 0."""
        return self._request.round

    @property
    def spec(self) -> Spec:
        """The layout of the trained parameters: names, shapes."""
        return self.plan.spec

    @property
    def params(self) -> Vector:
        """The round's model, float32[d]; ``core.vector.unpack(task.params, task.spec)`` names its tensors."""
        return self._request.params

    @property
    def steps(self) -> int:
        """The optimizer steps that the server asks for. With a plain average a script may take others."""
        return self._request.rule.steps

    @property
    def lr(self) -> float:
        """The round's learning rate."""
        return self._request.rule.lr

    @property
    def trains(self) -> tuple[str, ...]:
        """Names of the segments that are trained in this round. Empty: all."""
        return self._request.rule.segments

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that travel in the sum of updates, hidden as the update is. Others are refused.

        ``held_out`` is the mean loss of the round's model on examples that are not trained on. A script without such
        examples leaves it out.
        """
        return tuple(name for name in self.plan.metrics.names if name != HELD_SHARE)

    @property
    def corrects(self) -> bool:
        """True if the strategy corrects gradients. Then call ``correct`` before each step."""
        correction = self._request.correction
        return bool(correction.pull) or correction.shift is not None

    @property
    def privacy(self) -> dict[str, str]:
        """The privacy card, as names and sentences."""
        if self.plan.spend is None:
            hides = self.plan.hides
            return {"privacy": card.no_epsilon_sentence(0 if hides is None else hides.servers)}
        plain = self.plan.spend.card.to_plain()
        return {"privacy": plain["summary"], **dict(card.card_promises(plain)), **dict(card.card_assumptions(plain))}

    def __str__(self) -> str:
        plan, rule = self.plan, self._request.rule
        passes = f", {rule.epochs:g} passes at most" if rule.epochs else ""
        lines = [f"run {self.run[:12]}, round {self.round + 1} of {plan.rounds}"]
        lines.append(f"  train     {rule.steps} steps at a rate of {rule.lr:g}{passes}")
        lines.append(f"  deadline  {plan.sampling.deadline_s:g} s")
        lines += [f"  {row['role']:8}  {row['name']}: {row['does']}" for row in explain.trace(plan)]
        lines += [f"  {name}  {text}" for name, text in self.privacy.items()]
        return "\n".join(lines)

    def load_into(self, model: Any) -> None:
        """Write the round's model into a torch module, and let the round's trained parameters take a gradient.

        A module of ``peft`` gets its adapter's weights. Frozen weights stay as they are, and are not compared.

        Raises:
            TrainingError(E-TASK): the strategy has a term in the loss (``moon``).
            ModelError(E-LAYOUT): the module is not the run's. A parameter is missing, has another shape or is not
            float32, or
                the module trains one more. Nothing is written then.
        """
        from edgewise.learn.models import modules

        if self.plan.strategy.client.contrast is not None:
            what = f"the strategy {self.plan.strategy.name} contrasts representations inside the loss"
            raise refused_task(f"{what}, which a training script of your own has no part in")
        modules.load_module_vector(model, self.spec, self.params, self.trains)
        self._loaded = True

    def correct(self, model: Any) -> None:
        """Add the strategy's correction to the gradients. Call it between ``backward()`` and the optimizer's step.

        FedProx, SCAFFOLD and FedDyn need it. With other strategies it adds nothing. Raises ModelError as ``load_into``.
        """
        from edgewise.learn.models import modules

        modules.correct_gradients(model, self.spec, self.params, self._request.correction)
        self._corrected += 1

    def submit(
        self, model: Any, examples: float, metrics: Mapping[str, float] | None = None, steps: int | None = None
    ) -> Outcome:
        """Send the trained update, and wait until the round has released or dropped it.

        The change of the module since ``load_into`` is clipped, compressed, noised and hidden as the plan says. It is
        sent in no other form.

        Args:
            examples: number of examples that were trained on. This is the natural weight of this device.
            metrics: numbers that travel with the update if the recipe has them (``Task.metrics``). They are cut to the
                bounds that the recipe declares. ``loss`` stands for ``loss_last``, and for ``loss_first`` if that is
                not given. If the recipe asks for no losses, a loss stays here.
            steps: optimizer steps that were taken, for strategies whose equations need them.
        Raises:
            TrainingError(E-TASK): the task was not loaded, or was submitted before; a metric does not travel, or one is
                missing; ``correct`` was not called though the strategy needs it; a part of the model moved that rests
                in this round.
            ModelError(E-LAYOUT): as ``load_into``.
            TransportError, StoreError: the error that ended the device's loop.
        """
        from edgewise.learn.models import modules

        if not (self._done or self._loaded):
            raise refused_task("the task was not loaded: call task.load_into(model) first")
        return self._submitted(lambda: modules.read_module_vector(model, self.spec), examples, metrics, steps)

    def submit_params(
        self, params: Vector, examples: float, metrics: Mapping[str, float] | None = None, steps: int | None = None
    ) -> Outcome:
        """Send trained parameters that began as ``params``, and wait for the outcome as ``submit`` does.

        It is for training without a torch module. ``params`` is float32[d] in the layout of ``spec``.

        Raises:
            ModelError(E-LAYOUT): the vector has another length or type.
            TrainingError, TransportError, StoreError: as ``submit``.
        """
        if params.dtype != np.float32 or params.shape != self.params.shape:
            what = f"the trained parameters are {params.dtype} of shape {params.shape}"
            raise ModelError("E-LAYOUT", f"{what}, and the run has float32 of {self.params.shape}.", "see task.spec.")
        return self._submitted(lambda: params, examples, metrics, steps)

    def _submitted(
        self, read: Callable[[], Vector], examples: float, metrics: Mapping[str, float] | None, steps: int | None
    ) -> Outcome:
        if self._done:
            raise refused_task("the task has been submitted already")
        head = self._head(metrics or {})
        if not (isfinite(examples) and examples > 0):
            raise refused_task(f"examples = {examples:g} is not a number of examples")
        x = read() - self.params
        self._check(x, steps)
        self._done = True
        self._desk.answer(Update(x, head, float(examples)))
        del x
        return self._outcome(tuple(head))

    def refuse(self, why: str) -> None:
        """Contribute nothing in this round. The server gets the sentence, so it must not quote data."""
        if not self._done:
            self._done = True
            self._desk.answer(TrainingError("E-TRAIN", why))

    def _head(self, given: Mapping[str, float]) -> dict[str, float]:
        names = self.metrics
        if odd := sorted(set(given) - {LOSS, *names}):
            known = ", ".join((LOSS, *names)) if names else "none"
            what = f"metric {odd[0]} does not travel in this run; those that do: {known}. Others need a [[metric]]"
            raise refused_task(f"{what} with bounds in the recipe")
        head = {name: float(given[name]) for name in names if name in given}
        if LOSS in given:
            losses = [name for name in names if name in LOSSES]
            head = {**dict.fromkeys(losses, float(given[LOSS])), **head}
        if missing := [name for name in names if name not in head and name != HELD_OUT]:
            short = LOSS if missing[0] in LOSSES else missing[0]
            raise refused_task(
                f'this run sums {", ".join(names)}, and {missing[0]} is missing: give metrics={{"{short}": ...}}'
            )
        if odd := [name for name, value in head.items() if not isfinite(value)]:
            raise refused_task(f"metric {odd[0]} = {head[odd[0]]} is not a finite number")
        if HELD_OUT in names:  # Both are zero for a device without held-out examples.
            head = {**head, HELD_OUT: head.get(HELD_OUT, 0.0), HELD_SHARE: float(HELD_OUT in head)}
        return head

    def _check(self, x: Vector, steps: int | None) -> None:
        client, asked = self.plan.strategy.client, self.steps
        if self.corrects and not self._corrected:
            what = f"the strategy {self.plan.strategy.name} corrects gradients: call task.correct(model) before each"
            raise refused_task(f"{what} step of the optimizer")
        taken = self._corrected if steps is None and self.corrects else steps
        if client.finish is not None and taken != asked:
            what = f"the equations of {self.plan.strategy.name} are for {asked} steps; here were {taken or 'no'}"
            raise refused_task(f"{what}: take as many, and say so by steps={asked}")
        for s in self.spec.segments if self.trains else ():
            if s.name not in self.trains and np.any(x[s.start : s.stop]):
                raise refused_task(f"{s.name} moved, and rests in this round: keep it out of the optimizer")

    def _outcome(self, metrics: tuple[str, ...]) -> Outcome:
        while True:
            if self._desk.failure is not None:
                raise self._desk.failure
            if (sent := self._left(self.round)).refusal is not None:
                return self._result(sent, False, sent.refusal, metrics)
            end = self._end(self.round)
            if end["state"] != "open":
                why = ": ".join(str(part) for part in (end["code"], end["reason"]) if part) or None
                if not end["yours"] and why is None and end["state"] == "abandoned":
                    why = "the round was abandoned"
                return self._result(self._left(self.round), bool(end["yours"]), why, metrics)
            time.sleep(LOOK_S)

    def _result(self, sent: FramesThatLeft, released: bool, why: str | None, metrics: tuple[str, ...]) -> Outcome:
        epsilon = sent.epsilon
        counted = None if epsilon is None else "in all runs of this device"
        if epsilon is None and self.plan.spend is not None:
            found = self.plan.spend.card
            epsilon = found.of_release if found.against_server is None else found.against_server
            if epsilon is not None:
                counted = f"at most in all {self.plan.rounds} rounds of this run"
        return Outcome(self.run, self.round, released, None if released else why, sent.bytes, epsilon, counted, metrics)


def refused_task(why: str) -> TrainingError:
    """Make the error for a script that misuses a task."""
    return TrainingError("E-TASK", f"{why}.", "see `edgewise explain coming-from`.")
