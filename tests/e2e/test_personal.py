"""Personal models of a simulated run: made after the rounds, measured beside everything else, kept for their owner."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest
import toy
from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation
from edgewise.core.errors import RecipeError, StoreError
from edgewise.core.events import Evaluated
from edgewise.core.training import FitRequest
from edgewise.drivers.simulation.faults import Faulty, ScriptedFault
from edgewise.drivers.storage.personal_models import personal_model, personal_models, personal_params
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.recipe.recipe import from_plain

FINE_TUNE = {"personal": {"method": "fine_tune", "steps": 20, "lr": 0.1}}


def play(out, overrides=None, *, resume=False, report=True, sinks=()):
    recipe = make_recipe({"compare.centralised": False, **(overrides or {})})
    simulation.run(recipe, out=out, recipe_dir=out, resume=resume, extensions=["toy"], report=report, sinks=sinks)
    return json.loads((out / "summary.json").read_text()) if report else {}


def released(out):
    with RunStore(out) as store:
        return store.blob(store.models()[4])


@pytest.mark.slow
def test_personal_models_gain_on_the_federated_model_which_is_the_same_without_them(tmp_path):
    plain, found = play(tmp_path / "plain"), play(tmp_path / "personal", FINE_TUNE)
    assert found["model_sha256"] == plain["model_sha256"]
    assert plain["perplexity"]["personal"] is None
    assert plain["personal"] is None
    ppl = found["perplexity"]
    for figure in ("weighted_mean", "median", "worst_decile"):
        assert ppl["personal"][figure] < ppl["federated"][figure] < ppl["base"][figure]
    shares = found["personal"]["share_improved"]
    assert shares["over_federated"] == 1.0
    assert set(shares) == {f"over_{m}" for m in ("base", "federated", "local_only", "local_personal", "both")}
    assert found["personal"]["elsewhere"]["personal"] > ppl["personal"]["weighted_mean"], "it knows others less"
    assert found["personal"]["elsewhere"]["federated"] == ppl["federated"]["weighted_mean"]
    assert found["complete"]
    page = (tmp_path / "personal" / "report.html").read_text()
    assert "federated, then personal" in page
    assert "local, then personal" in page
    assert "local, then personal" not in (tmp_path / "plain" / "report.html").read_text()


@pytest.mark.slow
def test_a_personal_model_is_kept_for_its_owner_and_found_by_its_device(tmp_path):
    play(tmp_path, {"personal": {**FINE_TUNE["personal"], "method": "interpolate", "weight": 0.25}}, report=False)
    (tmp_path / "whole").mkdir()
    play(tmp_path / "whole", FINE_TUNE, report=False)
    w = released(tmp_path)
    assert np.array_equal(w, released(tmp_path / "whole"))
    v, mixed = (personal_params(at, "d00003") for at in (tmp_path / "whole", tmp_path))
    assert np.allclose(mixed, w + 0.25 * (v - w), atol=1e-6)
    assert not np.allclose(mixed, v)
    model = personal_model(tmp_path, "d00003")
    with RunStore(tmp_path) as store:
        assert (model.method, model.made_from) == ("interpolate", store.models()[4])
    assert personal_params(tmp_path, "nobody") is None
    assert len(list(personal_models(tmp_path))) == 8
    if os.name != "nt":
        modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "personal").iterdir()}
        assert modes == {0o600}
        assert stat.S_IMODE((tmp_path / "personal").stat().st_mode) == 0o700


@pytest.mark.slow
def test_only_as_many_models_are_kept_as_there_is_room_for(tmp_path):
    found = play(tmp_path, {"personal": {**FINE_TUNE["personal"], "keep_mb": 2.5 * 200 / 1e6}})
    assert {m.device for m in personal_models(tmp_path)} == {"d00000", "d00001"}
    assert found["perplexity"]["personal"]["devices"] == 8


@pytest.mark.slow
def test_a_killed_run_makes_only_the_models_that_are_missing(tmp_path, monkeypatch):
    made: list[FitRequest] = []
    fit = toy.ToyTrainer.fit

    def counted(self, request):
        if request.round == 4:  # the round after the last
            made.append(request)
            if len(made) == 3:
                raise KeyboardInterrupt
        return fit(self, request)

    monkeypatch.setattr(toy.ToyTrainer, "fit", counted)
    tables = {**FINE_TUNE, "compare.local_only": False}
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path, tables)
    found = play(tmp_path, tables, resume=True)
    assert [r.device for r in made] == [f"d{i:05d}" for i in (0, 1, 2, 2, 3, 4, 5, 6, 7)]
    assert found["perplexity"]["personal"]["devices"] == 8
    assert found["complete"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["personal_elsewhere", "local_personal"])
def test_a_run_that_is_killed_between_two_evaluations_tells_each_once(tmp_path, model):
    def killed(event):
        if isinstance(event, Evaluated) and event.model == model:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(tmp_path, FINE_TUNE, sinks=[killed])
    assert play(tmp_path, FINE_TUNE, resume=True)["complete"]
    with RunStore(tmp_path) as store:
        told = [e.model for e in store.evaluations() if e.round == 3]
    assert sorted(told) == sorted({"federated", "personal", "personal_elsewhere", "local_only", "local_personal"})


@pytest.mark.slow
def test_a_model_that_is_made_again_takes_room_once(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    tables = {"personal": {**FINE_TUNE["personal"], "keep_mb": 2.5 * 200 / 1e6}, "compare.local_only": False}
    with monkeypatch.context() as during:
        during.setattr(RunStore, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            play(tmp_path, tables)
    assert {m.device for m in personal_models(tmp_path)} == {"d00000"}
    play(tmp_path, tables, resume=True)
    assert {m.device for m in personal_models(tmp_path)} == {"d00000", "d00001"}


@pytest.mark.slow
def test_a_damaged_model_is_an_error(tmp_path):
    play(tmp_path, FINE_TUNE, report=False)
    (first, *_) = (tmp_path / "personal").iterdir()
    first.write_bytes(first.read_bytes()[:-9])
    with pytest.raises(StoreError, match="personal model") as e:
        list(personal_models(tmp_path))
    assert e.value.code == "E-CHECKPOINT"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"method": "fine_tune", "weight": 0.7}, "personal.weight is not read"),
        ({"steps": 5}, "makes no model"),
        ({"method": "fine_tune", "steps": 5, "epochs": 1.0}, "exactly one"),
    ],
)
def test_settings_that_do_nothing_are_refused(section, words):
    with pytest.raises(RecipeError, match=words):
        from_plain({"privacy": "none", "personal": section})


def test_a_run_without_personal_models_keeps_its_identity():
    plain, named = from_plain({"privacy": "none"}), from_plain({"privacy": "none", "personal": {"method": "none"}})
    assert plain.sha256() == named.sha256()
    assert "personal" not in plain.resolved()
    again = from_plain(from_plain({"privacy": "none", "personal": {"method": "fine_tune"}}).resolved())
    assert again.personal.method == "fine_tune"


# -- ditto -----------------------------------------------------------------------------------------------------------

DITTO = {"personal": {"method": "ditto", "steps": 3, "lr": 0.2, "pull": 0.7}}
FEDREP = {"method": "fedrep", "steps": 3, "lr": 0.2, "parts": ["b"]}
PLAIN = {"stage": [{"kind": "weigh"}], "strategy": {"kind": "fedavg"}, "compare.local_only": False}


def by_hand(asked, device, used=range(4)):
    """v of a device after all rounds, by the equation, from the gradients that the toy takes. v goes on from the last
    contribution that the server ``used``."""
    own = {r.round: r for r in asked if r.round < 4 and r.device == device and r.correction.pull}
    models = {r.round: r.params for r in asked if r.round < 4 and r.device == device and not r.correction.pull}
    target, last, v = toy.ToyTrainer(make_recipe())._target(device), None, None
    for number, w in sorted(models.items()):
        v = w.copy() if last is None else last
        for step in range(3):
            noise = toy.generator(toy.derive(own[number].key, step)).normal(0, 0.01, 50).astype(np.float32)
            v = v - np.float32(0.2) * ((v - target) + noise + np.float32(0.7) * (v - w))
        last = v if number in used else last
    return v


@pytest.fixture
def asked(monkeypatch):
    requests: list[FitRequest] = []
    fit = toy.ToyTrainer.fit
    monkeypatch.setattr(toy.ToyTrainer, "fit", lambda self, r: (requests.append(r), fit(self, r))[1])
    return requests


@pytest.mark.slow
def test_ditto_follows_its_equation_and_leaves_the_federated_model_as_it_is(tmp_path, asked):
    play(tmp_path / "plain", PLAIN, report=False)
    asked.clear()
    out = tmp_path / "ditto"
    found = play(out, {**PLAIN, **DITTO})
    assert np.array_equal(released(out), released(tmp_path / "plain"))
    for device in ("d00000", "d00005"):
        assert np.allclose(personal_params(out, device), by_hand(asked, device), atol=1e-5)
    assert found["perplexity"]["personal"]["weighted_mean"] < found["perplexity"]["federated"]["weighted_mean"]


@pytest.mark.slow
def test_a_private_model_goes_on_from_the_last_contribution_that_was_used(tmp_path, asked):
    """Two devices train in a round, and their answers are lost on the way."""
    recipe = make_recipe({**PLAIN, **DITTO, "compare.centralised": False, "eval.every": 0, "round.minimum": 0.25})
    losing = lambda device, number: ScriptedFault(lose=device in ("d00001", "d00004") and number == 2)  # noqa: E731
    out = tmp_path / "few"
    simulation.run(recipe, out=out, recipe_dir=tmp_path, extensions=["toy"], wrap=lambda c: Faulty(c, losing))
    found = json.loads((out / "summary.json").read_text())
    used = {row["device"]: row["rounds"] for row in found["per_device"]}
    late = 0
    for device in used:
        invited = {r.round for r in asked if r.device == device and r.round < 4}
        late += len(invited - set(used[device]))
        if invited:
            made = by_hand(asked, device, used[device])
            assert np.allclose(personal_params(out, device), made, atol=1e-5), device
    assert late == 2


@pytest.mark.slow
@pytest.mark.parametrize("section", [DITTO["personal"], FEDREP], ids=["ditto", "fedrep"])
def test_a_killed_run_goes_on_with_the_private_parts_of_its_devices(tmp_path, monkeypatch, section):
    tables = {**PLAIN, "personal": section}
    out = tmp_path / "killed"
    play(tmp_path / "whole", tables, report=False)
    fit, calls = toy.ToyTrainer.fit, []

    def mortal(self, request):
        calls.append(request)
        if len(calls) == 2 * 8 * 2 + 5:  # in the third round, after some devices
            raise KeyboardInterrupt
        return fit(self, request)

    monkeypatch.setattr(toy.ToyTrainer, "fit", mortal)
    with pytest.raises(KeyboardInterrupt):
        play(out, tables, report=False)
    play(out, tables, resume=True, report=False)
    assert len(list(personal_models(out))) == 8
    for model in personal_models(out):
        assert np.array_equal(model.params, personal_params(tmp_path / "whole", model.device))


HIDDEN = {
    "privacy": "hidden", "merge": {"kind": "secure_sum"}, "strategy": {"kind": "fedavg"}, "compare.local_only": False,
    "stage": [
        {"kind": "weigh"}, {"kind": "clamp", "linf": 2.0}, {"kind": "quantize", "bits": 8, "grid": "shared"},
        {"kind": "wrap"},
    ],
}  # fmt: skip
NOISED = {"privacy": "central_dp", "stage": [], "metrics": "none", "strategy": {"kind": "fedavg"},
          "compare.local_only": False, "dp": {"epsilon": 20.0, "delta": 1e-2, "clip_l2": 1.0}}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("tables", [HIDDEN, NOISED], ids=["secure aggregation", "differential privacy"])
def test_a_private_model_changes_no_byte_that_leaves(tmp_path, tables):
    sizes = []
    for at, more in ((tmp_path / "plain", {}), (tmp_path / "ditto", DITTO)):
        found = play(at, {**tables, **more})
        sizes.append((found["bytes"]["up_total"], found["bytes"]["down_total"]))
        assert found["participation"]["accepted"] == 32
    assert sizes[0] == sizes[1]
    if tables is HIDDEN:  # The noise of another run id is other noise.
        assert np.array_equal(released(tmp_path / "ditto"), released(tmp_path / "plain"))
    assert found["perplexity"]["personal"]["weighted_mean"] < found["perplexity"]["federated"]["weighted_mean"]


@pytest.mark.slow
@pytest.mark.parametrize("tables", [HIDDEN, NOISED], ids=["secure aggregation", "differential privacy"])
def test_the_rest_of_a_model_travels_as_a_smaller_vector(tmp_path, tables):
    """The toy has 40 coordinates that travel, and 10 that stay."""
    found = play(tmp_path, {**tables, "personal": FEDREP, "compare.unseen": 0.25})
    assert found["participation"]["accepted"] == 24
    assert released(tmp_path).size == 40
    own = [model.params for model in personal_models(tmp_path)]
    assert {params.size for params in own} == {50}
    assert len({params[40:].tobytes() for params in own}) == 8, "each device has a part of its own"
    means = [found["unseen"][name]["weighted_mean"] for name in ("base", "federated", "personal")]
    assert means == sorted(means, reverse=True)
    assert found["perplexity"]["personal"]["weighted_mean"] < found["perplexity"]["federated"]["weighted_mean"]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"codec": "adaptive", "privacy": "hidden", "merge": {"kind": "secure_sum"}}, "behind masks"),
        ({"privacy": "none", "strategy": {"kind": "zeroth_order"}}, "coefficients of directions"),
    ],
)
def test_what_has_no_place_for_a_private_model_refuses_it(tables, words):
    with pytest.raises(RecipeError, match=words):
        from_plain({**tables, **DITTO})


# -- devices that were in no round -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_unseen_devices_are_in_no_round_and_are_measured_after_them(tmp_path, asked):
    out = tmp_path / "unseen"
    found = play(out, {**PLAIN, **FINE_TUNE, "compare.unseen": 0.25})
    trained = {r.device for r in asked if r.round < 4}
    late = {r.device for r in asked if r.round == 4} - trained
    assert (len(trained), len(late), found["population"]) == (6, 2, 6)
    unseen = found["unseen"]
    assert {name: q["devices"] for name, q in unseen.items()} == {"base": 2, "federated": 2, "personal": 2}
    means = [unseen[name]["weighted_mean"] for name in ("base", "federated", "personal")]
    assert means == sorted(means, reverse=True)
    assert found["perplexity"]["personal"]["devices"] == 6
    assert {m.device for m in personal_models(out)} == trained | late
    assert "that were in no round" in (out / "report.html").read_text()
    assert found["complete"]


def test_a_recipe_without_unseen_devices_keeps_its_identity():
    named = from_plain({"privacy": "none", "compare": {"unseen": 0.0}})
    assert named.sha256() == from_plain({"privacy": "none"}).sha256()
    assert "unseen" not in named.resolved()["compare"]
