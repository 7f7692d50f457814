"""Leakage part of an audit: token recall, membership and exposure of one device's text behind each defence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgewise.apps.audit import crossings
from edgewise.core.errors import DataError, RecipeError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Turn, derive, generator, root
from edgewise.core.training import FitRequest
from edgewise.core.vector import Spec, Vector
from edgewise.drivers.workers.records import in_steps, protect_records
from edgewise.engine.trainer import registered
from edgewise.learn.attacks import reconstruction
from edgewise.learn.attacks.reconstruction import TokenLeak
from edgewise.learn.text import trainer as text
from edgewise.learn.text.blocks import predictions
from edgewise.learn.text.marks import unmarked
from edgewise.learn.text.trainer import TextTrainer
from edgewise.learn.train import fit
from edgewise.plan.catalogue import Catalogue
from edgewise.plan.compile import compile
from edgewise.plan.own_part import own_part
from edgewise.plan.plan import Plan
from edgewise.plan.promise import Noiser
from edgewise.plan.recipe.engine import EngineSection
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.strategy import strategy_of
from edgewise.privacy.audit import FULL_WEIGHT, audited_release

TOKENS = 48  # Tokens of the attacked batch. The span check needs fewer than the model's width.
OTHERS = 255  # Random strings that a canary is compared with.
PIECES = 96  # Largest number of pieces of a device's text. The membership test trains on half of them.
LEAVES = {  # Change of an update on its way out of a device, by the party that adds noise.
    Noiser.COHORT: ", with its share of the noise, before it is hidden",
    Noiser.DEVICE: ", with its noise",
    Noiser.STEPS: ", every step noised",
}
BEFORE = ", before it is hidden"
Step = Callable[[str, int, int], None]


def text_trainer(recipe: Recipe, recipe_dir: Path, scratch: Path, catalogue: Catalogue) -> TextTrainer:
    """Make the recipe's own trainer, which the attacks on text are played against.

    Raises RecipeError(E-COMBO) for an extension's trainer, because the attacks need a text model.
    """
    on_cpu = recipe.model_copy(update={"engine": EngineSection(device="cpu")})  # The attacks compute there.
    trainer = None if catalogue.trainer is not None else text.make(on_cpu, recipe_dir, scratch / "cache")
    if trainer is not None and own_part(recipe, trainer.spec) is not None:
        what = (
            f'an audit attacks updates of whole models, and personal.method = "{recipe.personal.method}" keeps a part.'
        )
        raise RecipeError("E-COMBO", what, "audit the recipe without [personal], which reveals more.")
    if trainer is None or strategy_of(recipe, catalogue, trainer.spec, len(trainer.devices())).directions is not None:
        what = "an audit attacks a text model. This trainer is an extension's, or it is wrapped."
        raise RecipeError("E-COMBO", what, "audit a recipe of the text trainer.")
    return trainer


def audit_leakage(
    recipe: Recipe,
    plan: Plan,
    trainer: TextTrainer,
    recipe_dir: Path,
    scratch: Path,
    quick: bool,
    step: Step,
    catalogue: Catalogue,
) -> dict[str, Any]:
    """Run all attacks on one device's text.

    With ``dp.unit = "example"`` devices train by the recipe's DP-SGD in every row that does not say "in the clear".

    Returns:
        ``leaks``: token recall from one update in the clear, from the update that leaves the device, from the cohort's
        sum, and from the release. ``crossings``: tokens recovered at the cut of a split model.
        ``memory``: membership and exposure of the models after them. ``tokens``: the number
        of distinct tokens in the attacked batch.
    """
    cohort = 8 if quick else 32
    whole = recipe.model_copy(update={"trainable": type(recipe.trainable)(kind="full")})
    other = text_trainer(whole, recipe_dir, scratch, catalogue)
    everything = compile(whole, other.spec, len(other.devices()), catalogue)
    leaks = _Probe(everything, whole, other, cohort, step).whole()
    probe = _Probe(plan, recipe, trainer, cohort, step)
    crossed = crossings.audit_crossings(
        recipe, trainer, probe.devices, quick, step
    )  # before any training changes the model
    more, memory = probe.behind()
    return {"leaks": leaks + more, "memory": memory, "tokens": leaks[0]["tokens"], "crossings": crossed}


class _Probe:
    """Attacks on one device's batch."""

    def __init__(self, plan: Plan, recipe: Recipe, trainer: TextTrainer, cohort: int, step: Step) -> None:
        self.plan, self.training, self.trainer, self.step = plan, recipe.training, trainer, step
        self.registered = registered(trainer)
        protect_records(plan, self.registered)  # A host of devices does the same.
        self.devices = _with_text(trainer, cohort)
        self.rows = rows = self._first_text(self.devices[0])
        self.tokens = np.where(rows < 0, ~rows, rows)[0, :-1]
        self.inputs = reconstruction.first_layer_inputs(trainer.model)
        vocabulary = self.inputs.shape[0]
        others = [unmarked(self.trainer.text(d).blocks.train_NS[:64]).ravel() for d in self.devices[1:]]
        text = np.concatenate([np.where(o < 0, ~o, o) for o in others]) if others else np.zeros(0, np.int64)
        self.usual = np.bincount(text.astype(np.int64), minlength=vocabulary).astype(np.float64)

    def _first_text(self, device: str) -> np.ndarray[Any, Any]:
        """Return the beginning of a device's text as one row, int64[1, <= TOKENS + 1]."""
        found: np.ndarray[Any, Any] = unmarked(self.trainer.text(device).blocks.train_NS[:1])[:, : TOKENS + 1]
        return found.astype(np.int64)

    def single(self) -> Vector:
        """Compute the update of one plain gradient step on the batch, as federated SGD sends it."""
        return self._trained_update(self.rows, 1, sgd=True)

    def _trained_update(
        self, rows: np.ndarray[Any, Any], steps: int, sgd: bool, own: bool = False, device: int = 0
    ) -> Vector:
        """Compute the update of some steps on ``rows``.

        With ``own`` the steps are noised as on the recipe's devices. Each row is then a record that is in every step
        (the worst case), and the device's other records are left out.
        """
        training = self.training
        if sgd:
            training = training.model_copy(update={"optimizer": "sgd", "momentum": 0.0, "clip_grad": 0.0})
        rule = LocalRule(steps=steps, lr=1e-2 if sgd else self.training.lr)
        dp, expected = self.trainer.step_noise if own else None, 0.0
        together: list[Any] = [(torch.from_numpy(rows), int(predictions(rows)))]
        if dp is not None:
            batches_each = [(torch.from_numpy(row[None]), int(predictions(row[None]))) for row in rows]
            together = list(enumerate(batches_each))
            expected = dp.rate * self.trainer.text(self.devices[device]).size
        batches: Iterable[Sequence[Any]] = [together] * steps
        key = derive(root(3), "audit", device)
        return fit(
            self.trainer.model, self.trainer.loss, batches, self.trainer.flat, self.trainer.initial(), rule, training,
            key, dp=dp, expected=expected, secret=key,
        ).x  # fmt: skip

    def row(self, what: str, update: Vector, seen: bool = False) -> dict[str, Any]:
        """Run both attacks on one vector. A result is None if the vector's layout has no segment for the attack."""
        spec = self.trainer.spec
        span, rows = self._token_recall(update, spec, "span"), self._token_recall(update, spec, "rows")
        base = reconstruction.token_leak(self.usual, self.tokens.tolist(), self.usual)
        return {
            "what": what,
            "span": None if span is None else span.recall,
            "rows": None if rows is None else rows.recall,
            "base": base.base,
            "tokens": base.tokens,
            "seen": seen,
        }

    def _token_recall(self, update: Vector, spec: Spec, how: str) -> TokenLeak | None:
        """Measure how many of the text's tokens an update reveals."""
        vocabulary = self.inputs.shape[0]
        segment = (
            reconstruction.first_layer_segment(spec)
            if how == "span"
            else reconstruction.embedding_segment(spec, vocabulary)
        )
        if segment is None:
            return None
        if how == "rows":
            scores = reconstruction.row_scores(update, spec, segment)
        else:
            width = next(s.shape[1] for s in spec.segments if s.name == segment)
            if width != self.inputs.shape[1]:  # An adapter's second factor never sees the inputs.
                return None
            scores = reconstruction.span_scores(update, spec, segment, self.inputs)
        return reconstruction.token_leak(scores, self.tokens.tolist(), self.usual)

    def whole(self) -> list[dict[str, Any]]:
        """Attack one gradient step of all weights, where attacks are strongest: alone, in a sum, in a release."""
        batches = [self._first_text(d) for d in self.devices]
        plain = [self._trained_update(rows, 1, sgd=True) for rows in batches]
        total = np.asarray(np.sum(plain, axis=0, dtype=np.float64), np.float32)
        sent = [self._trained_update(rows, 1, sgd=True, own=True, device=i) for i, rows in enumerate(batches)]
        n, key = len(sent), derive(root(3), "whole")
        seen = audited_release(self.plan.at(0), [*sent, *self._zero_updates(sent[0], n)], key)
        return [
            self.row("whole model, one SGD step of one device, in the clear", plain[0]),
            self.row(f"whole model, the sum of {n} devices, in the clear", total),
            self.row(f"whole model, the release of {n}{self._noise_in_words(' with ')}", seen),
        ]

    def _noise_in_words(self, word: str) -> str:
        """Name the recipe's noise after ``word``. Empty without noise."""
        promise = self.plan.promise
        if promise.who_noises is Noiser.NOBODY:
            return ""
        return word + ("the noise of every step" if promise.noises_steps else "the recipe's noise")

    def _other_updates(self) -> list[Vector]:
        """Compute the updates of the cohort's other devices by the recipe's own training."""
        out = []
        for i, device in enumerate(self.devices[1:]):
            self.step("training a cohort", i, len(self.devices) - 1)
            key = derive(root(3), "fit", device)
            rule = in_steps(self.registered, self.plan, device, self.plan.rule(0))
            request = FitRequest(device, 0, self.trainer.initial(), rule, key, key)
            out.append(self.trainer.fit(request).x)
        return out

    def _zero_updates(self, like: Vector, n: int) -> list[Vector]:
        """Fill the cohort up to the plan's minimum with zero updates, which carry only noise."""
        return [np.zeros_like(like)] * max(0, min(self.plan.sampling.minimum, 256) - n)

    def behind(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Attack the recipe's own pipeline. Returns the rows on leaks and those on memory."""
        plan, promise = self.plan, self.plan.promise
        steps = min(in_steps(self.registered, plan, self.devices[0], plan.rule(0)).steps, 8)
        taken, left = self._text_halves()
        plain = self._trained_update(self.rows, steps, sgd=False)
        update = self._trained_update(self.rows, steps, sgd=False, own=True) if promise.noises_steps else plain
        updates = [update, *self._other_updates()]
        hidden, noisy = promise.hidden, promise.who_noises is not Noiser.NOBODY
        total = np.asarray(np.sum(updates, axis=0, dtype=np.float64), np.float32)
        quiet = self._zero_updates(update, len(updates))
        seen = audited_release(plan.at(0), [*updates, *quiet], derive(root(3), "release"))
        n, with_secret = len(updates), [self._update_with_secret(taken, steps), *updates[1:], *quiet]
        remembered = audited_release(plan.at(0), with_secret, derive(root(3), "release"))
        between = LEAVES.get(promise.who_noises, BEFORE if hidden else "")
        leaks = [
            self.row("one update, one SGD step, in the clear", self.single()),
            self.row(f"one update, this recipe's {steps} local steps, in the clear", plain, not hidden and not noisy),
            self.row(f"the same as it leaves the device{between}", self._sent_update(update),
                     not hidden and noisy),
            self.row(f"the sum of {n} updates", total, False),
            self.row(f"the release: sum of {n}{self._noise_in_words(' with ')}", seen, hidden),
        ]  # fmt: skip
        start = self.trainer.initial()
        models = [("nothing (base)", start), ("one update of the device", start + with_secret[0])]
        models.append((f"the release of {n}", start + remembered / np.float32(n)))
        before = self._losses_under(start, taken), self._losses_under(start, left)
        return leaks, [self._measure_memory(name, x, (taken, left), before) for name, x in models]

    def _text_halves(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Split the device's text into two random halves, int64[., S]: one to train on, and one to leave out.

        The training and held-out blocks would not do. Held-out text is the end of a document, so it differs anyway.
        """
        blocks = self.trainer.text(self.devices[0]).blocks
        whole = unmarked(np.concatenate([blocks.train_NS, blocks.held_NS])).astype(np.int64)
        order = generator(derive(root(3), "members")).permutation(len(whole))[:PIECES]
        return whole[order[: len(order) // 2]], whole[order[len(order) // 2 :]]

    def _update_with_secret(self, taken: np.ndarray[Any, Any], steps: int) -> Vector:
        """Compute the device's update on one half of its text plus a secret of random tokens."""
        rows = np.concatenate([taken, self._secret_tokens(taken.shape[1])])
        return self._trained_update(rows, steps, sgd=False, own=True)

    def _secret_tokens(self, length: int, which: int = 0) -> np.ndarray[Any, Any]:
        """Draw a row of random tokens of the text."""
        rng = generator(derive(root(3), "canary", which))
        drawn: np.ndarray[Any, Any] = rng.choice(np.unique(self.tokens), (1, length)).astype(np.int64)
        return drawn

    def _sent_update(self, x: Vector) -> Vector:
        """Encode and decode an update, as the server sees it."""
        pipe, public = self.plan.at(0), derive(root(3), "public")
        turn = Turn(0, public, derive(root(3), "device"))
        payload, _ = pipe.encode(x, dict.fromkeys(pipe.spaces[0].head, 0.0), FULL_WEIGHT, pipe.init(), turn)
        return pipe.decode(payload, Turn(0, public)).body

    def _row_losses(self, rows_NS: np.ndarray[Any, Any]) -> reconstruction.Scores:
        """Compute the losses of rows under the model as it is."""
        rows = torch.from_numpy(np.array(rows_NS).astype(np.int64))
        return reconstruction.text_losses(self.trainer.model.eval(), rows, self.trainer.autocast is torch.bfloat16)

    def _losses_under(self, params: Vector, rows_NS: np.ndarray[Any, Any]) -> reconstruction.Scores:
        """Compute the losses of rows under a model."""
        self.trainer.flat.write(params.astype(np.float32))
        return self._row_losses(rows_NS)

    def _measure_memory(
        self,
        name: str,
        params: Vector,
        halves: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
        before: tuple[reconstruction.Scores, reconstruction.Scores],
    ) -> dict[str, Any]:
        """Measure membership of the trained half, and exposure of the canary trained with it.

        Args:
            before: losses of both halves under the base model.
        """
        self.step("what models remember", 0, 1)
        # Some text is easier for every model. The fall of its loss shows the effect of training.
        fell = [self._losses_under(params, rows) - start for rows, start in zip(halves, before, strict=True)]
        found = reconstruction.membership_inference(fell[0], fell[1])
        length = halves[0].shape[1]
        false = np.concatenate([self._secret_tokens(length, i) for i in range(1, OTHERS + 1)])
        own = float(self._row_losses(self._secret_tokens(length))[0])
        bits = reconstruction.secret_exposure(own, self._row_losses(false))
        return {
            "what": name,
            "auc": found.auc,
            "chance": found.chance,
            "members": fell[0].size,
            "others": fell[1].size,
            "tpr_at_1": found.tpr_at_1,
            "exposure": bits,
            "exposure_most": float(np.log2(OTHERS + 1)),
        }


def _with_text(trainer: TextTrainer, cohort: int) -> list[str]:
    """List the first devices that can train. Raises DataError(E-DATA-EMPTY) if fewer than two can."""
    usable: list[str] = []
    for device in trainer.devices():
        if len(usable) == cohort:
            break
        try:
            shard = trainer.text(device)
        except DataError:
            continue
        if len(shard.blocks.train_NS) and len(shard.blocks.held_NS):
            usable.append(device)
    if len(usable) < 2:
        raise DataError("E-DATA-EMPTY", "an audit needs two devices with text.", "check data.path.")
    return usable
