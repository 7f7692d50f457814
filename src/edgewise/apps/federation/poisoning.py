"""Audit of a recipe against dishonest devices, for ``edgewise audit --poison``.

Each attack of ``learn.attacks.poison`` is played in the simulator under each defence, with each share of liars, on each
skew of the text (``learn.text.redealt``). The defences:

    recipe       the recipe as it is
    sum          the same training with a plain sum, without stages or privacy
    RULE         the same with ``robust_mean`` and a rule: median, trimmed_mean, geometric_median, krum, multi_krum
    nnm+RULE     the same after means of nearest updates, and arc+RULE after the longest updates are cut

A rule by name is told the number of liars in a round, rounded. So the table shows what an attack does, what each
defence leaves of it, and what a defence costs where nobody lies.

    found = play_poisonings(recipe, Path("recipes"), shares=(0.1, 0.2, 0.3), skews=("iid", "sorted"))
    found["rows"][0]["perplexity"]
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from edgewise.apps.audit.epsilon import Step
from edgewise.apps.federation import poison_page
from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.core.errors import RecipeError
from edgewise.core.training import DeviceId
from edgewise.drivers.storage import folder
from edgewise.merges.robust import RuleName
from edgewise.plan.catalogue import Extension, with_extensions
from edgewise.plan.compile import compile
from edgewise.plan.objects import Objects
from edgewise.plan.participants import participants
from edgewise.plan.recipe.recipe import Recipe, from_plain

MOST_ROUNDS, QUICK_ROUNDS = 10, 3
HARM = 1.2  # An attack that worsens the perplexity by more than a fifth does harm.
OPENED = 0.5  # So does a trigger after which the model names half of the answer.
SAME = ("seed", "model", "data", "trainable", "training", "strategy")  # what other defences share with the recipe
RULES: tuple[str, ...] = get_args(RuleName)
DEFENCES = ("sum", "recipe", *RULES, *(f"{before}+{rule}" for before in ("nnm", "arc") for rule in RULES))
USUAL = ("sum", "recipe")


@dataclass(frozen=True)
class PoisonSetting:
    """One column of plays: a defence, the text it is played on, and the devices that lie."""

    defence: str
    skew: str
    share: float
    liars: tuple[DeviceId, ...]
    recipe: Recipe


@dataclass(frozen=True)
class Played:
    """The end of a play: the last evaluation of the model, and the share of the secret answer that it names."""

    last: events.Evaluated
    trigger: float


def play_poisonings(
    recipe: Recipe,
    recipe_dir: Path,
    out: Path | None = None,
    shares: Sequence[float] = (0.2,),
    quick: bool = False,
    step: Step | None = None,
    extensions: Sequence[str] = (),
    attacks: Sequence[str] = (),
    defences: Sequence[str] = USUAL,
    skews: Sequence[str] = ("own",),
) -> dict[str, Any]:
    """Play attacks against defences, for each share of liars and each skew of the text.

    Args:
        recipe_dir: folder of relative paths.
        out: folder for ``poison.json`` and ``poison.html``; None writes no files.
        shares: of the devices that lie, each above 0 and below 0.5. At least one lies.
        quick: play 3 rounds instead of the recipe's, of which at most 10 are played.
        step: called with (name, done, total).
        extensions: importable modules with parts of the recipe.
        attacks: names of those to play. Empty plays all. "none" is always played, and harm is measured against it.
        defences: names of the module's list.
        skews: names of ``learn.text.redealt``.
    Returns:
        Plain JSON. ``rows`` has one row for each attack, defence, share and skew: ``perplexity`` on the held-out text
        of the honest devices, ``worse`` as a factor of that without an attack, ``trigger`` (the share of the answer
        that the model names), and ``harm``. ``costs`` has each defence's perplexity without liars as a factor of that
        of the plain sum, where both are played. A run of fewer rounds has the noise of as few.
    Raises:
        RecipeError: E-VALUE for a wrong share or name, E-COMBO for recipes that split the model, keep a part on devices
            or distill on the server.
        CompositionError: refusals of ``compile``, of all defences before the first play. A rule that needs more devices
            than a round may have is E-BYZANTINE.
        StoreError: E-FOLDER if ``out`` holds files and edgewise did not make it.
    """
    from edgewise.learn.attacks import poison  # imports torch
    from edgewise.learn.text.redealt import SKEWS

    for share in shares:
        if not 0.0 < share < 0.5:
            raise RecipeError("E-VALUE", f"{share:g} of the devices cannot lie in an audit.", "give a share below 0.5.")
    for kind, given, known in (
        ("attack", attacks, poison.ATTACKS), ("defence", defences, DEFENCES), ("skew", skews, SKEWS)
    ):  # fmt: skip
        for name in given:
            if name not in known:
                raise RecipeError("E-VALUE", f"no {kind} is called {name!r:.40}.", f"one of: {', '.join(known)}.")
    if recipe.split.used or recipe.distill.active or recipe.personal.method != "none":
        what = "an audit of dishonest devices plays whole models, without [split], [distill] or [personal]."
        raise RecipeError("E-COMBO", what, "leave these sections out.")
    if out is not None:
        folder.claim(out)
    names = [a for a in poison.ATTACKS if a == "none" or not attacks or a in attacks]
    rounds = min(recipe.round.rounds, QUICK_ROUNDS if quick else MOST_ROUNDS)
    devices, settings = _settings(recipe, recipe_dir, rounds, shares, defences, skews, extensions)
    rows = list(_rows(settings, names, recipe_dir, extensions, step or (lambda *_: None)))
    found = {
        "recipe": recipe.name, "rounds": rounds, "devices": devices, "rows": rows, "costs": _costs(rows),
    }  # fmt: skip
    if out is not None:
        (out / "poison.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
        (out / "poison.html").write_text(poison_page.page(found), encoding="utf-8")
    return found


def _settings(
    recipe: Recipe,
    recipe_dir: Path,
    rounds: int,
    shares: Sequence[float],
    defences: Sequence[str],
    skews: Sequence[str],
    extensions: Sequence[str],
) -> tuple[int, list[PoisonSetting]]:
    """Return the number of devices, and all settings. Each is compiled, so that none is refused after hours of play."""
    from edgewise.learn.text import trainer as text

    with tempfile.TemporaryDirectory(prefix="edgewise-poison-") as scratch:
        trainer = text.make(recipe, recipe_dir, Path(scratch))
        devices, spec = list(trainer.devices()), trainer.spec
    catalogue, settings = with_extensions(extensions), []
    for share in dict.fromkeys(shares):
        liars = tuple(devices[: max(1, round(share * len(devices)))])
        for defence in dict.fromkeys(defences):
            made = _defended(recipe, defence, rounds, len(liars) / len(devices), len(devices))
            compile(made, spec, len(participants(made, devices).seen), catalogue)
            settings += [PoisonSetting(defence, skew, share, liars, made) for skew in dict.fromkeys(skews)]
    return len(devices), settings


def _defended(recipe: Recipe, defence: str, rounds: int, share: float, devices: int) -> Recipe:
    """Make the recipe of a defence, for some rounds with one evaluation at the end."""
    plain = recipe.resolved()
    changes: dict[str, Any] = {
        "eval": {**plain.get("eval", {}), "every": rounds},
        "compare": {"local_only": False, "centralised": False},
        "simulation": {**plain.get("simulation", {}), "engine": "inproc"},
        "round": {**plain["round"], "rounds": rounds},
    }
    if defence == "recipe":
        return from_plain({k: v for k, v in plain.items() if k != "report"} | changes)
    common = {k: plain[k] for k in SAME if k in plain}
    merge: dict[str, Any] = {"kind": "sum"}
    if defence != "sum":
        before, _, rule = defence.rpartition("+")
        wanted = recipe.round.cohort or devices
        byzantine = max(1, round(share * wanted))
        merge = {"kind": "robust_mean", "byzantine": byzantine, "rule": rule, "before": before or "none"}
        changes["round"]["minimum"] = 1.0  # No device is lost in these plays.
    return from_plain({**common, **changes, "name": recipe.name, "privacy": "none", "merge": merge, "stage": []})


def _rows(
    settings: Sequence[PoisonSetting], attacks: Sequence[str], recipe_dir: Path, extensions: Sequence[str], say: Step
) -> Iterator[dict[str, Any]]:
    """Play all attacks in all settings. Without liars, a recipe on one skew is played once for all shares."""
    honest_plays: dict[tuple[str, str], Played] = {}
    for at, setting in enumerate(settings):
        key, reference = (setting.skew, json.dumps(setting.recipe.resolved(), sort_keys=True, default=str)), 0.0
        for number, attack in enumerate(attacks):
            say(f"{attack}, {setting.defence}", at * len(attacks) + number, len(settings) * len(attacks))
            known = honest_plays.get(key) if attack == "none" else None
            played = known or _play(setting, attack, recipe_dir, extensions)
            if attack == "none":
                honest_plays[key] = played
            perplexity = _perplexity(played.last, setting.liars)
            reference = reference or perplexity
            worse = perplexity / reference
            yield {
                "attack": attack, "defence": setting.defence, "skew": setting.skew, "share": setting.share,
                "liars": len(setting.liars), "perplexity": perplexity, "worse": worse, "trigger": played.trigger,
                "harm": worse > HARM or played.trigger >= OPENED,
            }  # fmt: skip


def _perplexity(last: events.Evaluated, liars: Sequence[DeviceId]) -> float:
    """Return the perplexity of the held-out text of the honest devices."""
    honest = [d for d in last.nll if d not in liars]
    return math.exp(sum(last.nll[d] for d in honest) / max(1, sum(last.tokens[d] for d in honest)))


def _play(setting: PoisonSetting, attack: Any, recipe_dir: Path, extensions: Sequence[str]) -> Played:
    """Play a run in which devices lie."""
    from edgewise.learn.attacks import poison
    from edgewise.learn.text import trainer as text

    seen: list[events.Evaluated] = []

    def sink(event: events.AnyEvent) -> None:
        if isinstance(event, events.Evaluated) and event.model == "federated":
            seen.append(event)

    with tempfile.TemporaryDirectory(prefix="edgewise-poison-") as scratch:
        skew: Any = setting.skew
        inner = text.make(setting.recipe, recipe_dir, Path(scratch) / "cache", skew=skew)
        lying = poison.PoisonedTrainer(inner, attack, setting.liars, len(inner.devices()))
        objects = Objects(Extension(trainer=lambda _: lying), local=("the trainer with liars",))
        simulation.run(
            setting.recipe, out=Path(scratch) / "run", recipe_dir=recipe_dir, sinks=[sink], report=False,
            objects=objects, extensions=extensions,
        )  # fmt: skip
        return Played(seen[-1], lying.answered())


def _costs(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what each defence costs where nobody lies, as a factor of the plain sum's perplexity."""
    honest = [r for r in rows if r["attack"] == "none"]
    sums = {(r["skew"], r["share"]): r["perplexity"] for r in honest if r["defence"] == "sum"}
    return [
        {**{k: r[k] for k in ("defence", "skew", "share")}, "factor": r["perplexity"] / sums[r["skew"], r["share"]]}
        for r in honest
        if r["defence"] != "sum" and (r["skew"], r["share"]) in sums
    ]


def show_poisonings(console: Any, found: Mapping[str, Any]) -> None:
    """Print what ``play_poisonings`` found: a table for each share of liars and skew of the text."""
    from rich import box
    from rich.table import Table

    for title, rows in poison_page.tables(found):
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
        for i, head in enumerate(poison_page.HEADS):
            table.add_column(head, justify="right" if 2 <= i < 5 else "left")
        for row in rows:
            table.add_row(*poison_page.cells(row))
        console.print(table)
    for sentence in poison_page.costs(found):
        console.print(sentence)
    console.print(poison_page.NOTE)
