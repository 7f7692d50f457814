"""`edgewise audit`: the recipe's own code path under attack. What is claimed, what is measured, what leaks.

Mechanism   many releases of a small update by the recipe's pipeline, with and without one worst-case device
One run     one release of many canaries by the same pipeline, at the recipe's own noise
Leakage     token recall from what the server sees: each update, the cohort's sum, the noised sum
Memory      membership inference and canary exposure of the model after an update, and after the release
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.core import keys
from edgewise.core.errors import AuditError
from edgewise.core.keys import derive
from edgewise.core.vector import Spec, Vector
from edgewise.plan.catalogue import BUILT_IN, Catalogue
from edgewise.plan.compile import Plan, compile
from edgewise.plan.recipe import Recipe
from edgewise.plan.section import DP_WORDS
from edgewise.privacy import audit
from edgewise.privacy import one_run as guessing
from edgewise.privacy.audit import Finding, claimed_mu, release

SMALL_DIM, SMALL_COHORT = 16, 8
CANARIES = {True: 512, False: 4096}  # quick or not
RUNS = {True: 1 << 14, False: 1 << 17}
LOCAL_RUNS = {True: 1024, False: 8192}
Step = Callable[[str, int, int], None]  # what is done, of how many


def _one_round(recipe: Recipe, dim: int, population: int, z: float, catalogue: Catalogue) -> Plan:
    """The recipe's private ending on a small vector: one round, everybody in it, a given noise multiplier."""
    plain = recipe.resolved()
    plain["trainable"], plain["codec"] = {"kind": "full", "layers": []}, "stages"
    plain["data"] = {**plain["data"], "partition": "iid", "devices": population, "owner": ""}
    plain["round"] = {"rounds": 1, "sampling": "all", "minimum": 1.0}
    plain["stage"], plain["downlink"] = [], []
    plain["strategy"] = {"kind": "fedavg"}
    if plain["merge"]["kind"] == "grouped":  # the server sees each group's sum: that is the release to attack
        plain["merge"] = {"kind": "secure_sum"}
    plain["dp"] = {
        **plain["dp"],
        "noise": "independent",  # one round says nothing of how rounds correlate
        "tensor_l2": 0.0,
        "noise_multiplier": z,
        "epsilon": 1e6,
        "corrupt": 0.0,
        "bits": 0,
        "adaptive_clip": False,
    }
    return compile(Recipe.model_validate(plain), Spec.of([("x", (dim,), "float32")]), population, catalogue)


def mechanism(recipe: Recipe, runs: int, step: Step, catalogue: Catalogue = BUILT_IN) -> Finding:
    """Releases in both worlds, the device an update of four times the clip's length.

    Every coordinate of two large releases is a run (``audit.mechanism_audit``); with ``local`` noise, where neighbours
    are replaced, many small ones. Clip and noise multiplier are chosen so that mu is about 1 for one run: there an
    audit is most telling, and the code is the same.
    """
    step("mechanism", 0, 1)
    if recipe.privacy != "local":
        scaled = recipe.model_copy(update={"dp": recipe.dp.model_copy(update={"clip_l2": sqrt(runs)})})
        plan = _one_round(scaled, runs, SMALL_COHORT, 1.0 / sqrt(runs), catalogue)
        update = np.full(runs, 4.0, np.float32)
        return audit.mechanism_audit("mechanism", plan.at(0), update, recipe.dp.delta, keys.root(7))
    plan, clip = _one_round(recipe, SMALL_DIM, SMALL_COHORT, 1.0, catalogue), recipe.dp.clip_l2
    assert plan.spend is not None
    one = np.zeros(SMALL_DIM, np.float32)
    one[0] = 4.0 * clip
    scores = []
    for world, mine in enumerate((-one, one)):  # one device's own words are what the server sees
        seen = [release(plan.at(0), [mine], derive(keys.root(7), "audit", world, i))[0] for i in range(runs)]
        scores.append(np.array(seen, np.float64))
    return audit.mechanism("mechanism", 1.0 / plan.spend.events[0].z, recipe.dp.delta, scores[0], scores[1])


def one_run(recipe: Recipe, canaries: int, step: Step, catalogue: Catalogue = BUILT_IN) -> Finding:
    """One round at the recipe's own noise: ``canaries`` devices, of which each is in with probability 1/2.

    The updates are orthogonal and of the clip's length, those of devices that are out are zeros, and the score of each
    is its inner product with the released sum. With ``local`` noise the server sees every message, and neighbours are
    replaced: "out" is the opposite update, and the score that of the device's own message.
    """
    z, clip = _recipe_z(recipe, canaries, catalogue), recipe.dp.clip_l2
    present = keys.generator(derive(keys.root(7), "present")).random(canaries) < 0.5
    local = recipe.privacy == "local"
    plan = _one_round(recipe, SMALL_DIM if local else canaries, canaries, z, catalogue)
    pipe = plan.at(0)

    def updates() -> Iterator[Vector]:
        for i in range(canaries):
            step("canaries", i, canaries)
            x = np.zeros(SMALL_DIM if local else canaries, np.float32)
            x[0 if local else i] = clip if present[i] else -clip if local else 0.0
            yield x

    if local:
        assert plan.spend is not None
        sent = [release(pipe, [x], derive(keys.root(7), "one run", i)) for i, x in enumerate(updates())]
        mu, scores = 1.0 / plan.spend.events[0].z, np.array([message[0] for message in sent], np.float64)
    else:
        mu = claimed_mu(pipe)
        scores = release(pipe, updates(), derive(keys.root(7), "one run")).astype(np.float64)
    return guessing.one_run("one run", mu, recipe.dp.delta, scores, present)


def _recipe_z(recipe: Recipe, dim: int, catalogue: Catalogue) -> float:
    """The noise multiplier of the recipe, as for a population that the audit can play."""
    if recipe.dp.noise_multiplier:
        return recipe.dp.noise_multiplier
    plain = recipe.resolved()
    plain["dp"] = {**plain["dp"]}
    one = Spec.of([("x", (dim,), "float32")])
    plain["trainable"], plain["stage"], plain["codec"] = {"kind": "full", "layers": []}, [], "stages"
    plain["strategy"], plain["downlink"] = {"kind": "fedavg"}, []
    spend = compile(Recipe.model_validate(plain), one, max(1000, 4 * recipe.round.cohort), catalogue).spend
    assert spend is not None
    return spend.z


def examine(
    recipe: Recipe,
    recipe_dir: Path,
    out: Path | None = None,
    quick: bool = False,
    step: Step | None = None,
    catalogue: Catalogue = BUILT_IN,
) -> dict[str, Any]:
    """All audits that the recipe's words allow.

    Returns:
        Plain JSON: ``privacy``, ``card``, ``findings`` (claimed and measured), ``leaks``, ``membership``, ``exposure``;
        the same as ``audit.json`` and a page ``audit.html`` in ``out``.
    Raises:
        AuditError(E-AUDIT): more was measured than is claimed. The files are written first.
    """
    say = step or (lambda *_: None)
    findings: list[Finding] = []
    if recipe.privacy in DP_WORDS and recipe.privacy != "record":
        runs = (LOCAL_RUNS if recipe.privacy == "local" else RUNS)[quick]
        findings.append(mechanism(recipe, runs, say, catalogue))
        findings.append(one_run(recipe, CANARIES[quick], say, catalogue))
    from edgewise.apps import leakage  # imports torch

    found: dict[str, Any] = {
        "recipe": recipe.name,
        "privacy": recipe.privacy,
        "findings": [{**asdict(f), "holds": f.holds} for f in findings],
        **leakage.examine(recipe, recipe_dir, quick, say, catalogue),
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "audit.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
        from edgewise.apps import audit_page

        (out / "audit.html").write_text(audit_page.page(found), encoding="utf-8")
    for f in findings:
        if not f.holds:
            raise AuditError(
                "E-AUDIT",
                f"{f.name}: mu {f.claimed:.4g} claimed, at least {f.lower:.4g} measured "
                f"(epsilon {f.epsilon_claimed:.3g} claimed, {f.epsilon_lower:.3g} measured).",
                "do not run this recipe: the code gives away more than it says. Report it.",
            )
    return found


def show(console: Any, found: Mapping[str, Any]) -> None:
    """Print what ``examine`` found."""
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
        add("epsilon: claimed and measured (lower bound, 95 %)", ("audit", "claimed", "measured", "runs", ""), claims)
        for f in found["findings"]:
            if g := f["guessed"]:
                console.print(
                    f"{f['name']}: {g['right']} of {g['guesses']} guesses were right; without the Gaussian's curve "
                    f"that shows {g['epsilon_plain']:.3g}.\n"
                )
    else:
        console.print("No epsilon is claimed, so none is measured.\n")
    rows = [
        (x["what"] + (" *" if x["seen"] else ""), _share(x["span"]), _share(x["rows"]), _share(x["base"]))
        for x in found["leaks"]
    ]
    add("tokens of one device's batch that an attacker names", ("from", "span check", "rows", "guessing"), rows)
    console.print("* what the server sees under this recipe\n")
    memory = [
        (x["what"], f"{x['auc']:.3f}", f"{x['tpr_at_1']:.3f}", f"{x['exposure']:.1f} of {x['exposure_most']:.1f} bits")
        for x in found["memory"]
    ]
    add("what the model remembers", ("model after", "membership AUC", "TPR at 1 %", "canary exposure"), memory)


def _share(x: float | None) -> str:
    return "-" if x is None else f"{100 * x:.0f} %"
