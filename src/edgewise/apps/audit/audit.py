"""Audit of a recipe, for ``edgewise audit``: attacks on the code that a run executes, and a report of the results.

Length      the largest distance of a device's update from its neighbour's, before the noise
Mechanism   many releases by the recipe's stages and noise, with and without one worst-case device or record
One run     one run of the compiled plan with many canaries, at the recipe's own noise
Leakage     token recall from each update, the cohort's sum, and the noised sum
Crossings   recovery of tokens from what crosses the cut of a split model
Memory      membership inference and canary exposure of the model after an update, and after the release

    found = audit_recipe(recipe, Path("recipes"), out=Path("audit"), quick=True)
    found["findings"][0]["holds"]
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgewise.apps.audit import epsilon
from edgewise.apps.audit.epsilon import Step
from edgewise.core.errors import AuditError
from edgewise.drivers.storage import folder
from edgewise.drivers.workers.records import protect_records
from edgewise.drivers.workers.trainers import make_trainer
from edgewise.engine.trainer import registered
from edgewise.plan.catalogue import BUILT_IN, Catalogue
from edgewise.plan.compile import compile
from edgewise.plan.mechanisms.known import recipe_promise
from edgewise.plan.participants import participants
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import Recipe

NO_LEAKAGE = "token recall and membership from sums of records (canary records are looked for in their place)"


def audit_recipe(
    recipe: Recipe,
    recipe_dir: Path,
    out: Path | None = None,
    quick: bool = False,
    step: Step | None = None,
    catalogue: Catalogue = BUILT_IN,
) -> dict[str, Any]:
    """Run all audits that apply to the recipe's privacy word.

    Args:
        recipe_dir: folder of relative paths.
        out: folder for ``audit.json`` and ``audit.html``; None writes no files.
        quick: use fewer trials and devices, for weaker bounds.
        step: called with (name, done, total).
    Returns:
        Plain JSON. ``claim`` holds epsilon, delta and noise multiplier of the whole run (null without differential
        privacy). ``findings`` hold the claimed and the measured value, the attacked thing and the omissions.
        ``not_tried`` lists what no audit tries. ``leaks``, ``memory`` and ``crossings`` are empty if a finding
        does not hold.
    Raises:
        AuditError: E-AUDIT if more was measured than is claimed. The files are written first.
        RecipeError, CompositionError: refusals of ``compile``, and E-COMBO for an extension's trainer.
        StoreError: E-FOLDER if ``out`` holds files and edgewise did not make it.
    """
    if out is not None:
        folder.claim(out)
    say = step or (lambda *_: None)
    from edgewise.apps.audit import leakage  # imports torch

    with tempfile.TemporaryDirectory(prefix="edgewise-audit-") as scratch:
        summing = recipe_promise(recipe.privacy, recipe.dp, hidden=True).sums_records
        trainer: Any = None
        if summing:  # No attack on text is played against sums of records, so any trainer will do.
            trainer = make_trainer(recipe, recipe_dir, Path(scratch), catalogue).trainer
        else:
            trainer = leakage.text_trainer(recipe, recipe_dir, Path(scratch), catalogue)
        plan = compile(recipe, trainer.spec, len(participants(recipe, trainer.devices()).seen), catalogue)
        protect_records(plan, registered(trainer))
        findings = epsilon.audit_epsilon(plan, quick, say, catalogue)
        leaks: dict[str, Any] = {"leaks": [], "memory": [], "tokens": 0, "crossings": []}
        if not summing and all(f.holds for f in findings):  # Broken code may release something else than it should.
            leaks = leakage.audit_leakage(recipe, plan, trainer, recipe_dir, Path(scratch), quick, say, catalogue)
    found: dict[str, Any] = {
        "recipe": recipe.name,
        "privacy": recipe.privacy,
        "claim": _privacy_claim(plan),
        "findings": [{**asdict(f), "holds": f.holds} for f in findings],
        "not_tried": [*(epsilon.NOT_TRIED if findings else ()), *((NO_LEAKAGE,) if summing else ())],
        "held_by": recipe.split.holder if recipe.split.used else "",
        **leaks,
    }
    if out is not None:
        (out / "audit.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
        from edgewise.apps.audit import page

        (out / "audit.html").write_text(page.audit_page(found), encoding="utf-8")
    for f in findings:
        if not f.holds:
            raise AuditError(
                "E-AUDIT",
                f"{f.name}, {f.of}: mu {f.claimed:.4g} claimed, at least {f.lower:.4g} measured "
                f"(epsilon {f.epsilon_claimed:.3g} claimed, {f.epsilon_lower:.3g} measured).",
                "do not run this recipe. The code discloses more than it claims. Report it.",
            )
    return found


def _privacy_claim(plan: Plan) -> dict[str, Any] | None:
    """Return the claim of the whole run. None without differential privacy."""
    if plan.spend is None:
        return None
    return {"epsilon": plan.spend.card.of_release, "delta": plan.spend.card.delta, "noise_multiplier": plan.spend.z}


def show_audit(console: Any, found: Mapping[str, Any]) -> None:
    """Print the result of an audit (``examine``)."""
    from rich import box
    from rich.table import Table

    def add(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
        for i, head in enumerate(heads):
            table.add_column(head, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)

    if found["findings"]:
        claims = [
            (f["name"], f"{f['epsilon_claimed']:.3g}", f"{f['epsilon_lower']:.3g}", f"{f['runs']:,}",
             "holds" if f["holds"] else "BROKEN")
            for f in found["findings"]
        ]  # fmt: skip
        add("epsilon: claimed and measured (lower bound)", ("audit", "claimed", "measured", "runs", ""), claims)
        whole = found["claim"]
        console.print(
            f"Claimed of the whole run: epsilon {whole['epsilon']:.3g} at delta {whole['delta']:g}. Each audit "
            "compares with the claim for the part that it attacked:"
        )
        for f in found["findings"]:
            console.print(f"- {f['name']}: {f['of']}." + _guesses_in_words(f) + _left_out(f))
        console.print(f"Not tried by any audit: {'; '.join(found['not_tried'])}.\n")
    else:
        console.print("No epsilon is claimed, so none is measured.\n")
    rows = [
        (x["what"] + (" *" if x["seen"] else ""), _percent(x["span"]), _percent(x["rows"]), _percent(x["base"]))
        for x in found["leaks"]
    ]
    add("tokens of one device's batch that an attacker names", ("from", "span check", "rows", "guessing"), rows)
    console.print("* the server sees this under the recipe\n")
    if found["crossings"]:
        crossed = [
            (f"{x['kind'].replace('_', ' ')} behind block {x['cut']}" + (" *" if x["seen"] else ""), x["rounding"],
             x["tells"], _percent(x["top1"]), _percent(x["unigram"]))
            for x in found["crossings"]
        ]  # fmt: skip
        heads = ("from", "format", "tells", "first guess", "guessing")
        add("tokens that a trained head names from what crosses the cut", heads, crossed)
        console.print(f"* {found['held_by']} sees this under the recipe\n")
    memory = [
        (
            x["what"],
            f"{x['auc']:.3f} (chance: 0.5 +- {x['chance']:.2f})",
            f"{x['tpr_at_1']:.3f}",
            f"{x['exposure']:.1f} of {x['exposure_most']:.1f} bits",
        )
        for x in found["memory"]
    ]
    add(_memory_title(found["memory"]), ("model after", "membership AUC", "TPR at 1 %", "canary exposure"), memory)


def _memory_title(memory: Sequence[Mapping[str, Any]]) -> str:
    """Make the title of the table on memory."""
    title = "what the model remembers"
    if not memory:
        return title
    n, m = memory[0]["members"], memory[0]["others"]
    return f"{title}: find the {n} of {n + m} pieces of text that an update trained on, by the fall of their loss"


def _percent(x: float | None) -> str:
    """Write a share in percent."""
    return "-" if x is None else f"{100 * x:.0f} %"


def _guesses_in_words(f: Mapping[str, Any]) -> str:
    """Say how many guesses were right."""
    if (g := f["guessed"]) is None:
        return ""
    return (
        f" {g['right']} of {g['guesses']} guesses were right. Without the Gaussian curve they show epsilon "
        f"{g['epsilon_plain']:.3g}."
    )


def _left_out(f: Mapping[str, Any]) -> str:
    return f" Left out: {'; '.join(f['left_out'])}." if f["left_out"] else ""
