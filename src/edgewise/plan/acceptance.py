"""Check a run's facts on a device: compile the plan that follows from them, or refuse.

    plan = accept_facts(raw, signature, server, spec, OwnerFloor(epsilon=8.0, hidden=True), BUILT_IN)

A device does not trust the server with any number behind a promise. It compiles the plan from the facts and its own
layout, so rounds, steps, clips, rings and thresholds are its own. It derives the integers that the facts state, and
compares them. The server calibrated the noise, and the device checks the inequality that matters:

    epsilon(noise multiplier, all rounds) <= stated epsilon (1 + TOLERANCE)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

import msgspec

from edgewise.core.errors import RecipeError
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import Catalogue
from edgewise.plan.compile import compile
from edgewise.plan.facts import PlanFacts, parse, refused, signed
from edgewise.plan.frames import largest_upload
from edgewise.plan.plan import Plan
from edgewise.plan.recipe import recipe as recipes
from edgewise.plan.recipe.privacy import Privacy
from edgewise.secagg.params import Floor

TOLERANCE = 1e-3  # Relative. Two accountants or grids differ by less in one epsilon.


@dataclass(frozen=True, slots=True)
class OwnerFloor:
    """The least protection that a device's owner asks of every run.

    Attributes:
        epsilon: largest epsilon of a whole run, against a reader of everything that leaves the device; inf = any.
        device_unit: True where an epsilon must protect all text of the device, not single examples.
        hidden: True where secure aggregation must hide single updates from the server.
        local_steps: largest number of optimizer steps in a round; inf = any.
        upload_bytes: largest upload of a round; inf = any.
        secagg: requirements on every session of secure aggregation.
        delta: largest delta at which ``epsilon`` may hold. An epsilon at a larger one promises next to nothing.
        words: allowed values of ``privacy``; empty = any.
        clip_l2: largest L2 norm of an update, in model units, to which the plan must bound it before it leaves; inf =
            any.
        noise_multiplier: smallest noise multiplier of the noise behind an epsilon; 0 = any.
        cohort: smallest number of contributions to a sum, hidden or not, that a model is made of.
        models: allowed values of ``model.base``; empty = any.
        split: True where the model may be split, so that its other side sees activations and gradients of the text.
    """

    epsilon: float = inf
    device_unit: bool = False
    hidden: bool = False
    local_steps: float = inf
    upload_bytes: float = inf
    secagg: Floor = Floor()  # noqa: RUF009 (immutable)
    delta: float = 1e-5
    words: tuple[Privacy, ...] = ()
    clip_l2: float = inf
    noise_multiplier: float = 0.0
    cohort: int = 0
    models: tuple[str, ...] = ()
    split: bool = True


def accept_facts(
    raw: bytes, signature: bytes, server: bytes, spec: Spec, floor: OwnerFloor, catalogue: Catalogue
) -> Plan:
    """Verify a served run's facts and compile its plan.

    Args:
        raw: the facts as published.
        signature: the server's signature on them.
        server: the public key that this device was enrolled with.
        spec: the device's own layout of the trained parameters.
        floor: the least protection that the owner asks for.
        catalogue: the parts that this device has.
    Raises:
        DecodeError: E-FACTS for facts without this server's signature, of another version, or that contradict
            themselves.
        RecipeError: E-FLOOR for a run with less protection than the owner asks for, and as ``compile``.
        CompositionError: as ``compile``.
    """
    if not signed(server, signature, raw):
        raise refused("they are not signed by the server that this device was enrolled with")
    facts = parse(raw)
    instance = facts.instance
    if instance is None or instance.server != server.hex() or (len(instance.nonce), len(instance.roster)) != (64, 64):
        raise refused("they do not name an instance of a run of this server")
    plan = planned(facts, spec, catalogue)
    check_floor(plan, floor)
    return plan


def planned(facts: PlanFacts, spec: Spec, catalogue: Catalogue) -> Plan:
    """Compile the plan that follows from facts.

    Guarantees: the facts of the returned plan are the given ones, to the last digit.
    Raises:
        DecodeError: E-FACTS where the facts contradict themselves.
        RecipeError, CompositionError: as ``compile``.
    """
    if facts.spec != spec.digest():
        raise refused("they are for another model, or for other trained parameters of it, than this device has")
    recipe = recipes.from_plain(facts.settings(), "the run's facts")
    noise = facts.noise
    if noise is not None:
        if not all(0.0 < number < inf for number in (noise.multiplier, noise.epsilon)):
            raise refused("noise multiplier and epsilon are finite numbers above 0")
        for name, requested, stated in (
            ("epsilon", recipe.dp.epsilon, noise.epsilon),
            ("noise multiplier", recipe.dp.noise_multiplier, noise.multiplier),
        ):
            if requested and requested != stated:
                raise refused(f"they state the {name} {stated!r}, and their recipe gives {requested!r}")
    plan = compile(recipe, spec, facts.population, catalogue, noise, facts.instance)
    theirs, own = msgspec.to_builtins(facts), msgspec.to_builtins(plan.facts)
    for name, value in own.items():
        if theirs[name] != value:
            raise refused(f"they state {name} = {theirs[name]!r:.80}, and what follows from them is {value!r:.80}")
    if plan.spend is not None and noise is not None:
        spent = plan.spend.card.of_release or 0.0
        if not spent <= noise.epsilon * (1.0 + TOLERANCE):
            raise refused(f"their noise takes epsilon {spent:.4g} in all rounds, and they state {noise.epsilon:.4g}")
    return plan


def check_floor(plan: Plan, floor: OwnerFloor) -> None:
    """Check that a plan protects the device as its owner asks. Raises RecipeError(E-FLOOR)."""
    promise, card = plan.promise, None if plan.spend is None else plan.spend.card
    against = inf if card is None or card.against_server is None else card.against_server
    bound, multiplier = _largest_update(plan), 0.0 if plan.spend is None else plan.spend.z
    upload_bytes = largest_upload(plan) if isfinite(floor.upload_bytes) else 0.0
    check_stated_facts(floor, plan.facts)
    for required, met, what in (
        (floor.hidden, promise.hidden, "single updates are hidden from the server; here it sees them"),
        (
            floor.device_unit,
            promise.unit == "device",
            f"an epsilon is about all text of the device; here it is about {promise.unit or 'nothing'}",
        ),
        (
            isfinite(floor.epsilon),
            against <= floor.epsilon,
            f"epsilon against the server is {floor.epsilon:g} at most; here it is {against:.4g}",
        ),
        (
            isfinite(floor.epsilon),
            plan.recipe.dp.delta <= floor.delta,
            f"an epsilon holds at delta = {floor.delta:g} or less; here it is at {plan.recipe.dp.delta:g}",
        ),
        (
            floor.noise_multiplier > 0.0,
            multiplier >= floor.noise_multiplier,
            f"the noise multiplier is {floor.noise_multiplier:g} at least; here it is {multiplier:.4g}",
        ),
        (
            isfinite(floor.clip_l2),
            bound <= floor.clip_l2,
            f"an update has an L2 norm of {floor.clip_l2:g} at most; here it has {bound:.4g}",
        ),
        (
            floor.cohort > 0,
            plan.facts.n_min >= floor.cohort,
            f"a model is made of {floor.cohort} contributions or more; here it may be of {plan.facts.n_min}",
        ),
        (
            isfinite(floor.local_steps),
            plan.rule(0).steps <= floor.local_steps,
            f"a round has {floor.local_steps:g} local steps at most; here it has {plan.rule(0).steps}",
        ),
        (
            isfinite(floor.upload_bytes),
            upload_bytes <= floor.upload_bytes,
            f"an upload has {floor.upload_bytes:.4g} bytes at most; here it has {upload_bytes:.4g}",
        ),
        (
            promise.hidden,
            all(floor.secagg.allows(params) for params in plan.sessions),
            f"a hidden sum is over {floor.secagg.n_min} devices or more, of which a share of {floor.secagg.corrupt:g} "
            f"may be corrupt, against a server that is {floor.secagg.server}; here it is over {plan.facts.n_min}",
        ),
    ):
        if required and not met:
            raise _below_owner_floor(what)


def check_stated_facts(floor: OwnerFloor, facts: PlanFacts) -> None:
    """Check what facts state by themselves, before anything is downloaded for them: model, word and cut.

    Raises RecipeError(E-FLOOR).
    """
    tables = facts.settings()
    base, word = str(tables["model"]["base"]), str(tables["privacy"])
    if floor.models and base not in floor.models:
        raise _below_owner_floor(f"the model is one of {', '.join(floor.models)}; here it is {base}")
    if floor.words and word not in floor.words:
        raise _below_owner_floor(f'privacy is one of {", ".join(floor.words)}; here it is "{word}"')
    if not floor.split and (tables.get("split") or {}).get("cut"):
        what = "no activations of its text leave; here the model is split, and whoever has the rest sees them, from "
        raise _below_owner_floor(f"{what}which trained attacks recover text")


def _below_owner_floor(what: str) -> RecipeError:
    """Make the error for a run below what the device's owner asks."""
    return RecipeError(
        "E-FLOOR", f"the owner of this device asks that {what}.", "leave the run, or lower what the owner asks."
    )


def _largest_update(plan: Plan) -> float:
    """Return the largest L2 norm of an update as it enters the sum. It is inf where a pipeline has no bound."""
    return max(pipe.encoded.l2 for pipe in (*plan.pipelines, *plan.rung_pipelines))
