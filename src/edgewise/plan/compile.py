"""Recipe -> Plan. Parts that must match travel together; bounds are derived, never typed."""

from __future__ import annotations

import math
from dataclasses import replace

from edgewise.codecs import pack
from edgewise.core import frame
from edgewise.core.errors import RecipeError
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import HEAD, HEAD_BOUND, Merge
from edgewise.core.vector import Spec
from edgewise.plan.adaptive import adaptive, sorting
from edgewise.plan.card_text import Taking
from edgewise.plan.catalogue import Catalogue, make
from edgewise.plan.claims import claims
from edgewise.plan.client_rules import check_pipelines, check_recipe
from edgewise.plan.downlink import downlink
from edgewise.plan.facts import FORMAT, Instance, PlanFacts, StatedNoise, decisive
from edgewise.plan.layout import Layout
from edgewise.plan.plan import MESSAGE_LIMIT_BYTES, Plan
from edgewise.plan.private import adjacency, private
from edgewise.plan.promise import Noiser, promised
from edgewise.plan.recipe import Recipe
from edgewise.plan.sampling import Sampling, sampled
from edgewise.plan.stages import build_stages, schedule
from edgewise.plan.strategy import strategy_of
from edgewise.plan.trust import check_read, corrupt_most
from edgewise.secagg import messages
from edgewise.secagg.merge import assured, check_sessions
from edgewise.strategies.base import Strategy


def compile(
    recipe: Recipe,
    spec: Spec,
    population: int,
    catalogue: Catalogue,
    noise: StatedNoise | None = None,
    instance: Instance | None = None,
) -> Plan:
    """Check and assemble a recipe for a model layout and a population.

    Args:
        noise: the run's, where its facts state it (``plan.acceptance``); else it is derived from the recipe.
        instance: which run of the recipe it is; None in a simulation.
    Raises:
        RecipeError: unknown parts or parameters, a cohort larger than the population (E-QUORUM).
        CompositionError: stages that do not compose soundly.
    """
    sampling = sampled(recipe, population)
    strategy = strategy_of(recipe, catalogue, spec, population)
    _check_directions(recipe, strategy, spec)
    layout = Layout(spec, strategy.client)
    names = (*(HEAD if recipe.metrics == "sum" else ()), *strategy.client.head)
    merge = make(catalogue.merges, "[merge]", recipe.merge, layout.sent)
    most = sampling.population if sampling.kind == "poisson" else sampling.invite
    promise = promised(recipe, hidden=merge.hides is not None)
    check_recipe(recipe, promise, strategy.client)
    hidden_ladder = recipe.codec == "adaptive" and merge.hides is not None
    sorted_into, least, corrupt = 1, max(1, sampling.minimum // merge.groups), 0
    check_read(recipe, merge)
    policy = None
    if merge.hides is not None:
        if not sampling.minimum:
            raise RecipeError(
                "E-COMBO",
                'privacy = "central_dp" with round.sampling = "poisson" releases every round, and a hidden sum is '
                "opened of a least number of devices only.",
                '[merge] kind = "sum", or round.sampling = "cyclic".',
            )
        corrupt = corrupt_most(recipe.trust, sampling, merge.groups)
        if hidden_ladder:
            sorted_into, least = sorting(recipe, merge, sampling.minimum, corrupt)
        policy = assured(merge, least, corrupt, recipe.trust.dropout_fraction, recipe.trust.server)
        if merge.hides.servers == 1:
            check_sessions(policy, least, -(-sampling.largest // merge.groups))
    start = Space(
        dim=layout.sent.dim,
        quorum=Quorum(least, -(-most // merge.groups), corrupt),
        head=names,
        head_l2=HEAD_BOUND * math.sqrt(len(names)),
        population=population,
        adjacency=adjacency(promise, sampling.kind),
    )
    tables = [{"kind": "factors"}, *recipe.stage] if recipe.trainable.kind == "rolora" else recipe.stage
    groups = schedule(tables, layout.sent, catalogue.stages)
    phases = [build_stages(tables, layout.sent, catalogue.stages, phase) for phase in range(max(1, len(groups)))]
    if len(phases) > 1 and sampling.groups > 1 and recipe.round.rounds < (needed := sampling.groups * len(phases)):
        raise RecipeError(
            "E-COMBO",
            f"{recipe.round.rounds} rounds of {sampling.groups} cohorts in turn end before each of the {len(phases)} "
            "parts of the model that take turns was trained by all of them.",
            f"play {needed} rounds or more, take larger cohorts, or train the parts together.",
        )
    rungs: tuple[str, ...] = ()
    if recipe.codec == "adaptive":
        if groups:
            raise RecipeError(
                "E-COMBO",
                'codec = "adaptive" with segments that take turns: the rungs would be others in every round.',
                'leave out cycle, or fix the codec: codec = "stages".',
            )
        rungs, endings = adaptive(recipe, layout.sent, start, phases[0], catalogue, hidden_ladder)
        phases = [[*phases[0], *ending] for ending in endings]
    _check_word(recipe, merge)
    posts = [make(catalogue.posts, f"[[post]] {i + 1}", table, layout.sent) for i, table in enumerate(recipe.post)]
    spend = None
    if promise.who_noises is not Noiser.NOBODY:
        more, spend = private(recipe, layout.sent, start, phases, _taking(sampling, recipe), promise, noise)
        posts += more
    pipes = tuple(pipeline(start, stages, merge, posts) for stages in phases)
    if spend is not None:
        pipes = tuple(replace(pipe, divisor=spend.divisor) for pipe in pipes)
    check_pipelines(recipe, strategy.client, pipes, hidden_ladder)
    upload = max(pack.size_bytes(pipe.encoded) for pipe in pipes)
    for what, size in (("the model's trainable vector", 4.0 * layout.given.dim), ("an upload", upload)):
        if size > MESSAGE_LIMIT_BYTES:
            raise RecipeError(
                "E-FRAME-SIZE", f"{what} has {size:.3g} bytes, one message holds {MESSAGE_LIMIT_BYTES}.",
                'train less: trainable.kind = "lora" or "layers".',
            )  # fmt: skip
    told = claims(recipe, promise, strategy.client, pipes, sampling.earns, spend, sorted_into)
    down = downlink(recipe, layout.given, catalogue)
    ways, pipes = (pipes, pipes[:1]) if hidden_ladder else ((), pipes)
    known = PlanFacts(
        format=FORMAT,
        recipe=decisive(recipe.resolved()),
        spec=spec.digest(),
        population=population,
        n_min=least,
        corrupt=corrupt,
        ring_bits=tuple(max(0, pipe.encoded.grid.modulus - 1).bit_length() for pipe in ways or pipes),
        noise=None if spend is None else StatedNoise(multiplier=spend.z, epsilon=spend.budget.epsilon),
        secagg=messages.PROTOCOL.decode(),
        wire=frame.VERSION,
        instance=instance,
    )
    return Plan(
        recipe=recipe,
        facts=known,
        layout=layout,
        pipelines=pipes,
        strategy=strategy,
        sampling=sampling,
        promise=promise,
        claims=told,
        groups=groups,
        rungs=rungs,
        downlink=down,
        spend=spend,
        ways=ways,
        policy=policy,
    )


def _taking(sampling: Sampling, recipe: Recipe) -> Taking:
    each = -(-recipe.round.rounds // sampling.groups)
    return Taking(sampling.kind, sampling.rate, sampling.expected, each, sampling.groups, sampling.earns)


def _check_word(recipe: Recipe, merge: Merge) -> None:
    """Raises RecipeError(E-COMBO) where the privacy word and the merge say different things."""
    kind = recipe.merge["kind"]
    if recipe.privacy == "none" and merge.hides is not None:
        what = f'privacy = "none", but [merge] {kind} hides single updates.'
        raise RecipeError("E-COMBO", what, 'write privacy = "hidden".')
    if recipe.privacy == "hidden" and merge.hides is None:
        what = f'privacy = "hidden", but with [merge] {kind} the server sees single updates.'
        raise RecipeError("E-COMBO", what, '[merge] kind = "secure_sum" (one server) or "shared_sum" (two).')


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
