"""Recipe -> Plan: the only thing that runs. Parts that must match travel together; bounds are derived, never typed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgewise.codecs import pack
from edgewise.core import keys
from edgewise.core.errors import RecipeError
from edgewise.core.frame import LocalRule
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import HEAD, HEAD_BOUND, Pipeline, Stage, pipeline
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import Catalogue, Entry, make
from edgewise.plan.recipe import Recipe
from edgewise.strategies.base import Strategy

MESSAGE_LIMIT_BYTES = 2**32 - 2**20  # MessagePack's largest binary field, less room for the rest


@dataclass(frozen=True)
class Sampling:
    """Who is invited and when a round is complete.

    Attributes:
        kind: ``all``, ``fixed``, ``poisson``. population: devices that exist.
        goal: contributions that close the round; the population for ``all`` and ``poisson`` (nobody is turned away:
            closing early would spoil the sampling).
        expected: contributions that a round is meant to have: the population, or ``round.cohort``.
        invite: devices invited (expected number for ``poisson``).
        minimum: contributions below which the round is abandoned. deadline_s: when it closes regardless.
        rate: probability that a given device is invited.
    """

    kind: str
    population: int
    goal: int
    expected: int
    invite: int
    minimum: int
    deadline_s: float
    rate: float

    @property
    def earns(self) -> str:
        """What a privacy accountant may later assume, in words."""
        return {
            "all": "no amplification: every device is in every round",
            "fixed": f"sampling without replacement, {self.invite} of {self.population}; not Poisson",
            "poisson": f"Poisson sampling at rate {self.rate:.4g}; against the release only, never against the server",
        }[self.kind]


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs to know, checked to compose.

    ``secagg`` and ``spend`` are None until secure aggregation and differential privacy are asked for.
    """

    recipe: Recipe
    run: str
    spec: Spec
    pipeline: Pipeline
    strategy: Strategy
    sampling: Sampling
    claims: tuple[str, ...]
    secagg: None = None
    spend: None = None

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return self.recipe.round.rounds

    @property
    def rounds_alone(self) -> tuple[int, ...]:
        """The rounds that a device trains in the local-only comparison: as many as it takes part in on average,
        spread evenly over the schedule."""
        n = max(1, round(self.rounds * self.sampling.expected / self.sampling.population))
        return tuple(i * self.rounds // n for i in range(n))

    @property
    def key(self) -> keys.Key:
        """Root of all simulated randomness of the run."""
        return keys.root(self.recipe.seed)

    def rule(self, round: int) -> LocalRule:
        """What devices do in this round; the learning-rate schedule runs over rounds.

        cosine: lr (0.1 + 0.9 (1 + cos(pi r / R)) / 2): the full rate in round 0, a tenth at the end.
        """
        t = self.recipe.training
        factor = 1.0
        if t.schedule == "cosine":
            factor = 0.1 + 0.45 * (1.0 + math.cos(math.pi * round / self.rounds))
        return LocalRule(steps=t.local_steps, lr=t.lr * factor, prox_mu=self.strategy.prox_mu)

    def turn(self, round: int, private: keys.Key = b"") -> keys.Turn:
        """The codec's view of a round."""
        return keys.Turn(round, self.public(round), private)

    def public(self, round: int) -> keys.Key:
        """The round's public key, announced in the invitation."""
        return keys.derive(self.key, "public", round)

    @property
    def frame_limit_bytes(self) -> int:
        """No honest answer is larger: the packed payload at its worst, and room for the frame around it."""
        space = self.pipeline.encoded
        worst = 16 * space.dim + space.universe + 16 * len(space.head) + 65536
        return min(worst, MESSAGE_LIMIT_BYTES)

    @property
    def upload_bytes(self) -> float:
        """Expected payload bytes of one contribution."""
        return pack.size_bytes(self.pipeline.encoded)


def compile(recipe: Recipe, spec: Spec, population: int, catalogue: Catalogue) -> Plan:
    """Check and assemble a recipe for a model layout and a population.

    Raises:
        RecipeError: unknown parts or parameters, a cohort larger than the population (E-QUORUM).
        CompositionError: stages that do not compose soundly.
    """
    sampling = _sampling(recipe, population)
    names = HEAD if recipe.metrics == "sum" else ()
    start = Space(
        dim=spec.dim,
        quorum=Quorum(sampling.minimum, sampling.population if sampling.kind == "poisson" else sampling.invite),
        head=names,
        head_l2=HEAD_BOUND * math.sqrt(len(names)),
        universe=spec.dim,
    )
    stages = build_stages(recipe.stage, spec, catalogue.stages)
    merge = make(catalogue.merges, "[merge]", recipe.merge, spec)
    posts = [make(catalogue.posts, f"[[post]] {i + 1}", table, spec) for i, table in enumerate(recipe.post)]
    pipe = pipeline(start, stages, merge, posts)
    for what, size in (("the model's trainable vector", 4.0 * spec.dim), ("an upload", pack.size_bytes(pipe.encoded))):
        if size > MESSAGE_LIMIT_BYTES:
            raise RecipeError(
                "E-FRAME-SIZE", f"{what} has {size:.3g} bytes, one message holds {MESSAGE_LIMIT_BYTES}.",
                'train less: trainable.kind = "lora" or "layers".',
            )  # fmt: skip
    strategy = make(catalogue.strategies, "[strategy]", recipe.strategy, spec)
    _check_directions(recipe, strategy, spec)
    return Plan(recipe, recipe.sha256(), spec, pipe, strategy, sampling, _claims(recipe, pipe, sampling))


def build_stages(tables: Sequence[Mapping[str, Any]], spec: Spec, entries: Mapping[str, Entry]) -> list[Stage]:
    """The stages of a recipe in order; a combinator takes everything after it inside."""
    stages: list[Stage] = []
    for i, table in enumerate(tables):
        where = f"[[stage]] {i + 1}"
        if (kind := table.get("kind")) in entries and entries[str(kind)].combinator:
            stages.append(make(entries, where, table, spec, build_stages(tables[i + 1 :], spec, entries)))
            return stages
        stages.append(make(entries, where, table, spec))
    return stages


def _sampling(recipe: Recipe, population: int) -> Sampling:
    r = recipe.round
    if r.sampling == "all":
        goal = invite = population
    else:
        if r.cohort > population:
            raise RecipeError(
                "E-QUORUM", f"round.cohort = {r.cohort}, but there are {population} devices.", "lower round.cohort."
            )
        invite = min(population, _ceil(r.cohort * r.overselect)) if r.sampling == "fixed" else r.cohort
        goal = r.cohort if r.sampling == "fixed" else population
    expected = population if r.sampling == "all" else r.cohort
    minimum = max(1, _ceil(expected * r.minimum))
    return Sampling(r.sampling, population, goal, expected, invite, minimum, r.deadline_s, invite / population)


def _check_directions(recipe: Recipe, strategy: Strategy, spec: Spec) -> None:
    """Raises RecipeError(E-COMBO) where directions meet what has no meaning along them."""
    if strategy.directions is None:
        return
    kind, training = recipe.strategy["kind"], recipe.training
    if training.optimizer != "sgd" or training.momentum:
        what = (
            f'strategy "{kind}" takes plain steps along directions; training.optimizer and momentum have no gradient.'
        )
        raise RecipeError("E-COMBO", what, 'training.optimizer = "sgd", training.momentum = 0.')
    if training.weight_decay:
        what = f'strategy "{kind}" moves along its directions only, and weight decay points along none of them.'
        raise RecipeError("E-COMBO", what, "training.weight_decay = 0.")
    if spec != strategy.directions.spec:
        what = f'strategy "{kind}" works with a torch model, and this trainer does not say that it has one.'
        raise RecipeError("E-COMBO", what, "build the trainer on learn.torch_trainer.TorchTrainer.")


def _ceil(x: float) -> int:
    """Round up, but not because of the last bits of a product such as 100 x 1.1."""
    return math.ceil(x - 1e-9)


def _claims(recipe: Recipe, pipe: Pipeline, sampling: Sampling) -> tuple[str, ...]:
    who = "the server sees every device's update" if pipe.total.visible else "the server adds updates blind, unmasked"
    claims = [
        f'{who}: nothing is promised about privacy (privacy = "{recipe.privacy}")',
        "raw text, codec memory and personal models never leave a device",
        f"cohort: {sampling.earns}",
    ]
    if recipe.metrics == "none":
        claims.append("no train losses leave devices; the weight of an update does, where a stage weighs")
    elif pipe.total.visible:
        claims.append("each device's train losses and weight are visible to the server beside its update")
    else:
        claims.append("train losses and weights leave devices only as a sum")
    claims.append("held-out losses of single devices are collected by evaluations: a simulation's instrument")
    if math.isfinite(pipe.total.sensitivity):
        claims.append(f"one device moves the summed update by at most {pipe.total.sensitivity:.4g} (L2)")
    else:
        claims.append("one device can move the sum without limit (no clip)")
    if pipe.total.noise_std:
        claims.append(
            f"noise of std {pipe.total.noise_std:.4g} on the sum, in simulation derived from the seed: repeatable, so "
            "not private; no epsilon is derived from it"
        )
    return tuple(claims)
