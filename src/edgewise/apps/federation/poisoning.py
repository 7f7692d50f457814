"""Audit of a recipe against dishonest devices, for ``edgewise audit --poison``.

Every attack of ``learn.attacks.poison`` is played in the simulator twice: against the recipe, and against the same
training with a plain sum, without stages or privacy. So the table shows what an attack does, and what the recipe's
defence leaves of it.

    found = examine(recipe, Path("recipes"), share=0.2, rounds=10)
    found["rows"][0]["perplexity"]
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgewise.apps.audit.epsilon import Step
from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.core.errors import RecipeError
from edgewise.drivers.storage import folder
from edgewise.plan.catalogue import Extension
from edgewise.plan.objects import Objects
from edgewise.plan.recipe.recipe import Recipe, from_plain

MOST_ROUNDS, QUICK_ROUNDS = 10, 3
HARM = 1.2  # An attack that worsens the perplexity by more than a fifth does harm.
OPENED = 0.5  # So does a trigger after which the model names half of the answer.
SAME = ("seed", "model", "data", "trainable", "training", "strategy")  # what the plain sum has in common


def examine(
    recipe: Recipe,
    recipe_dir: Path,
    out: Path | None = None,
    share: float = 0.2,
    quick: bool = False,
    step: Step | None = None,
    extensions: Sequence[str] = (),
    attacks: Sequence[str] = (),
) -> dict[str, Any]:
    """Play all attacks against a recipe and against a plain sum.

    Args:
        recipe_dir: folder of relative paths.
        out: folder for ``poison.json``; None writes no file.
        share: of the devices that lie, above 0 and below 0.5. At least one lies.
        quick: play 3 rounds instead of the recipe's, of which at most 10 are played.
        step: called with (name, done, total).
        extensions: importable modules with parts of the recipe.
        attacks: names of those to play (``learn.attacks.poison``). Empty plays all. Harm is measured against "none".
    Returns:
        Plain JSON. ``rows`` has one row for each attack and merge: ``perplexity`` on the held-out text of the honest
        devices, ``worse`` as a factor of that without an attack, ``trigger`` (the share of the answer that the model
        names), and ``harm``. Without differential privacy's noise of all rounds, a shorter run has less noise.
    Raises:
        RecipeError: E-VALUE for a wrong share, E-COMBO for recipes that split the model, keep a part on devices or
            distill on the server; refusals of ``compile``.
        StoreError: E-FOLDER if ``out`` holds files and edgewise did not make it.
    """
    from edgewise.learn.attacks import poison  # imports torch
    from edgewise.learn.text import trainer as text

    if not 0.0 < share < 0.5:
        raise RecipeError("E-VALUE", f"{share:g} of the devices cannot lie in an audit.", "give a share below 0.5.")
    if recipe.split.used or recipe.distill.active or recipe.personal.method != "none":
        what = "an audit of dishonest devices plays whole models, without [split], [distill] or [personal]."
        raise RecipeError("E-COMBO", what, "leave these sections out.")
    if out is not None:
        folder.claim(out)
    names = [a for a in poison.ATTACKS if a == "none" or not attacks or a in attacks]
    say, rows = step or (lambda *_: None), []
    count = min(recipe.round.rounds, QUICK_ROUNDS if quick else MOST_ROUNDS)
    plays = list(_recipes(recipe, count).items())
    liars: list[str] = []
    for at, (merge, made) in enumerate(plays):
        honest_perplexity = 0.0
        for number, attack in enumerate(names):
            say(f"{attack}, {merge}", at * len(names) + number, len(plays) * len(names))
            with tempfile.TemporaryDirectory(prefix="edgewise-poison-") as scratch:
                inner = text.make(made, recipe_dir, Path(scratch) / "cache")
                devices = list(inner.devices())
                liars = devices[: max(1, round(share * len(devices)))]
                lying = poison.PoisonedTrainer(inner, attack, liars, len(devices))
                last = _played(made, recipe_dir, Path(scratch) / "run", lying, extensions)
            honest = [d for d in last.nll if d not in liars]
            perplexity = math.exp(sum(last.nll[d] for d in honest) / max(1, sum(last.tokens[d] for d in honest)))
            honest_perplexity = honest_perplexity or perplexity
            worse, trigger = perplexity / honest_perplexity, lying.answered()
            rows.append({
                "attack": attack, "merge": merge, "perplexity": perplexity, "worse": worse, "trigger": trigger,
                "harm": worse > HARM or trigger >= OPENED,
            })  # fmt: skip
    found = {"recipe": recipe.name, "rounds": count, "devices": len(devices), "liars": len(liars), "rows": rows}
    if out is not None:
        (out / "poison.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    return found


def _recipes(recipe: Recipe, rounds: int) -> dict[str, Recipe]:
    """Make the recipe and its plain sum, both for ``rounds`` rounds with one evaluation at the end."""
    plain = recipe.resolved()
    changes: dict[str, Any] = {
        "eval": {**plain.get("eval", {}), "every": rounds},
        "compare": {"local_only": False, "centralised": False},
        "simulation": {**plain.get("simulation", {}), "engine": "inproc"},
        "round": {**plain["round"], "rounds": rounds},
    }
    defended = {k: v for k, v in plain.items() if k != "report"} | changes
    common = {k: plain[k] for k in SAME if k in plain}
    bare = {**common, **changes, "name": recipe.name, "privacy": "none", "merge": {"kind": "sum"}, "stage": []}
    return {"plain sum": from_plain(bare), "this recipe": from_plain(defended)}


def _played(recipe: Recipe, recipe_dir: Path, out: Path, trainer: Any, extensions: Sequence[str]) -> events.Evaluated:
    """Play a run with a trainer, and return its last evaluation of the federated model."""
    seen: list[events.Evaluated] = []

    def sink(event: events.AnyEvent) -> None:
        if isinstance(event, events.Evaluated) and event.model == "federated":
            seen.append(event)

    objects = Objects(Extension(trainer=lambda _: trainer), local=("the trainer with liars",))
    simulation.run(
        recipe, out=out, recipe_dir=recipe_dir, sinks=[sink], report=False, objects=objects, extensions=extensions
    )
    return seen[-1]


def show(console: Any, found: Mapping[str, Any]) -> None:
    """Print what ``examine`` found."""
    from rich import box
    from rich.table import Table

    title = f"{found['liars']} of {found['devices']} devices lie, {found['rounds']} rounds"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for i, head in enumerate(("attack", "against", "perplexity", "worse by", "trigger", "")):
        table.add_column(head, justify="right" if 2 <= i < 5 else "left")
    for row in found["rows"]:
        words = (row["attack"], row["merge"], f"{row['perplexity']:.3g}", f"{100 * (row['worse'] - 1):.0f} %")
        table.add_row(*words, f"{100 * row['trigger']:.0f} %", "does harm" if row["harm"] else "")
    console.print(table)
    console.print(
        "Perplexity is that of the honest devices' held-out text. Trigger is the share of a secret answer that the "
        "model names after a trigger phrase. Liars run the device's own program, so its clip binds what they send. "
        "Behind masks nobody checks that, and a changed program is not bound."
    )
