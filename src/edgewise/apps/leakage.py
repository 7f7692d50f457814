"""The part of an audit that needs the model: what one device's text gives away, behind each defence."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgewise.core.errors import DataError, RecipeError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import derive, generator, root
from edgewise.core.vector import Spec, Vector
from edgewise.drivers.host import make_trainer
from edgewise.engine.ports import FitRequest
from edgewise.learn import attacks
from edgewise.learn.attacks import Leak
from edgewise.learn.blocks import predictions
from edgewise.learn.train import fit
from edgewise.learn.trainer import TextTrainer
from edgewise.plan.catalogue import Catalogue
from edgewise.plan.compile import Plan, compile
from edgewise.plan.recipe import Recipe
from edgewise.plan.section import DP_WORDS
from edgewise.privacy.audit import FULL_WEIGHT, release

TOKENS = 48  # of the attacked batch: fewer than the bundled model is wide
OTHERS = 255  # random strings that a canary is compared with
Step = Callable[[str, int, int], None]


def examine(recipe: Recipe, recipe_dir: Path, quick: bool, step: Step, catalogue: Catalogue) -> dict[str, Any]:
    """``leaks``: token recall from one update in the clear, as it leaves the device, from the cohort's sum, and from
    the release; ``memory``: membership and exposure of the models after them.

    Raises RecipeError(E-COMBO) for an extension's trainer: the attacks know text models.
    """
    with tempfile.TemporaryDirectory(prefix="edgewise-audit-") as scratch:
        whole = recipe.model_copy(update={"trainable": type(recipe.trainable)(kind="full")})
        leaks: list[dict[str, Any]] = []
        memory: list[dict[str, Any]] = []
        for name, one in (("sanity", whole), ("recipe", recipe)):
            trainer = make_trainer(one, recipe_dir, Path(scratch), catalogue)
            if not isinstance(trainer, TextTrainer):
                what = "an audit attacks a text model, and this trainer is an extension's or wrapped."
                raise RecipeError("E-COMBO", what, "audit a recipe of the text trainer.")
            probe = _Probe(one, trainer, 8 if quick else 32, step)
            if name == "sanity":
                plan = compile(one, trainer.spec, len(trainer.devices()), catalogue)
                leaks += probe.whole(plan)
                continue
            plan = compile(one, trainer.spec, len(trainer.devices()), catalogue)
            more, memory = probe.behind(plan)
            leaks += more
    return {"leaks": leaks, "memory": memory, "tokens": leaks[0]["tokens"]}


class _Probe:
    """One device's batch, and what can be said of it."""

    def __init__(self, recipe: Recipe, trainer: TextTrainer, cohort: int, step: Step) -> None:
        self.recipe, self.trainer, self.step = recipe, trainer, step
        self.devices = _with_text(trainer, cohort)
        self.rows = rows = self._first(self.devices[0])
        self.tokens = np.where(rows < 0, ~rows, rows)[0, :-1]
        self.inputs = attacks.layer_inputs(trainer.model)
        vocabulary = self.inputs.shape[0]
        others = [np.array(self.trainer.text(d).blocks.train_NS[:64]).ravel() for d in self.devices[1:]]
        text = np.concatenate([np.where(o < 0, ~o, o) for o in others]) if others else np.zeros(0, np.int64)
        self.usual = np.bincount(text.astype(np.int64), minlength=vocabulary).astype(np.float64)

    def _first(self, device: str) -> np.ndarray[Any, Any]:
        """The beginning of a device's text, one row."""
        found: np.ndarray[Any, Any] = np.array(self.trainer.text(device).blocks.train_NS[:1])[:, : TOKENS + 1]
        return found.astype(np.int64)

    def single(self) -> Vector:
        """The update of one plain gradient step on the batch: what federated SGD would send."""
        return self._trained(self.rows, 1, sgd=True)

    def _trained(self, rows: np.ndarray[Any, Any], steps: int, sgd: bool) -> Vector:
        training = self.recipe.training
        if sgd:
            training = training.model_copy(update={"optimizer": "sgd", "momentum": 0.0, "clip_grad": 0.0})
        batch = (torch.from_numpy(rows), int(predictions(rows)))
        rule = LocalRule(steps=steps, lr=1e-2 if sgd else self.recipe.training.lr)
        batches: Iterable[Sequence[Any]] = [[batch]] * steps
        return fit(
            self.trainer.model, self.trainer.loss, batches, self.trainer.flat, self.trainer.initial(), rule, training,
            derive(root(3), "audit"),
        ).x  # fmt: skip

    def row(self, what: str, update: Vector, seen: bool = False) -> dict[str, Any]:
        """Both attacks on one vector; None where its layout gives them nothing to work on."""
        spec = self.trainer.spec
        span, rows = self._leak(update, spec, "span"), self._leak(update, spec, "rows")
        base = attacks.leak(self.usual, self.tokens.tolist(), self.usual)
        return {
            "what": what,
            "span": None if span is None else span.recall,
            "rows": None if rows is None else rows.recall,
            "base": base.base,
            "tokens": base.tokens,
            "seen": seen,
        }

    def _leak(self, update: Vector, spec: Spec, how: str) -> Leak | None:
        vocabulary = self.inputs.shape[0]
        segment = attacks.first_layer(spec) if how == "span" else attacks.embedding(spec, vocabulary)
        if not segment:
            return None
        if how == "rows":
            scores = attacks.row_scores(update, spec, segment)
        else:
            width = next(s.shape[1] for s in spec.segments if s.name == segment)
            if width != self.inputs.shape[1]:  # the second factor of an adapter: it never sees the inputs themselves
                return None
            scores = attacks.span_scores(update, spec, segment, self.inputs)
        return attacks.leak(scores, self.tokens.tolist(), self.usual)

    def whole(self, plan: Plan) -> list[dict[str, Any]]:
        """The attacks where they are strongest, on one gradient step of all weights: alone, in a sum, in a release."""
        mine, others = self.single(), [self._trained(self._first(d), 1, sgd=True) for d in self.devices[1:]]
        total = np.asarray(np.sum([mine, *others], axis=0, dtype=np.float64), np.float32)
        released = release(
            plan.at(0), [mine, *others, *self._quiet(plan, mine, 1 + len(others))], derive(root(3), "whole")
        )
        n, noise = 1 + len(others), " with the recipe's noise" if self.recipe.privacy in DP_WORDS else ""
        return [
            self.row("whole model, one SGD step of one device, in the clear", mine),
            self.row(f"whole model, the sum of {n} devices", total),
            self.row(f"whole model, the release of {n}{noise}", released),
        ]

    def _others(self, plan: Plan) -> list[Vector]:
        """What the other devices of the cohort send, by the recipe's own training."""
        out = []
        for i, device in enumerate(self.devices[1:]):
            self.step("training a cohort", i, len(self.devices) - 1)
            request = FitRequest(device, 0, self.trainer.initial(), plan.rule(0), derive(root(3), "fit", device))
            out.append(self.trainer.fit(request).x)
        return out

    def _quiet(self, plan: Plan, like: Vector, n: int) -> list[Vector]:
        """The rest of the cohort sends nothing but its noise: no fewer devices than the plan counts on."""
        return [np.zeros_like(like)] * max(0, min(plan.sampling.minimum, 256) - n)

    def behind(self, plan: Plan) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The rows of the recipe's own way: leaks, and what models remember."""
        steps = min(self.recipe.training.local_steps, 8)
        mine = self._trained(self.rows, steps, sgd=False)
        updates = [mine, *self._others(plan)]
        hidden, noisy = plan.hides is not None, self.recipe.privacy in DP_WORDS
        total = np.asarray(np.sum(updates, axis=0, dtype=np.float64), np.float32)
        quiet = self._quiet(plan, mine, len(updates))
        released = release(plan.at(0), [*updates, *quiet], derive(root(3), "release"))
        n, noisy_too = len(updates), [self._planted(steps), *updates[1:], *quiet]
        remembered = release(plan.at(0), noisy_too, derive(root(3), "release"))
        central = self.recipe.privacy == "central"
        leaks = [
            self.row("one update, one SGD step, in the clear", self.single()),
            self.row(f"one update, this recipe's {steps} local steps, in the clear", mine, not hidden and not noisy),
            self.row("the same as it leaves the device, before it is hidden", self._sent(plan, mine),
                     not hidden and (noisy or central)),
            self.row(f"the sum of {n} updates", total, False),
            self.row(f"the release: sum of {n}{' with the noise of all' if noisy else ''}", released, hidden),
        ]  # fmt: skip
        start = self.trainer.initial()
        models = [("nothing (bundled)", start), ("one update of the device", start + noisy_too[0])]
        models.append((f"the release of {n}", start + remembered / np.float32(n)))
        return leaks, [self._remembers(name, x) for name, x in models]

    def _planted(self, steps: int) -> Vector:
        """The update of the device where its text holds a secret of random tokens beside the batch."""
        return self._trained(np.concatenate([self.rows, self._secret(self.rows.shape[1])]), steps, sgd=False)

    def _secret(self, length: int, which: int = 0) -> np.ndarray[Any, Any]:
        rng = generator(derive(root(3), "canary", which))
        drawn: np.ndarray[Any, Any] = rng.choice(np.unique(self.tokens), (1, length)).astype(np.int64)
        return drawn

    def _sent(self, plan: Plan, x: Vector) -> Vector:
        from edgewise.core.keys import Turn

        pipe, public = plan.at(0), derive(root(3), "public")
        turn = Turn(0, public, derive(root(3), "device"))
        payload, _ = pipe.encode(x, dict.fromkeys(pipe.spaces[0].head, 0.0), FULL_WEIGHT, pipe.init(), turn)
        return pipe.decode(payload, Turn(0, public)).body

    def _remembers(self, name: str, params: Vector) -> dict[str, Any]:
        """Membership of the attacked rows' neighbours, and exposure of a canary trained with them."""
        self.step("what models remember", 0, 1)
        shard = self.trainer.text(self.devices[0])
        self.trainer.flat.write(params.astype(np.float32))
        model = self.trainer.model.eval()
        n = min(48, len(shard.blocks.train_NS), max(8, len(shard.blocks.held_NS)))
        members = attacks.losses(model, torch.from_numpy(np.array(shard.blocks.train_NS[:n]).astype(np.int64)))
        others = attacks.losses(model, torch.from_numpy(np.array(shard.blocks.held_NS[:n]).astype(np.int64)))
        found = attacks.membership(members, others)
        length = self.rows.shape[1]
        false = np.concatenate([self._secret(length, i) for i in range(1, OTHERS + 1)])
        own = float(attacks.losses(model, torch.from_numpy(self._secret(length)))[0])
        bits = attacks.exposure(own, attacks.losses(model, torch.from_numpy(false)))
        return {
            "what": name,
            "auc": found.auc,
            "tpr_at_1": found.tpr_at_1,
            "exposure": bits,
            "exposure_most": float(np.log2(OTHERS + 1)),
        }


def _with_text(trainer: TextTrainer, cohort: int) -> list[str]:
    """The first devices that can train. Raises DataError(E-DATA-EMPTY) where fewer than two can."""
    good: list[str] = []
    for device in trainer.devices():
        if len(good) == cohort:
            break
        try:
            shard = trainer.text(device)
        except DataError:
            continue
        if len(shard.blocks.train_NS) and len(shard.blocks.held_NS):
            good.append(device)
    if len(good) < 2:
        raise DataError("E-DATA-EMPTY", "an audit needs two devices with text.", "check data.path.")
    return good
