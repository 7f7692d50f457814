"""Promises of a whole run beside its model: comparisons, records, and refusals of resume."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import toy
from rich.console import Console
from toy_recipe import make_recipe

from edgewise.apps.report import page as report
from edgewise.apps.report import summary
from edgewise.apps.simulate import check, check_screen, simulation
from edgewise.core import events, frame
from edgewise.core.errors import DataError, EdgewiseError, StoreError
from edgewise.core.training import POOLED, FitRequest
from edgewise.core.vector import Spec
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.catalogue import BUILT_IN, with_extensions
from edgewise.plan.compile import compile
from edgewise.plan.recipe import recipe as recipes

BARE = {"compare.local_only": False, "compare.centralised": False}


def play(out, overrides=None, *, resume=False, extensions=("toy",), sinks=(), report=False):
    recipe = make_recipe(overrides)
    simulation.run(
        recipe, out=out, recipe_dir=out, resume=resume, extensions=list(extensions), sinks=sinks, report=report
    )


@pytest.fixture
def asked(monkeypatch):
    """Every fit request, in order."""
    requests: list[FitRequest] = []
    fit = toy.ToyTrainer.fit
    monkeypatch.setattr(toy.ToyTrainer, "fit", lambda self, r: (requests.append(r), fit(self, r))[1])
    return requests


# -- layer-wise -------------------------------------------------------------------------------------------------------

TURNS = [{"kind": "segments", "cycle": 2}, {"kind": "weigh", "cap": 160}, {"kind": "feedback"},
         {"kind": "top_k", "fraction": 0.2}, {"kind": "quantize", "bits": 4}]  # fmt: skip


@pytest.mark.slow
def test_in_each_round_one_group_moves_and_the_rest_stays_to_the_bit(tmp_path, asked):
    """Groups of 40 and 10 coordinates; FedAdam's momentum would move the resting one."""
    play(tmp_path, {"stage": TURNS, "round.rounds": 5})
    with RunStore(tmp_path) as store:
        last = store.blob(store.models()[5])
    rounds = asked[: 5 * 8]
    models = [next(r.params for r in rounds if r.round == n) for n in range(5)] + [last]
    for number, (before, after) in enumerate(pairwise(models)):
        moved = before != after
        group = (slice(0, 40), slice(40, 50))[number % 2]
        assert moved[group].any()
        moved[group] = False
        assert not moved.any()
    names = {0: ("w",), 1: ("b",)}
    assert all(r.rule.segments == names[r.round % 2] for r in rounds)
    compared = asked[5 * 8 :]
    assert compared
    assert all(r.rule.segments == () for r in compared), "what does not travel takes no turns"


def test_check_tells_of_the_turns_within_80_columns(tmp_path):
    found = check.examine(make_recipe({"stage": TURNS}), tmp_path, with_extensions(["toy"]), fast=True)
    assert found["bytes"]["up_largest"] > found["bytes"]["up"]
    assert found["bytes"]["up_total"] == pytest.approx(4 * 8 * found["bytes"]["up"])
    console = Console(width=80, record=True, file=io.StringIO())
    check_screen.show_check(console, found, "toy.toml")
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    assert "the mean of groups that take turns; the largest sends" in flat
    assert "2 groups of 80, 20 % take" in flat.replace("\n", " ")


# -- comparisons ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_alone_and_together_at_equal_steps(tmp_path, asked):
    """Fixed sampling of 4 among 8: half the rounds alone, four times the steps centralised."""
    play(tmp_path, {"round.sampling": "fixed", "round.cohort": 4, "round.rounds": 6, "eval.devices": 2})
    with RunStore(tmp_path) as store:
        measured = set(store.measures("federated"))
        assert set(store.measures("local_only")) == measured
        assert len(measured) == 2
    compared = asked[-(6 + 2 * 3) :]
    pooled = [r for r in compared if r.device == POOLED]
    assert [(r.round, r.rule.steps) for r in pooled] == [(n, 4 * 4) for n in range(6)]
    for device in measured:
        alone = [r for r in compared if r.device == device]
        assert [(r.round, r.rule.steps) for r in alone] == [(0, 4), (2, 4), (4, 4)]


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_steps_of_the_centralised_run_are_those_of_the_federation(tmp_path, asked, sampling):
    play(tmp_path, {"round.sampling": sampling, "round.cohort": 4, "round.minimum": 0.25, "compare.local_only": False})
    assert sum(r.rule.steps for r in asked if r.device == POOLED) == 4 * 4 * 4


@pytest.mark.parametrize(
    ("rounds", "cohort", "alone"), [(4, 0, (0, 1, 2, 3)), (20, 1, (0, 10)), (3, 1, (0,)), (7, 3, (0, 3))]
)
def test_rounds_alone(rounds, cohort, alone):
    section = {"rounds": rounds, **({"sampling": "poisson", "cohort": cohort} if cohort else {})}
    recipe = recipes.from_plain({"privacy": "none", "round": section})
    plan = compile(recipe, Spec.of([("w", (9,), "float32")]), 10, BUILT_IN)
    assert plan.rounds_alone(rounds) == alone


@pytest.mark.slow
def test_without_pooled_text_there_is_no_centralised_figure_and_the_run_ends_well(tmp_path, monkeypatch):
    fit = toy.ToyTrainer.fit

    def no_pool(self, request):
        if request.device == POOLED:
            raise DataError("E-DEVICE-DATA", "there is no shard with all training data together.")
        return fit(self, request)

    monkeypatch.setattr(toy.ToyTrainer, "fit", no_pool)
    told = []
    play(tmp_path, sinks=[told.append])
    notes = [e for e in told if isinstance(e, events.Progress)]
    assert [e.note for e in notes if "E-" in e.note] == [
        "centralised: E-DEVICE-DATA: there is no shard with all training data together."
    ]
    assert (notes[-1].done, notes[-1].total) == (12, 12)
    assert isinstance(told[-1], events.RunFinished)
    with RunStore(tmp_path) as store:
        assert len(store.measures("local_only")) == 8
        assert not store.measures("centralised")
        s = summary.build(store)
    assert (s["complete"], s["no_pooled_data"], s["perplexity"]["centralised"]) == (True, True, None)
    assert "Centralised training was not compared" in report.run_page(s)
    resumed = []
    play(tmp_path, sinks=[resumed.append], resume=True)
    assert not any(isinstance(e, events.Progress) for e in resumed), "it is not tried again"


@pytest.mark.slow
def test_one_blob_of_the_comparison_stays(tmp_path):
    play(tmp_path, {"round.rounds": 9, "compare.local_only": False})
    # three models with two slots each, the first model, the end of the chain; what each round released
    assert len(list((tmp_path / "blobs").iterdir())) <= 3 * 3 + 1 + 1 + 9


@pytest.mark.slow
def test_a_device_that_cannot_measure_is_left_out(tmp_path, monkeypatch):
    evaluate = toy.ToyTrainer.evaluate

    def partly(self, device, params):
        if device == "d00002":
            raise IndexError("my private diary")
        return evaluate(self, device, params)

    monkeypatch.setattr(toy.ToyTrainer, "evaluate", partly)
    play(tmp_path)
    with RunStore(tmp_path) as store:
        for model in ("base", "federated", "local_only", "centralised"):
            assert set(store.measures(model)) == {f"d{i:05d}" for i in range(8)} - {"d00002"}


@pytest.mark.slow
def test_no_room_in_the_comparison_ends_the_run(tmp_path, monkeypatch):
    fit = toy.ToyTrainer.fit

    def full(self, request):
        if request.device == "d00003" and played:
            raise StoreError("E-DISK", "no room for the cache.")
        return fit(self, request)

    played = []
    monkeypatch.setattr(toy.ToyTrainer, "fit", full)
    phase = lambda e: played.append(e) if getattr(e, "phase", "") == "compare" else None  # noqa: E731
    with pytest.raises(EdgewiseError, match="E-DISK"):
        play(tmp_path, {"compare.centralised": False}, sinks=[phase])


# -- resume -----------------------------------------------------------------------------------------------------------


def _facts(self, **more):
    return {"model": "toy", "fingerprint": "f", "precision": "float32", "model_fingerprint": "m", **more}


CHANGES = {
    "the data": ("describe", lambda self: _facts(self, fingerprint="g")),
    "the arithmetic": ("describe", lambda self: _facts(self, precision="bfloat16")),
    "the kind of processor": ("describe", lambda self: _facts(self, hardware="cuda")),
    "the model's weights": ("describe", lambda self: _facts(self, model_fingerprint="n")),
    "the model's trained parameters": ("initial", lambda self: np.ones(50, np.float32)),
}


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("what", [*CHANGES, "the layout", "the extensions"])
def test_resume_says_what_changed(tmp_path, monkeypatch, what):
    monkeypatch.setattr(toy.ToyTrainer, "describe", _facts)
    play(tmp_path, BARE)
    extensions = ["toy"]
    if what == "the extensions":
        (tmp_path / "more_parts.py").write_text(
            "from edgewise.plan.catalogue import Extension\nEDGEWISE = Extension()\n", encoding="utf-8"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        extensions.append("more_parts")
    elif what == "the layout":
        made = toy.ToyTrainer.__init__

        def other(self, recipe):
            made(self, recipe)
            self.spec = Spec.of([("w", (30,), "float32"), ("b", (20,), "float32")])

        monkeypatch.setattr(toy.ToyTrainer, "__init__", other)
    else:
        monkeypatch.setattr(toy.ToyTrainer, *CHANGES[what])
    with pytest.raises(StoreError, match=rf"E-RESUME: {what}.* changed since this run began"):
        play(tmp_path, BARE, resume=True, extensions=extensions)
    monkeypatch.undo()
    monkeypatch.setattr(toy.ToyTrainer, "describe", _facts)
    play(tmp_path, BARE, resume=True)


@pytest.mark.slow
def test_resume_tells_a_model_of_the_hub_that_moved(tmp_path, monkeypatch):
    monkeypatch.setattr(toy.ToyTrainer, "describe", lambda self: _facts(self, model_commit="a" * 40))
    play(tmp_path, BARE)
    monkeypatch.setattr(toy.ToyTrainer, "describe", lambda self: _facts(self, model_commit="b" * 40, fingerprint="g"))
    with pytest.raises(StoreError, match=rf"E-RESUME: .*moved since this run began \(a+ then, b+ now\).*@{'a' * 40}"):
        play(tmp_path, BARE, resume=True)


def test_resume_without_a_run_leaves_no_folder(tmp_path):
    with pytest.raises(StoreError, match=r"E-RESUME: there is no run in"):
        play(tmp_path / "new", BARE, resume=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{"simulation.dropout": 0.5}, {"eval.every": 1}, {"training.lr": 0.1}])
def test_a_run_of_another_recipe_or_world_is_not_resumed(tmp_path, changed):
    play(tmp_path, BARE)
    with pytest.raises(StoreError, match=r"E-RESUME: .* another recipe"):
        play(tmp_path, {**BARE, **changed}, resume=True)
    play(tmp_path, {**BARE, "simulation.workers": 5, "engine.device": "cpu"}, resume=True)


@pytest.mark.slow
def test_a_run_of_another_wire_version_is_not_resumed(tmp_path, monkeypatch):
    play(tmp_path, BARE)
    monkeypatch.setattr(frame, "VERSION", frame.VERSION + 1)
    with pytest.raises(StoreError, match=r"E-RESUME: .* another version"):
        play(tmp_path, BARE, resume=True)


# -- what a run writes down -------------------------------------------------------------------------------------------


def test_the_recipe_and_its_trace_are_there_from_the_start(tmp_path):
    def stop(event):
        if isinstance(event, events.RoundStarted):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(tmp_path, sinks=[stop])
    assert recipes.load(tmp_path / "recipe.toml") == make_recipe()
    with RunStore(tmp_path) as store:
        facts = store.run()["facts"]
        assert all(e.at_s > 0 for e in store.events())
    roles = [row["role"] for row in facts["plan"]["trace"]]
    assert roles == ["start", "stage", "stage", "inner", "inner", "merge", "strategy"]
    assert Path(facts["recipe_dir"]) == tmp_path.resolve()


@pytest.mark.slow
def test_no_path_of_this_machine_in_what_is_shown(tmp_path):
    play(tmp_path, {"round.rounds": 1}, report=True)
    for name in ("summary.json", "report.html", "recipe.toml"):
        assert str(tmp_path) not in (tmp_path / name).read_text(encoding="utf-8"), name
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["plan"]["trace"]


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_fails_says_so_to_its_sinks(tmp_path, monkeypatch, begun):
    told = []
    if begun:
        monkeypatch.setenv("TOY_NAN", ",".join(f"d{i:05d}" for i in range(8)))
    else:
        monkeypatch.setattr(toy.ToyTrainer, "devices", lambda self: [])
    with pytest.raises(EdgewiseError) as caught:
        play(tmp_path, BARE, sinks=[told.append])
    code = "E-ROUND" if begun else "E-DATA-EMPTY"
    assert caught.value.code == code
    assert (told[-1].code, told[-1].reason, told[-1].resumable) == (code, caught.value.what, begun)
    assert told[-1].at_s > 0
    assert sum(isinstance(e, events.RunFailed) for e in told) == 1


def test_interrupts_and_bugs_are_told_and_passed_on(tmp_path):
    for number, (error, code) in enumerate([(KeyboardInterrupt(), "E-INTERRUPTED"), (OSError(), "crash")]):
        told = []

        def sink(event, error=error, told=told):
            told.append(event)
            if isinstance(event, events.RoundStarted | events.RunFailed):
                raise error

        with pytest.raises(type(error)):
            play(tmp_path / str(number), BARE, sinks=[sink])
        assert (told[-1].code, told[-1].resumable) == (code, True)
