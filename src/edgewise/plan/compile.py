"""Recipe -> Plan: the only thing that runs. Parts that must match travel together; bounds are derived, never typed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Never

from edgewise.codecs import pack
from edgewise.core import keys
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.frame import LocalRule
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import HEAD, HEAD_BOUND, Pipeline, Stage, pipeline
from edgewise.core.vector import Array, Spec
from edgewise.merges.plain import plain_sum
from edgewise.plan.catalogue import Catalogue, Entry, make
from edgewise.plan.recipe import Recipe
from edgewise.strategies.base import Strategy

MESSAGE_LIMIT_BYTES = 2**32 - 2**20  # MessagePack's largest binary field, less room for the rest
DELTA_FRAME_BYTES = 75  # of a ``frame.Delta``: all but its payload, give or take the digits of its integers


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

    ``pipeline`` is the way of an update up; ``downlink`` that of the model's change down, a pipeline of one
    contribution, None where devices download the model itself. ``secagg`` and ``spend`` are None until secure
    aggregation and differential privacy are asked for.
    """

    recipe: Recipe
    run: str
    spec: Spec
    pipeline: Pipeline
    strategy: Strategy
    sampling: Sampling
    claims: tuple[str, ...]
    downlink: Pipeline | None = None
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

    def turn(self, round: int, private: keys.Key = b"", support: Array | None = None) -> keys.Turn:
        """The codec's view of a round."""
        return keys.Turn(round, self.public(round), private, support)

    def turn_down(self, round: int) -> keys.Turn:
        """The downlink's view of the delta that leads to the model of a round. Its public key travels in the delta."""
        public = keys.derive(self.public(round), "downlink")
        return keys.Turn(round, public, keys.derive(self.key, "downlink", round))

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

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of the model vector in float32: what a device downloads that has nothing to start from."""
        return 4 * self.spec.dim

    @property
    def delta_bytes(self) -> float | None:
        """Expected bytes of one round's delta, its frame included; None where there are no deltas."""
        return None if self.downlink is None else pack.size_bytes(self.downlink.encoded) + DELTA_FRAME_BYTES

    @property
    def support_bytes(self) -> float:
        """Expected bytes of the positions of the last release that devices are told each round; 0 where none are."""
        n = min(self.pipeline.encoded.support, self.spec.dim)
        return pack.support_bytes(n, self.spec.dim) if n else 0.0


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
        population=population,
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
    down = _downlink(build_stages(recipe.downlink, spec, catalogue.stages, "[[downlink]]"), spec)
    return Plan(recipe, recipe.sha256(), spec, pipe, strategy, sampling, _claims(recipe, pipe, sampling), down)


def _downlink(stages: Sequence[Stage], spec: Spec) -> Pipeline | None:
    """The way down: one contribution, the server's, with nothing beside it. None where there are no stages.

    Raises:
        CompositionError: E-ORDER for what cannot work there, besides whatever the stages refuse by themselves.
        RecipeError: E-COMBO where a delta would be no smaller than the model.
    """
    if not stages:
        return None
    if any(stage.server is not None for stage in stages):
        _refuse_down(stages, "a stage has its own memory on the server: it undoes a mean, and nothing is averaged here")
    start = Space(dim=spec.dim, quorum=Quorum(1, 1), universe=spec.dim)
    pipe = pipeline(start, stages, plain_sum())
    out = pipe.encoded
    if out.memory or pipe.init():
        _refuse_down(
            stages, "what a delta leaves out comes back by itself, as the next one is taken against what devices hold"
        )
    if out.head:
        _refuse_down(stages, "there is one model to send and nothing to weigh")
    if out.support:
        _refuse_down(stages, "a stage needs the positions of the last release, and a late device has only the newest")
    if out.gain > 1.0:
        raise CompositionError(
            "E-ORDER",
            f"[[downlink]]: a stage stretches what it keeps {out.gain:.3g} times, so what deltas leave out would grow.",
            "set unbiased = false for random_k.",
        )
    size, snapshot = pack.size_bytes(out) + DELTA_FRAME_BYTES, 4 * spec.dim
    if size >= snapshot:
        raise RecipeError(
            "E-COMBO", f"[[downlink]]: a delta would have {size:.0f} bytes, the whole model has {snapshot}.",
            "compress more, or leave out [[downlink]].",
        )  # fmt: skip
    return pipe


def _refuse_down(stages: Sequence[Stage], why: str) -> Never:
    names = ", ".join(stage.name for stage in stages)
    raise CompositionError("E-ORDER", f"[[downlink]] {names}: {why}.", "take it out of [[downlink]].")


def build_stages(
    tables: Sequence[Mapping[str, Any]], spec: Spec, entries: Mapping[str, Entry], label: str = "[[stage]]"
) -> list[Stage]:
    """The stages of a recipe's list in order; a combinator takes everything after it inside. ``label`` is the list's
    place in the recipe, for messages."""
    stages: list[Stage] = []
    for i, table in enumerate(tables):
        where = f"{label} {i + 1}"
        if (kind := table.get("kind")) in entries and entries[str(kind)].combinator:
            stages.append(make(entries, where, table, spec, build_stages(tables[i + 1 :], spec, entries, label)))
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
