"""Recipe -> Plan: the only thing that runs. Parts that must match travel together; bounds are derived, never typed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgewise.codecs import pack
from edgewise.codecs.feedback import feedback
from edgewise.codecs.ladder import ladder, pick
from edgewise.core import demand, keys
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.frame import LocalRule
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import HEAD, HEAD_BOUND, Pipeline, Stage, pipeline
from edgewise.core.vector import Spec
from edgewise.plan.budget import upload_budget
from edgewise.plan.catalogue import Catalogue, Entry, make
from edgewise.plan.ladder import RUNGS, remaining
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

    ``rungs`` names the rungs that a device may choose from, by number; empty where the codec is fixed.
    ``secagg`` and ``spend`` are None until secure aggregation and differential privacy are asked for.
    """

    recipe: Recipe
    run: str
    spec: Spec
    pipeline: Pipeline
    strategy: Strategy
    sampling: Sampling
    claims: tuple[str, ...]
    rungs: tuple[str, ...] = ()
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
        encoded = self.pipeline.encoded
        spaces = encoded.rungs or (encoded,)
        worst = max(16 * space.dim + space.universe + 16 * len(space.head) + 65536 for space in spaces)
        return min(worst, MESSAGE_LIMIT_BYTES)

    @property
    def upload_bytes(self) -> float:
        """Expected payload bytes of one contribution; of the largest rung where devices choose."""
        return pack.size_bytes(self.pipeline.encoded)

    def budget_bytes(self, elapsed_s: float, up_mbit: float) -> float:
        """What a device may upload that has spent ``elapsed_s`` of the round and has a link of ``up_mbit``
        (``plan.budget``); inf where the codec is fixed and the size with it."""
        if not self.rungs:
            return math.inf
        a = self.recipe.adaptive
        deadline_s = a.deadline_s or self.recipe.round.deadline_s
        return upload_budget(a.max_upload_mb * 1e6, deadline_s * (1.0 - a.slack), elapsed_s, up_mbit)

    def expected_bytes(self, elapsed_s: float, up_mbit: float) -> float:
        """Payload bytes of a contribution by such a device, announced before anyone trains."""
        if not self.rungs:
            return self.upload_bytes
        sizes = pack.rung_bytes(self.pipeline.encoded)
        return sizes[pick(self.budget_bytes(elapsed_s, up_mbit), sizes)]


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
    rungs: tuple[str, ...] = ()
    if recipe.codec == "adaptive":
        rungs, ending = _adaptive(recipe, spec, start, stages, catalogue)
        stages = [*stages, ending]
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
    return Plan(recipe, recipe.sha256(), spec, pipe, strategy, sampling, _claims(recipe, pipe, sampling), rungs)


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


@dataclass(frozen=True)
class Offer:
    """A rung for one recipe and model: its stages and the bytes of one contribution by it, its number included."""

    name: str
    stages: tuple[Stage, ...]
    size_bytes: float


def offers(recipe: Recipe, spec: Spec, before: Space, catalogue: Catalogue) -> list[Offer]:
    """The rungs that the recipe names (all where it names none), from the most bytes to the fewest; also those above
    ``adaptive.max_upload_mb``. ``before``: the space at the ladder.

    Raises RecipeError: E-NAME for a rung that does not exist, E-VALUE for one named twice.
    """
    known = {rung.name: rung for rung in RUNGS}
    names = recipe.adaptive.ladder or list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f'did you mean "{near[0]}"?' if near else f"the rungs are: {', '.join(known)}."
            raise RecipeError("E-NAME", f'adaptive.ladder: no rung is called "{name}".', hint)
    if len(set(names)) < len(names):
        raise RecipeError("E-VALUE", "adaptive.ladder names a rung twice.", "name each once.")
    left = remaining(spec, recipe.stage)
    found = []
    for name in names:
        stages = tuple(build_stages(known[name].stages, left, catalogue.stages))
        space = before
        for stage in stages:
            space = stage.infer(space)
        found.append(Offer(name, stages, 1 + pack.size_bytes(space)))  # a rung's number takes one byte
    return sorted(found, key=lambda offer: -offer.size_bytes)


def at_ladder(recipe: Recipe, start: Space, stages: Sequence[Stage]) -> Space:
    """The space between the recipe's stages and the ladder, as feedback shows it to what is inside."""
    for table in recipe.stage:
        if table.get("kind") == "feedback":
            raise CompositionError(
                "E-ORDER", 'codec = "adaptive" puts feedback around its ladder itself.', "leave out the feedback stage."
            )
    space = start
    for stage in stages:
        space = stage.infer(space)
    demand.real(space, "ladder")
    return space.but(l2=math.inf, linf=math.inf)


def _adaptive(
    recipe: Recipe, spec: Spec, start: Space, stages: Sequence[Stage], catalogue: Catalogue
) -> tuple[tuple[str, ...], Stage]:
    """The names of the rungs within ``adaptive.max_upload_mb``, and feedback around the ladder of them."""
    offered = offers(recipe, spec, at_ladder(recipe, start, stages), catalogue)
    limit = recipe.adaptive.max_upload_mb * 1e6
    fitting = [offer for offer in offered if offer.size_bytes <= limit]
    if not fitting:
        least = offered[-1]
        raise RecipeError(
            "E-RUNG",
            f'adaptive.max_upload_mb = {recipe.adaptive.max_upload_mb:g}, but the smallest rung, "{least.name}", '
            f"takes {least.size_bytes / 1e6:.3g} MB.",
            "raise adaptive.max_upload_mb, name smaller rungs in adaptive.ladder, or train less.",
        )
    return tuple(offer.name for offer in fitting), feedback([ladder([offer.stages for offer in fitting])])


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
    if pipe.encoded.rungs:
        claims.append("which rung a device chose tells the server roughly how fast its link and training were")
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
