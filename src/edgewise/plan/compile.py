"""Compile a recipe into a plan: choose the parts, fold their bounds, size the noise, and check that all compose.

    plan = compile(recipe, spec, population=100, catalogue=BUILT_IN)

A person writes no bound. Each bound, threshold and ring follows from the recipe, the layout and the population.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from edgewise.codecs.wire import pack
from edgewise.core import frame
from edgewise.core.errors import RecipeError
from edgewise.core.metric import Metrics
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Merge
from edgewise.core.vector import Spec
from edgewise.plan.broadcast import planned_downlink
from edgewise.plan.buffered import check as check_buffered
from edgewise.plan.catalogue import Catalogue, make
from edgewise.plan.chains import recipe_chains
from edgewise.plan.client_rules import check_pipelines, check_recipe, check_record_sums, check_root
from edgewise.plan.disclosure import plan_claims
from edgewise.plan.facts import FORMAT, Instance, PlanFacts, StatedNoise, decisive
from edgewise.plan.layout import VectorLayout
from edgewise.plan.mechanisms.base import Mechanism
from edgewise.plan.mechanisms.known import mechanism_of, recipe_promise
from edgewise.plan.metrics import recipe_metrics
from edgewise.plan.noise import with_mechanism
from edgewise.plan.plan import MESSAGE_LIMIT_BYTES, Plan
from edgewise.plan.pruning import check_planned_pruning as check_pruning
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.sampling import Sampling, recipe_sampling
from edgewise.plan.strategy import strategy_of
from edgewise.plan.sums import PlannedSums, check_privacy_word, planned_sums
from edgewise.plan.trust import planned_contributors
from edgewise.privacy.rules import refuse_drowning_noise
from edgewise.secagg import messages
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
        spec: layout of the model's trained parameters.
        population: number of devices that exist.
        catalogue: the parts that the recipe can name.
        noise: the noise that the run's facts state (``plan.acceptance``). None derives it from the recipe.
        instance: the run of the recipe, where a server runs it. None in a simulation.
    Returns:
        A plan whose parts compose. Equal arguments give equal facts on one kind of processor.
    Raises:
        RecipeError: for unknown parts or parameters, and with E-QUORUM for a cohort larger than the population.
        CompositionError: for stages that do not compose soundly.
    """
    sampling = recipe_sampling(recipe.round, population, recipe.buffer)
    strategy = strategy_of(recipe, catalogue, spec, population)
    _check_directions(recipe, strategy, spec)
    layout = VectorLayout(spec, strategy.client)
    merge = make(catalogue.merges, "[merge]", recipe.merge, layout.sent)
    mechanism = mechanism_of(recipe.privacy, recipe.dp)
    promise = recipe_promise(recipe.privacy, recipe.dp, hidden=merge.hides is not None)
    check_recipe(recipe, promise, strategy.client)
    check_record_sums(recipe, promise, strategy.client)
    check_root(recipe)
    sums = planned_sums(recipe, merge, sampling)
    metrics = recipe_metrics(recipe, promise, strategy.client, sampling.kind)
    start = _update_space(metrics, layout, merge, sampling, sums, mechanism)
    chains = recipe_chains(recipe, layout.sent, start, sampling, catalogue, promise.hidden)
    check_privacy_word(recipe, merge)
    posts = [make(catalogue.posts, f"[[post]] {i + 1}", table, layout.sent) for i, table in enumerate(recipe.post)]
    stages, spend = chains.stages, None
    if mechanism is not None:
        stages, more, spend = with_mechanism(recipe, layout.sent, start, stages, sampling, promise, mechanism, noise)
        posts += more
    divisor = spend.divisor if spend is not None else None
    pipes = tuple(replace(pipeline(start, chain, merge, posts), divisor=divisor) for chain in stages)
    if spend is not None and noise is None and recipe.dp.epsilon and promise.noises_sums_of_devices:
        refuse_drowning_noise(spend.z, sampling.expected, recipe.dp.epsilon, recipe.round.rounds)
    check_pipelines(recipe, strategy.client, pipes, sums.rungs is not None)
    check_buffered(recipe, sampling, strategy, pipes)
    check_pruning(recipe, spec, strategy, pipes, bool(chains.groups))
    _check_sizes(layout, pipes)
    facts = PlanFacts(
        format=FORMAT,
        recipe=decisive(recipe.resolved()),
        spec=spec.digest(),
        population=population,
        n_min=sums.least,
        corrupt=sums.corrupt,
        ring_bits=tuple(max(0, pipe.encoded.grid.modulus - 1).bit_length() for pipe in pipes),
        noise=None if spend is None else StatedNoise(multiplier=spend.z, epsilon=spend.budget.epsilon),
        secagg=messages.PROTOCOL.decode(),
        wire=frame.VERSION,
        instance=instance,
        packages=catalogue.packages,
    )
    by_rung = sums.rungs is not None
    return Plan(
        recipe=recipe,
        facts=facts,
        layout=layout,
        metrics=metrics,
        pipelines=pipes[:1] if by_rung else pipes,
        strategy=strategy,
        sampling=sampling,
        promise=promise,
        claims=plan_claims(recipe, promise, strategy.client, pipes, sampling.earns, spend, sums.rungs or 1),
        groups=chains.groups,
        rungs=chains.rungs,
        downlink=planned_downlink(recipe, layout.given, catalogue),
        spend=spend,
        rung_pipelines=pipes if by_rung else (),
        policy=sums.policy,
        contributors=planned_contributors(recipe.trust, population),
    )


def _update_space(
    metrics: Metrics,
    layout: VectorLayout,
    merge: Merge,
    sampling: Sampling,
    sums: PlannedSums,
    mechanism: Mechanism | None,
) -> Space:
    """Return the space of a trained update, before the first stage."""
    largest = sampling.population if sampling.kind == "poisson" else sampling.invite
    head = (*metrics.names, *layout.client.head)
    return Space(
        dim=layout.sent.dim,
        quorum=Quorum(sums.least, -(-largest // merge.groups), sums.corrupt),
        head=head,
        head_l2=metrics.bound * math.sqrt(len(head)),
        head_bound=metrics.bound,
        population=sampling.population,
        adjacency="zero_out" if mechanism is None else mechanism.adjacency(sampling.kind),
    )


def _check_sizes(layout: VectorLayout, pipes: Sequence[Pipeline]) -> None:
    """Check that one message can hold the model, and an upload. Raises RecipeError(E-FRAME-SIZE)."""
    upload = max(pack.size_bytes(pipe.encoded) for pipe in pipes)
    for what, size in (("the model's trainable vector", 4.0 * layout.given.dim), ("an upload", upload)):
        if size > MESSAGE_LIMIT_BYTES:
            raise RecipeError(
                "E-FRAME-SIZE", f"{what} has {size:.3g} bytes, one message holds {MESSAGE_LIMIT_BYTES}.",
                'train less: trainable.kind = "lora" or "layers".',
            )  # fmt: skip


def _check_directions(recipe: Recipe, strategy: Strategy, spec: Spec) -> None:
    """Check that the local training can move along the strategy's directions. Raises RecipeError(E-COMBO)."""
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
        raise RecipeError("E-COMBO", what, "build the trainer on learn.torch_task.TorchTrainer.")
