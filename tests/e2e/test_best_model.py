"""``round.patience`` and ``round.keep``: held-out losses end a run and choose its model, through crashes too."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from toy_recipe import make_recipe

from edgewise.apps.cli import result
from edgewise.apps.report import page as report
from edgewise.apps.report import summary
from edgewise.apps.runs.chosen import chosen_model
from edgewise.apps.simulate import check, check_screen, simulation
from edgewise.core import events, vector
from edgewise.core.errors import RecipeError
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine.evaluation import kept
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.evaluations import PlannedEvaluations
from edgewise.plan.recipe.privacy import DP_WORDS
from edgewise.plan.recipe.recipe import from_plain

# FedAdam overshoots: the held-out loss falls for three rounds and rises for five.
OVERSHOOT = {"round.rounds": 12, "eval.every": 1, "strategy.lr": 0.3}
BEST = {**OVERSHOOT, "round.patience": 3, "round.keep": "best"}


class Stopped(Exception):
    pass


def play(out, settings, *, resume=False, sink=None):
    recipe = make_recipe(settings)
    sinks = [sink] if sink else []
    simulation.run(
        recipe, out=out, recipe_dir=out, resume=resume, extensions=["toy"], sinks=sinks, report=False
    )  # fmt: skip


def left(out):
    """Everything that a run leaves and that a crash must not change."""
    with RunStore(out) as store:
        which = chosen_model(store)
        held = {m: store.measures(m) for m in ("base", "federated", "local_only", "centralised")}
        return which, store.models(), vector.to_bytes(store.blob(which.digest)), held


def evaluation(round, nll, model="federated", missing=None):
    tokens = dict.fromkeys(nll, 10)
    return events.Evaluated(round=round, model=model, nll=nll, tokens=tokens, seconds=0.0, missing=missing or {})


@pytest.mark.slow
def test_a_run_ends_when_waiting_is_over_and_its_best_model_counts(tmp_path):
    told = []
    play(tmp_path, BEST, sink=told.append)
    stops = [e for e in told if isinstance(e, events.StoppedEarly)]
    assert [(e.played, e.evaluations, e.kept) for e in stops] == [(6, 3, 3)]
    with RunStore(tmp_path) as store:
        which = chosen_model(store)
        assert (which.played, which.reached, which.over, which.stopped, which.waited) == (3, 6, True, True, 3)
        assert which.digest == store.models()[3] != store.models()[6]
        assert vector.digest(vector.to_bytes(store.blob(which.digest))) == which.digest, "its vector is on the disk"
        s = summary.build(store)
        page = report.write_run_page(s, tmp_path).read_text(encoding="utf-8")
        assert store.evaluated("local_only", 5)
        assert store.evaluated("centralised", 5), "compared at the steps that were taken"
    assert next(e.model for e in told if isinstance(e, events.RunFinished)) == which.digest
    assert s["complete"]
    assert s["model_sha256"] == which.digest
    curve = {c["played"]: c["weighted_mean"] for c in s["curve"]}
    assert s["perplexity"]["federated"]["weighted_mean"] == curve[3] == min(curve.values())
    screen = Console(width=100, file=io.StringIO(), record=True)
    result.show(screen, s, tmp_path)
    for said in (" ".join(page.split()), " ".join(screen.export_text().split())):
        assert "nded after 6 of 12 rounds: no lower held-out loss in 3 evaluations in a row" in said
        assert "the model after 3 rounds counts" in said
    assert "slightly optimistic" in page


@pytest.mark.slow
def test_the_best_of_all_rounds_counts_without_patience(tmp_path):
    play(tmp_path, {**OVERSHOOT, "round.rounds": 5, "round.keep": "best"})
    with RunStore(tmp_path) as store:
        assert chosen_model(store)[:1] + chosen_model(store)[2:5] == (3, 5, True, False)


@pytest.mark.slow
def test_the_last_model_counts_unless_the_recipe_says_best(tmp_path):
    play(tmp_path, {**OVERSHOOT, "round.patience": 2})
    with RunStore(tmp_path) as store:
        which = chosen_model(store)
        assert (which.played, which.reached, which.stopped) == (5, 5, True)
        assert which.digest == store.models()[5]


@pytest.mark.slow
def test_the_base_counts_where_nothing_beats_it(tmp_path):
    play(tmp_path, {**OVERSHOOT, "strategy.lr": 30.0, "round.patience": 2, "round.keep": "best"})
    with RunStore(tmp_path) as store:
        which, s = chosen_model(store), summary.build(store)
        assert (which.played, which.reached) == (0, 2)
        assert which.digest == store.models()[0]
    assert s["perplexity"]["federated"] == s["perplexity"]["base"]
    assert s["change_percent"]["federated"] == 0.0


BREAKS = [("evaluated", 4), ("round_started", 4), ("round_finished", 4), ("evaluated", 7), ("stopped_early", 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "which"), BREAKS)
def test_a_run_that_was_cut_off_chooses_the_same(tmp_path, kind, which):
    """``evaluated`` 4 is the best one: the run dies when it is stored and its model is not kept yet."""
    play(tmp_path / "whole", BEST)
    seen = []

    def sink(event):
        seen.append(event.__struct_config__.tag)
        if seen.count(kind) == which and event.__struct_config__.tag == kind:
            raise Stopped

    with pytest.raises(Stopped):
        play(tmp_path / "cut", BEST, sink=sink)
    play(tmp_path / "cut", BEST, resume=True)
    assert left(tmp_path / "cut") == left(tmp_path / "whole")
    told = []
    play(tmp_path / "cut", BEST, resume=True, sink=told.append)
    assert not [e for e in told if isinstance(e, events.RoundStarted)], "a run that ended early goes on nowhere"
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


def test_a_model_that_some_devices_cannot_measure_has_not_improved():
    section = PlannedEvaluations(patience=2, keep="best")
    told = [
        evaluation(-1, {"a": 30.0, "b": 50.0}, model="base"),
        evaluation(0, {"a": 25.0, "b": 45.0}),
        evaluation(1, {"a": 20.0}, missing={"b": "E-NAN"}),
        evaluation(1, {"a": 1.0, "b": 1.0}, model="local_only"),
    ]
    assert kept(section, told, 2) == (1, 1, False)
    told.append(evaluation(2, {"a": 24.0, "b": 45.0, "c": 90.0}))  # c is new, and what both measured is lower
    assert kept(section, told, 3) == (3, 0, False)
    told += [evaluation(3, {"a": 24.0, "b": 45.0, "c": 90.0}), evaluation(4, {"a": 99.0, "b": 45.0, "c": 90.0})]
    assert kept(section, told, 5) == (3, 2, True), "as good is not better"
    assert kept(section, reversed(told), 5) == (3, 2, True)
    told.append(evaluation(5, {"a": 20.0, "c": 90.0}, missing={"b": "late"}))
    assert kept(section, told, 6) == (6, 0, False), "who did not answer in time says nothing"
    del told[-1]
    assert kept(PlannedEvaluations(), told, 5) == (5, 2, False)


@pytest.mark.parametrize("word", DP_WORDS)
@pytest.mark.parametrize("choice", [{"patience": 2}, {"keep": "best"}])
def test_no_epsilon_counts_a_choice_by_held_out_text(word, choice):
    dp = {"epsilon": 8.0, "delta": 1e-3, "clip_l2": 1.0}
    with pytest.raises(RecipeError, match=r"E-COMBO.*held-out text"):
        from_plain({"privacy": word, "dp": dp, "round": choice})


@pytest.mark.parametrize("choice", [{"patience": 2}, {"keep": "best"}])
def test_a_choice_needs_evaluations(choice):
    with pytest.raises(RecipeError, match=r"E-COMBO.*eval.every"):
        from_plain({"privacy": "none", "round": choice, "eval": {"every": 0}})


def test_check_and_the_claims_say_what_decides(tmp_path):
    found = check.examine(make_recipe(BEST), tmp_path, with_extensions(["toy"]), fast=True)
    assert any("they decide when the run ends, or which model counts" in claim for claim in found["claims"])
    screen = Console(width=80, file=io.StringIO(), record=True)
    check_screen.show_check(screen, found, "toy.toml")
    text = " ".join(screen.export_text().split())
    assert "ends after 3 evaluations in a row without a lower held-out loss" in text
    assert "the model with the lowest held-out loss counts" in text
