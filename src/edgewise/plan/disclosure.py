"""Describe in sentences what each party of a run learns. Only data behind an epsilon is called private.

plan_claims(...)               # sentences for a plan, the most important first
privacy_facts(plan)       # the same facts as plain JSON, for check and report
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgewise.core.pipeline import Pipeline
from edgewise.core.space import ByMasks, ByShares, Hiding
from edgewise.core.stage import BELOW
from edgewise.plan.noise import PlannedSpend
from edgewise.plan.plan import Plan
from edgewise.plan.promise import Noiser, Promise
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.split_part import split_claims, split_witnesses
from edgewise.plan.trust import corrupt_existing
from edgewise.privacy import card
from edgewise.strategies.client import Client


def plan_claims(
    recipe: Recipe,
    promise: Promise,
    client: Client,
    pipes: Sequence[Pipeline],
    earns: str,
    spend: PlannedSpend | None,
    sorted_into: int = 1,
) -> tuple[str, ...]:
    """Write the claims of a plan about privacy, the most important first.

    Args:
        pipes: the update pipelines, one per phase or rung.
        earns: effect of the sampling on privacy, in words (``Sampling.earns``).
        spend: the privacy cost. None without an epsilon.
        sorted_into: largest number of groups of one rung, where a sum hides single updates.
    """
    pipe = max(pipes, key=lambda p: p.total.sensitivity)
    hides, noisy = pipe.merge.hides, spend is not None
    visible = hides is None
    sentences = [_who_sees_updates(promise, pipe, sorted_into), *split_claims(recipe, spend is not None)]
    if not visible:
        sentences.append(_honest_assumption(recipe, pipe))
    if spend is not None:
        c = spend.card
        sentences.append(c.summary)
        sentences.append(_promise_against("the server", c.against_server, c))
        sentences.append(_promise_against("readers of the models", c.of_release, c))
        sentences.append(f"neighbouring data sets are those in which {c.adjacency}")
        sentences.append(f"the budget is {card.privacy_budget_words(spend.budget.epsilon)}")
    elif not visible:
        sentences.append("the sum has no noise, so no epsilon bounds what it reveals about one device")
        sentences.append(
            f"a server that lies can send one model in up to {recipe.round.rounds} rounds to cohorts that differ by "
            "one device, and subtract the sums"
        )
    shown = f", but for {n} held-out texts that the report prints" if (n := recipe.report.samples) else ""
    staying = (
        "raw text and codec memory never leave" if any(p.encoded.memory for p in pipes) else "raw text never leaves"
    )
    shown += ", but for the tokens that go to the rest of the model as labels" if recipe.split.shows_labels else ""
    sentences.append(f"{staying} a device{shown}")
    for stays in filter(None, (recipe.personal.stays, recipe.drift.stays)):
        sentences.append(f"{stays} stays on each device, and no message can name it")
    sentences += filter(None, (recipe.distill.says, recipe.prune.says))
    sentences.append(earns)
    sentences.append(_who_sees_metrics(recipe, visible, promise))
    if client.head:
        seen = "are visible to the server beside a device's update" if visible else "leave devices only as a sum"
        sentences.append(
            f"{recipe.strategy['kind']} asks devices for {', '.join(client.head)} as exact scalars, which {seen}"
        )
    if recipe.trainable.unequal and not visible:
        ranks, least = recipe.trainable.levels, pipe.spaces[0].quorum.n_min
        few = f"{least * recipe.trainable.shares[ranks[-1]]:.3g} of {least}"
        sentences.append(
            f"columns of the adapters above {ranks[0]} are sums over the devices of higher rank alone, and the last "
            f"columns of the smallest sum have some {few} devices"
        )
        sentences.append("the public seed decides which device has which rank")
    if recipe.trainable.block_shares:
        sentences += _who_sees_depths(recipe, pipe.spaces[0].quorum.n_min, visible, noisy)
    if recipe.codec == "adaptive":
        fast = "its link and training were" if visible and not promise.noises_steps else "its link is"
        sentences.append(f"the rung that a device chose tells the server roughly how fast {fast}")
    if recipe.eval.on_devices:
        sentences.append("the mean of the devices' held-out losses leaves them as train losses do")
    chosen = ", and they decide when the run ends, or which model counts" if recipe.round.chooses else ""
    held_out = "the evaluations of a simulation collect held-out losses of single devices"
    sentences.append(held_out + (", which no epsilon covers" if noisy else chosen))
    if recipe.training.local_epochs:
        sentences.append("how long a device trains tells the server roughly how much text it holds (local_epochs)")
    if not visible:
        sentences.append("the server sees who takes part, when, and how many bytes each device sends")
    clips = " clips" if BELOW in pipe.encoded.head else ""
    if math.isfinite(pipe.total.sensitivity):
        moved = f"moves the summed update by at most {pipe.total.sensitivity:.4g}{clips} (L2)"
        sentences.append(
            f"one device {moved}" if visible else f"an honest device {moved}, and a corrupt one sends anything"
        )
    elif hides is not None and hides.groups > 1:
        f = (hides.minimum - 1) // 2
        sentences.append(
            f"up to {f} devices of a cohort may send anything, and the mean stays within that of the other groups"
        )
    elif not noisy:
        sentences.append("one device can move the sum without limit (no clip)")
    if pipe.total.noise_std:
        stds = sorted({f"{p.total.noise_std:.4g}" for p in pipes}, key=float)
        sentences.append(
            f"the sum has noise of std {' or '.join(stds)}{clips}" + ("" if noisy else ", and no epsilon is derived")
        )
    if noisy:
        sentences.append(card.ADD_UP)
        sentences.append(
            "in a simulation all noise follows from the recipe, its seed and the data, and a person who knows or "
            "guesses them can remove it"
        )
        sentences.append("a run that is played again has the same noise, and another run has its own")
    return tuple(sentences)


def _who_sees_depths(recipe: Recipe, least: int, visible: bool, noisy: bool) -> list[str]:
    """Say what the number of blocks that a device trains reveals."""
    section, sentences = recipe.trainable, []
    by_memory = section.blocks_by == "memory"
    if visible:
        shown = "an update's zeros show the server how many blocks its device trained"
        sentences.append(shown + (", and so roughly its limit of memory" if by_memory else ""))
    else:
        few = f"{least * section.block_shares[str(section.last_blocks)]:.3g} of {least}"
        text = f"blocks before the last {section.depths[0]} are sums over the devices that train more, and the first "
        sentences.append(f"{text}blocks of the smallest sum have some {few} devices")
    if not by_memory:
        sentences.append("the public seed decides which device trains how many blocks")
    elif not visible or noisy:
        kept = "the mean of a block is too small or too large" if noisy else "a block is hidden among fewer"
        sentences.append(f"devices choose their blocks by memory; where the fleet is not as block_shares say, {kept}")
    return sentences


def _promise_against(reader: str, epsilon: float | None, c: card.PrivacyCard) -> str:
    """Write the promise of a run against one reader."""
    if epsilon is None or not math.isfinite(epsilon):
        return f"nothing is promised against {reader}"
    return f"the promise against {reader} is {card.promise_words(epsilon, c.delta)}, for one {c.unit}"


def _who_sees_updates(promise: Promise, pipe: Pipeline, sorted_into: int) -> str:
    """Say who sees the updates of single devices."""
    if (hides := pipe.merge.hides) is not None:
        text = hides.says
        least = pipe.encoded.quorum.n_min
        if sorted_into > 1:
            text += f", and it sees sums of at most {sorted_into} groups of like links, each of {least} or more"
        if pipe.merge.groups > 1:
            text += f", and it sees the sums of {pipe.merge.groups} random groups, each of {least} or more"
        return text
    word = f'privacy = "{promise.word}"'
    if promise.noised_before_leaving:
        return f"the server sees every device's update, with the noise that the device added ({word})"
    promised = "nothing is promised about privacy against it" if promise.who_noises is Noiser.SERVER else None
    return f"the server sees every device's update, and {promised or 'nothing is promised about privacy'} ({word})"


def _honest_assumption(recipe: Recipe, pipe: Pipeline) -> str:
    """State the number of honest devices that hidden sums rely on."""
    space, trust = pipe.encoded, recipe.trust
    assert space.population is not None  # A plan knows its devices.
    exist = corrupt_existing(trust, space.population)
    text = f"this holds while at most {exist:,} of the {space.population:,} devices are corrupt "
    if trust.cohorts == "verified":
        return text + (
            f"(up to {space.quorum.corrupt:,} in a sum, but for odds of 2^-40 in a run) and were chosen before its "
            "cohorts are drawn, which devices verify"
        )
    if trust.server == "malicious":
        return text + f"(up to {space.quorum.corrupt:,} in a sum), whichever of them the server invites"
    return text + f"and the server draws cohorts as it says (then at most {space.quorum.corrupt:,} in a sum)"


def _who_sees_metrics(recipe: Recipe, visible: bool, promise: Promise) -> str:
    """Say who sees metrics of single devices."""
    own = ", ".join(metric.name for metric in recipe.metric)
    names = [*(["train losses"] if recipe.metrics == "sum" else []), *([own] if own else [])]
    if promise.who_noises is not Noiser.NOBODY and (names or recipe.eval.on_devices):
        each = " and ".join([*names, *(["held-out losses"] if recipe.eval.on_devices else [])])
        if not visible:
            return f"{each} leave devices only as a sum, and one noise covers them and the update"
        if promise.noised_before_leaving:
            return f"the server sees each device's {each} with noise: the device's own, which covers the update too"
        return f"the server sees each device's {each}, and one noise covers them and the update"
    if own:
        seen = "are visible to the server beside its update" if visible else "leave devices only as a sum"
        return f"each device's {' and '.join(names)}, and its weight if a stage weighs, {seen}"
    if recipe.metrics == "none":
        bit = ", and so does a bit that says if the update is below the clip" if recipe.dp.adaptive_clip else ""
        return f"no train losses leave devices, but the weight of an update does if a stage weighs{bit}"
    if visible:
        return "each device's train losses and weight are visible to the server beside its update"
    return "train losses and weights leave devices only as a sum"


def plan_witnesses(
    promise: Promise, hides: Hiding | None, spend: PlannedSpend | None, groups: int = 1
) -> list[dict[str, str]]:
    """List each party's view of a round: ``who``, single ``updates``, the ``sum``, and what is ``promised``.

    Args:
        hides: the means that hide updates. None where the server sees each.
        groups: number of sums of a round.
    """
    c = spend.card if spend is not None else None
    server = card.promise_words(c.against_server, c.delta) if c is not None else "nothing is promised"
    reader = card.promise_words(c.of_release, c.delta) if c is not None else "nothing is promised"
    if c is None and hides is not None:
        server, reader = "sums only, no epsilon", "no epsilon"
    noisy = {Noiser.NOBODY: "as it is", Noiser.SERVER: "before noise"}
    noised = noisy.get(promise.who_noises, "with noise") + (f", of each of up to {groups} groups" if groups > 1 else "")
    each = "each, with its noise" if promise.noised_before_leaving else "each"
    match hides:
        case None:
            rows = [{"who": "the server", "updates": each, "sum": noised, "promised": server}]
        case ByMasks():
            rows = [{"who": "the server", "updates": "hidden", "sum": noised, "promised": server}]
        case ByShares():
            both = "each" + (", with its share of the noise" if promise.who_noises is Noiser.COHORT else "")
            rows = [
                {"who": "the server (leader)", "updates": "one share", "sum": noised, "promised": server},
                {"who": "the gateway (helper)", "updates": "one share", "sum": "hidden", "promised": server},
                {"who": "both together", "updates": both, "sum": noised, "promised": "nothing is promised"},
            ]
    rows.append({"who": "other devices", "updates": "hidden", "sum": "what the models show", "promised": reader})
    rows.append(
        {"who": "readers of the models", "updates": "hidden", "sum": "what the models show", "promised": reader}
    )
    rows.append(
        {"who": "the network", "updates": "who, when, how many bytes", "sum": "hidden", "promised": "needs TLS outside"}
    )
    return rows


def privacy_facts(plan: Plan) -> dict[str, Any]:
    """Return a plan's privacy as plain JSON: ``word``, ``servers``, ``card`` (None without epsilon) and ``seen``."""
    hides = plan.hides
    groups = plan.most_rung_groups if plan.rung_pipelines else hides.groups if hides is not None else 1
    return {
        "word": plan.promise.word,
        "servers": hides.servers if hides is not None else 0,
        "card": None if plan.spend is None else plan.spend.card.to_plain(),
        "seen": split_witnesses(plan.recipe, plan_witnesses(plan.promise, hides, plan.spend, groups)),
    }
