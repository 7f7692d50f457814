"""Runs whose model is split: whole-model training, hidden sums, killed runs, exports, bytes and refusals."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tiny_model
from rich.console import Console

from edgewise.apps.federation.run import Run
from edgewise.apps.models import in_use
from edgewise.apps.simulate import check, check_screen, simulation
from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core import events
from edgewise.core.errors import EdgewiseError, ModelError, RecipeError
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.storage.split_sessions import SessionFiles
from edgewise.learn.models.load import load
from edgewise.plan.recipe.recipe import from_plain

EXACT = {"activations": "float32", "gradients": "float32"}
HIDDEN = [{"kind": "weigh"}, {"kind": "clip", "l2": 1.0}, {"kind": "clamp", "linf": 0.1},
          {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}]  # fmt: skip
VOCABULARY, WIDTH, TOKENS = 300, 32, 2 * 2 * 16  # tokens of the two steps of a device


class Killed(BaseException):
    """The end of a run in the middle. Nothing catches it, as nothing outlives a killed process."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model, its twin without tied weights, and texts of three devices."""
    folder = tmp_path_factory.mktemp("split")
    tiny_model.save(folder / "tied")
    tiny_model.save(folder / "untied", tie=False)
    for i in range(3):
        (folder / "texts" / f"home-{i}").mkdir(parents=True)
        text = "".join(tiny_model.LINES[i:]) * (i + 1)
        (folder / "texts" / f"home-{i}" / "text.txt").write_text(text, encoding="utf-8")
    return folder


def recipe_of(place, split=None, devices=3, **more):
    """Make the recipe of a small run."""
    where = "texts" if devices == 3 else "texts/home-0"
    plain = {
        "name": "split",
        "privacy": "none",
        "model": {"base": "tied"},
        "data": {"source": "text", "path": where, "sequence_len": 16},
        "round": {"rounds": 2, "sampling": "all"},
        "training": {"local_steps": 2, "batch": 2, "accumulate": 2, "lr": 1e-2},
        "strategy": {"kind": "fedavg"},
        "eval": {"every": 1},
        "compare": {"local_only": False, "centralised": False},
        **({"split": {"cut": 1, **split}} if split is not None else {}),
        **more,
    }
    return from_plain(plain)


def play(place, recipe, out, resume=False, report=False):
    """Play a recipe. Returns its events."""
    seen = []
    simulation.run(recipe, out=out, recipe_dir=place, resume=resume, sinks=[seen.append], report=report)
    return seen


def vector_of(out):
    return Run(out).vector()


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "base"), [("U", "tied"), ("head", "untied")])
def test_one_device_without_rounding_trains_the_whole_model(place, tmp_path, shape, base):
    more = {"model": {"base": base}, "devices": 1}
    play(place, recipe_of(place, **more), tmp_path / "whole")
    play(place, recipe_of(place, {"shape": shape, **EXACT}, **more), tmp_path / "split")
    whole, split = vector_of(tmp_path / "whole"), vector_of(tmp_path / "split")
    moved = np.abs(whole - Run(tmp_path / "whole").vector(0)).max()
    assert moved > 1e-2
    assert np.abs(whole - split).max() < 1e-2 * moved
    assert np.array_equal(Run(tmp_path / "whole").vector(0), Run(tmp_path / "split").vector(0))
    losses = [
        [e.head["loss_last"] for e in events_of(tmp_path / name, events.RoundFinished)] for name in ("whole", "split")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def events_of(out, kind):
    with RunStore(out) as store:
        return [e for e in store.events() if isinstance(e, kind)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["each", "in_turn"])
def test_a_killed_run_goes_on_to_the_same_bytes(place, tmp_path, monkeypatch, kind):
    hidden = {"privacy": "hidden", "stage": HIDDEN, "merge": {"kind": "secure_sum"}} if kind == "each" else {}
    recipe = recipe_of(place, {"server_parts": kind}, **hidden)
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    whole = play(place, recipe, calm)
    end = SessionFiles.end
    for kill, written in ((2, True), (1, False), (3, True), (2, False), (1, True)):
        ended = []

        def dying(self, *session, at=kill, write=written, count=ended):
            count.append(1)
            if len(count) < at or write:
                end(self, *session)
            if len(count) == at:
                raise Killed

        monkeypatch.setattr(SessionFiles, "end", dying)
        with pytest.raises(Killed):
            play(place, recipe, stormy, resume=stormy.is_dir())
    monkeypatch.setattr(SessionFiles, "end", end)
    play(place, recipe, stormy, resume=True)
    assert np.array_equal(vector_of(calm), vector_of(stormy))
    crossed = [e for e in whole if isinstance(e, events.SplitSession)]
    assert len(crossed) == 6
    told = events_of(stormy, events.SplitSession)
    assert [(e.round, e.device, e.bytes_up, e.bytes_down) for e in told] == [
        (e.round, e.device, e.bytes_up, e.bytes_down) for e in crossed
    ]


@pytest.mark.slow
def test_parts_of_devices_are_averaged_or_take_turns(place, tmp_path):
    vectors = {}
    for kind in ("each", "in_turn", "frozen"):
        play(place, recipe_of(place, {"server_parts": kind}, round={"rounds": 1}), tmp_path / kind)
        run = Run(tmp_path / kind)
        vectors[kind] = run.params(), run.params(0)
    behind = [name for name in vectors["each"][0] if ".1." in name]
    assert behind
    for name in behind:
        after, before = ({kind: vectors[kind][i][name] for kind in vectors} for i in (0, 1))
        assert np.array_equal(after["frozen"], before["frozen"])
        far = [float(np.linalg.norm(after[kind] - before[kind])) for kind in ("in_turn", "each")]
        assert far[0] > 1.2 * far[1] > 0, "three sessions in a row go further than the mean of three"


@pytest.mark.slow
def test_a_pool_gives_the_same_bytes_and_the_report_counts_what_crosses(place, tmp_path):
    play(place, recipe_of(place, {}), tmp_path / "one", report=True)
    pool = recipe_of(place, {}, simulation={"engine": "pool", "workers": 2})
    play(place, pool, tmp_path / "two")
    assert np.array_equal(vector_of(tmp_path / "one"), vector_of(tmp_path / "two"))
    summary = Run(tmp_path / "one").summary
    crossed, per_token = summary["bytes"]["split"], 2 * TokenCodec("int8", WIDTH).size_bytes(1)
    assert crossed["sessions"] == 6
    assert per_token * TOKENS <= crossed["up_per_session"] <= per_token * TOKENS + 2000
    frames = [e.bytes_up for e in events_of(tmp_path / "one", events.Accepted)]
    assert summary["bytes"]["up_total"] == sum(frames) + crossed["up_total"]
    assert sum(r["bytes_up"] for r in summary["per_round"]) == summary["bytes"]["up_total"]
    page = (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    assert "Activations and gradients up" in page
    assert "the model is cut: embedding, the first block, final norm and head" in page


@pytest.mark.slow
def test_an_exported_model_joins_both_parts(place, tmp_path):
    import torch

    play(place, recipe_of(place, {}), tmp_path / "run", report=True)
    Run(tmp_path / "run").export(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "the model is cut" in card
    exported = load(str(tmp_path / "model"), tmp_path).model
    used = in_use.open_model(tmp_path / "run").model
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        assert torch.allclose(exported(ids).logits, used(ids).logits, atol=1e-5)
    now = {name: p.detach().numpy() for name, p in exported.named_parameters()}
    for name, x in Run(tmp_path / "run").params().items():
        assert np.allclose(now[name], x), name
    before = Run(tmp_path / "run").params(0)
    assert all(np.abs(now[name] - x).max() > 0 for name, x in before.items() if "layers" in name)


@pytest.mark.slow
def test_adapters_train_on_both_sides_and_hidden_sums_hold_the_device_part(place, tmp_path):
    adapters = {"kind": "lora", "rank": 2}
    hidden = {"privacy": "hidden", "stage": HIDDEN, "merge": {"kind": "secure_sum"}}
    more = {"trainable": adapters, "eval": {"every": 0}, **hidden}
    play(place, recipe_of(place, {"shape": "head", **EXACT}, model={"base": "untied"}, **more), tmp_path)
    run = Run(tmp_path)
    with RunStore(tmp_path) as store:
        sent = store.run()["facts"]["spec"]
    assert all(".0." in name for name, *_ in sent), "only the first block's adapters travel"
    assert any(np.abs(x).max() > 0 for name, x in run.params().items() if ".1." in name and "lora_B" in name)
    assert any(np.abs(x).max() > 0 for name, x in run.params().items() if ".0." in name and "lora_B" in name)


@pytest.mark.slow
def test_check_says_the_cut_its_bytes_and_that_nothing_covers_them(place):
    found = check.examine(recipe_of(place, {"shape": "head"}, model={"base": "untied"}), place, fast=True)
    assert found["split"]["token_up"] == WIDTH + 2 + VOCABULARY.bit_length() / 8
    assert found["split"]["token_down"] == WIDTH + 2
    console = Console(width=100, record=True, file=io.StringIO())
    check_screen.show_check(console, found, "split.toml")
    text = " ".join(console.export_text().split())
    assert "the server sees activations and gradients of every token" in text
    assert "no epsilon covers them" in text
    assert "the next tokens, which are the text itself" in text
    assert "behind block 1 (head)" in text


CACHED = {"shape": "head", "held_by": "gateway"}


@pytest.mark.slow
def test_activations_of_a_frozen_part_go_up_once_and_train_as_the_model_would(place, tmp_path):
    """A frozen part is the same as training the later layers alone, where no activation is rounded."""
    layers = {"kind": "layers", "layers": ["model.layers.1.*"]}
    more = {"trainable": layers, "round": {"rounds": 3, "sampling": "all"}}
    play(place, recipe_of(place, **more), tmp_path / "whole")
    seen = play(
        place, recipe_of(place, {**CACHED, "device_part": "frozen", "activations": "float32"}, **more), tmp_path / "cut"
    )
    whole, cut = vector_of(tmp_path / "whole"), vector_of(tmp_path / "cut")
    assert np.abs(whole - Run(tmp_path / "whole").vector(0)).max() > 1e-2
    assert np.abs(whole - cut).max() < 1e-3
    crossed = [e for e in seen if isinstance(e, events.SplitSession)]
    assert [e.bytes_up > 0 for e in crossed] == [True] * 3 + [False] * 6
    assert all(e.bytes_down == 0 for e in crossed)


@pytest.mark.slow
def test_a_local_loss_trains_the_device_part_first_and_then_the_rest_on_activations(place, tmp_path, monkeypatch):
    split = {**CACHED, "loss": "local", "local_rounds": 2, "activations": "int4"}
    rounds = {"round": {"rounds": 4, "sampling": "all"}}
    seen = play(place, recipe_of(place, split, **rounds), tmp_path / "calm", report=True)
    run = Run(tmp_path / "calm")
    middle, last = (run.params(n) for n in (2, 4))
    assert np.abs(run.vector(2) - run.vector(0)).max() > 1e-2
    for name, x in last.items():
        behind = ".1." in name or name == "model.norm.weight"
        assert np.array_equal(run.params(0)[name], middle[name]) is behind, name
        assert np.array_equal(middle[name], x) is not behind, name
    losses = [e.head["loss_last"] for e in seen if isinstance(e, events.RoundFinished)]
    assert losses[1] < losses[0]
    assert losses[3] < losses[2]
    crossed = [(e.round, e.bytes_up > 0) for e in seen if isinstance(e, events.SplitSession)]
    assert crossed == [(2, True)] * 3 + [(3, False)] * 3
    assert run.export(tmp_path / "model").is_dir()
    assert "activations go up once" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")

    cache = SessionFiles.cache
    for at, kept in ((2, True), (1, False)):  # A kill when the bytes are counted, with the activations kept or not.
        calls = []

        def dying(self, *given, at=at, kept=kept, calls=calls):
            calls.append(1)
            if len(calls) < at or kept:
                cache(self, *given)
            if len(calls) == at:
                raise Killed

        monkeypatch.setattr(SessionFiles, "cache", dying)
        with pytest.raises(Killed):
            play(place, recipe_of(place, split, **rounds), tmp_path / "stormy", resume=(tmp_path / "stormy").is_dir())
    monkeypatch.setattr(SessionFiles, "cache", cache)
    play(place, recipe_of(place, split, **rounds), tmp_path / "stormy", resume=True)
    assert np.array_equal(vector_of(tmp_path / "stormy"), vector_of(tmp_path / "calm"))
    again = [(e.round, e.bytes_up > 0) for e in events_of(tmp_path / "stormy", events.SplitSession)]
    assert again == crossed


@pytest.mark.slow
def test_noise_on_tokens_changes_the_run_and_its_promise_is_on_the_card(place, tmp_path):
    noise = {"token_noise": 0.5, "clip_activations": 0.2, "clip_gradients": 0.5}
    play(place, recipe_of(place, {}), tmp_path / "plain")
    play(place, recipe_of(place, noise), tmp_path / "noised")
    play(place, recipe_of(place, noise), tmp_path / "again")
    assert not np.array_equal(vector_of(tmp_path / "plain"), vector_of(tmp_path / "noised"))
    assert np.array_equal(vector_of(tmp_path / "noised"), vector_of(tmp_path / "again"))
    claims = " ".join(check.examine(recipe_of(place, noise), place, fast=True)["claims"])
    assert "clipped and noised with multiplier 0.5: epsilon" in claims
    assert "this is no promise about the text" in claims
    assert "no epsilon covers them" not in claims


NOISED = {"privacy": "central_dp", "dp": {"epsilon": 8.0, "delta": 1e-3, "clip_l2": 1.0}}
RECORDS = {"privacy": "local_dp", "dp": {**NOISED["dp"], "unit": "example"}}
REFUSED = [
    ({}, NOISED, "learns from activations and gradients"),
    ({"server_parts": "frozen"}, {**NOISED, "privacy": "distributed_dp"}, "against the server itself"),
    (
        {"server_parts": "frozen"},
        RECORDS,
        "record by record",
    ),
    ({}, {"personal": {"method": "fine_tune"}}, "never holds the whole model"),
    ({}, {"eval": {"on_devices": True}}, "cannot compute its loss"),
    ({}, {"codec": "adaptive"}, "share the same link"),
    ({}, {"round": {"keep": "best"}}, "only the newest is kept"),
    ({}, {"engine": {"batch_devices": 2}}, "a session of its own"),
    ({}, {"trainable": {"last_blocks": 2, "block_shares": {"1": 0.5, "2": 0.5}}}, "all of both parts"),
    ({}, {"trainable": {"kind": "lora", "rule": "rolora"}}, "one adapter"),
    ({}, {"strategy": {"kind": "scaffold"}}, "are of whole models"),
    ({}, {"strategy": {"kind": "fedadam"}}, "different points"),
    ({}, {"merge": {"kind": "median"}}, "in the mean all the same"),
    ({"server_parts": "in_turn"}, {"simulation": {"engine": "pool"}}, "cannot train at the same time"),
    ({"cut": 0, "shape": "head"}, {}, "splits nothing"),
    ({"device_part": "frozen", "held_by": "gateway"}, {}, "would not go up once"),
    ({"device_part": "frozen", "shape": "head"}, {}, "keeps its activations"),
    ({**CACHED, "device_part": "frozen", "loss": "local"}, {}, "would train nothing"),
    ({**CACHED, "loss": "local", "server_parts": "in_turn"}, {}, "no gradient crosses"),
    ({**CACHED, "loss": "local", "local_rounds": 2}, {}, "both parts need rounds"),
    ({"local_rounds": 2}, {}, "is of split.loss"),
    ({**CACHED, "loss": "local"}, {"downlink": [{"kind": "quantize", "bits": 8}]}, "would go up in each of them"),
    (
        {**CACHED, "loss": "local"},
        RECORDS,
        "record",
    ),
    ({"token_noise": 1.0}, {}, "nothing bounds what the noise has to hide"),
    ({"clip_gradients": 1.0}, {}, "a clip alone hides little"),
    ({"shape": "head", "token_noise": 1.0, "clip_activations": 1.0, "clip_gradients": 1.0}, {}, "the text itself"),
]


@pytest.mark.parametrize(("split", "more", "reason"), REFUSED)
def test_what_does_not_go_with_a_split_model_is_refused_with_its_reason(place, split, more, reason):
    with pytest.raises(RecipeError) as refusal:
        recipe_of(place, split, **more)
    assert reason in str(refusal.value)


@pytest.mark.slow
def test_noise_goes_with_a_rest_that_stays_as_it_is_and_says_what_it_covers(place):
    frozen = {"server_parts": "frozen"}
    stage = {"stage": [], "merge": {"kind": "sum"}}
    found = check.examine(recipe_of(place, frozen, **NOISED, **stage), place, fast=True)
    assert any("the promise does not hold against whoever sees what crosses the cut" in c for c in found["claims"])
    assert found["privacy"]["seen"][0]["promised"] == "nothing is promised"


@pytest.mark.parametrize(
    ("split", "base", "reason"),
    [
        ({"cut": 2}, "tied", "leaves nothing to train behind the cut"),
        ({"cut": 7, "server_parts": "frozen"}, "tied", "the model has 2 blocks"),
        ({"shape": "head"}, "tied", "it is the embedding itself"),
        ({"cut": 2, **CACHED, "device_part": "frozen"}, "tied", "the model has 2 blocks"),
    ],
)
def test_a_cut_that_the_model_does_not_have_is_refused(place, split, base, reason):
    with pytest.raises(ModelError) as refusal:
        check.examine(recipe_of(place, split, model={"base": base}), place, fast=True)
    assert refusal.value.code == "E-CUT"
    assert reason in str(refusal.value)


@pytest.mark.slow
def test_a_device_without_memory_for_its_part_is_named_and_its_limit_is_of_the_part(place):
    whole = check.examine(recipe_of(place), place, fast=True)["memory_bytes"]
    part = check.examine(recipe_of(place, {}), place, fast=True)["memory_bytes"]
    assert part < whole
    room = {"engine": {"device_memory_mb": {"home-1": 1.0}}}
    with pytest.raises(ModelError) as refusal:
        check.examine(recipe_of(place, {}, **room), place, fast=True)
    assert refusal.value.code == "E-MEMORY"
    assert "'home-1', up to block 1" in refusal.value.what
    enough = {"engine": {"device_memory_mb": {"home-*": part / 1e6 + 1}}}
    assert check.examine(recipe_of(place, {}, **enough), place, fast=True)["split"]


def test_an_extension_has_no_cut(place, tmp_path):
    recipe = recipe_of(place, {})
    with pytest.raises(EdgewiseError) as refusal:
        simulation.run(recipe, out=tmp_path, recipe_dir=place, extensions=["toy"], report=False)
    assert refusal.value.code in ("E-COMBO", "E-CUT")
