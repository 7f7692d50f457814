"""The Python API where no run begins: early refusals, settings, parts, and digests of objects."""

from __future__ import annotations

import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import edgewise as ew
from edgewise.apps.federation.digest import digest
from edgewise.apps.federation.sweep import sweep_trials
from edgewise.apps.federation.texts import OWNER, device_text_lines, records
from edgewise.apps.runs import parts
from edgewise.core.stage import Stage
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan
from edgewise.plan.recipe.data import DataSection
from edgewise.privacy.clip import clip


def test_parts_that_do_not_exist_are_refused_before_a_folder_is_made(folder: Path) -> None:
    with pytest.raises(ew.EdgewiseError, match=r"E-NAME: \[\[stage\]\] 1: .*quantise.*did you mean `quantize`"):
        ew.simulate({"privacy": "none", "stage": [{"kind": "quantise"}]}, out="run")
    assert not list(folder.iterdir())


def test_a_setting_finds_its_section() -> None:
    alone = ew.Recipe(privacy="none", batch=4, every=5, personal={"method": "fine_tune"}, steps=3).tables
    assert (alone["training"], alone["eval"]["every"], alone["personal"]["steps"]) == ({"batch": 4}, 5, 3)
    made = ew.Recipe(privacy="none", rounds=20, lr=1e-3, data={"holdout": 0.2}, strategy={"kind": "fedadam"})
    assert made.tables == {
        "privacy": "none",
        "round": {"rounds": 20},
        "training": {"lr": 1e-3},
        "data": {"holdout": 0.2},
        "strategy": {"kind": "fedadam"},
    }
    changed = made.but({"training.lr": 0.5, "name": "x"})
    assert (changed.tables["training"], changed.tables["name"], made.tables["training"]) == (
        {"lr": 0.5},
        "x",
        {"lr": 1e-3},
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"privacy": "none", "round": {"rounds": 0}}, "E-VALUE"),
        ({"privacy": "none", "roundz": 3}, "E-KEY.*did you mean `round`"),
        ({"privacy": "none", "devices": 3}, "E-KEY: `devices` is a key of .* sections"),
        ({"privacy": "distributed_dp", "rounds": 20}, r"E-MISSING: .*needs dp.epsilon \(or dp.noise_multiplier\)\."),
        (
            {"privacy": "local_dp", "dp": {"unit": "example", "epsilon": 8.0}},
            "E-MISSING: .*needs dp.delta and dp.clip_l2",
        ),
    ],
)
def test_settings_are_checked_at_once(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ew.EdgewiseError, match=said):
        ew.Recipe(**settings)


def test_columns_of_rows_that_a_federation_is_given_need_no_source() -> None:
    rows = {"prompt": "question", "text": "answer", "packing": "none"}
    assert ew.Recipe(privacy="none", data=rows).tables["data"] == rows
    with pytest.raises(ew.RecipeError, match=r"E-KEY"):
        ew.Recipe(privacy="none", data={**rows, "promt": "question"})
    with pytest.raises(ew.RecipeError, match=r"has none"):
        ew.Recipe(privacy="none", data={**rows, "source": "plays"})


def test_an_epsilon_alone_needs_data_whose_devices_can_be_counted() -> None:
    said = r"E-MISSING: .*needs dp.delta and dp.clip_l2.*add to \[dp\]: delta = 1e-5 .*clip_l2 = 1.0 \(the largest L2"
    with pytest.raises(ew.RecipeError, match=said):
        ew.Federation(ew.Recipe(privacy="distributed_dp", rounds=20, epsilon=8.0))
    with pytest.raises(ew.RecipeError, match="adaptive_clip = true"):
        ew.Federation(ew.Recipe(privacy="central_dp", rounds=20, epsilon=8.0))
    assert not ew.Federation(ew.Recipe(privacy="none"), data={"alice": ["a text"]}).chosen


@pytest.mark.parametrize("word", ["central_dp", "distributed_dp", "local_dp"])
@pytest.mark.parametrize("devices", [8, 1000])
def test_a_federation_chooses_what_an_epsilon_alone_leaves_open(word: str, devices: int) -> None:
    """The promise is the epsilon that was asked for, and the number of devices decides delta and cohorts."""
    fed = ew.Federation(ew.Recipe(privacy=word, rounds=8, epsilon=8.0), data={f"d{i}": ["a"] for i in range(devices)})
    plan = compile_plan(
        fed.recipe, Spec.of([("q_proj.A", (2, 8), "float32"), ("q_proj.B", (8, 2), "float32")]), devices, BUILT_IN
    )
    assert plan.spend is not None
    assert 7.5 < (plan.spend.card.of_release or 0.0) <= 8.0
    assert fed.recipe.dp.delta < devices**-1.1
    assert fed.chosen["dp.delta"] == fed.recipe.dp.delta
    assert (fed.recipe.round.cohort == 0) == (devices == 8)
    given = ew.Recipe(privacy=word, epsilon=8.0, delta=1e-7, sampling="all", training={"lr": 0.1})
    own = ew.Federation(given, data={f"d{i}": ["a"] for i in range(8)})
    assert own.chosen == {"dp.clip_l2": 1.0}, "what a person gives stays, with all that belongs to it"


@pytest.mark.parametrize("name", ["accuracy", "perplexity", "loss_last", "seconds"])
def test_a_simulator_metric_shares_its_name_with_no_other_figure(name: str) -> None:
    recipe = {"privacy": "none", "metric": [{"name": "accuracy", "lower": 0.0, "upper": 1.0}]}
    ew.Federation(recipe, metrics={"rouge": len})
    with pytest.raises(ew.EdgewiseError, match=f"E-EXTENSION: {name} is"):
        ew.Federation(recipe, metrics={name: len})


def test_a_notebook_shows_tables() -> None:
    fed = ew.Federation({"privacy": "none", "name": "toy"}, data={"a": ["x"], "b": ["y"]})
    assert "toy" in fed._repr_html_()
    assert "2 devices" in fed._repr_html_()
    done = ew.Round(
        number=3, met=True, metrics={"<i>": 0.25}, contributions=2, lost={}, bytes_up=10, bytes_down=0, seconds=1.0,
        epsilon=None, code=None, digest="", spec=Spec.of([]), _read=lambda: np.zeros(0, np.float32),
    )  # fmt: skip
    assert "&lt;i&gt;" in done._repr_html_()
    assert "0.25" in done._repr_html_()


def test_every_part_has_a_name_here() -> None:
    names = {n for kind in (BUILT_IN.stages, BUILT_IN.merges, BUILT_IN.posts, BUILT_IN.strategies) for n in kind}
    assert names == set(ew.PARTS)
    assert (
        parts.part_table(ew.clip(1.0), "")
        == parts.part_table(ew.clip(l2=1.0), "")
        == ({"kind": "clip", "l2": 1.0}, clip)
    )
    assert repr(ew.feedback()) == "feedback()"  # what is inside it follows it in the list
    with pytest.raises(ew.EdgewiseError, match=r"E-VALUE: top_k.*fraction"):
        ew.top_k(2.0)
    with pytest.raises(ew.EdgewiseError, match=r"E-TYPE: clip\(.*"):
        ew.clip(1.0, size=3)


def _doubled(level: int = 2) -> Stage:
    """Double."""
    raise AssertionError("a part that is chosen is not made")


def test_stages_become_tables_of_the_recipe(folder: Path) -> None:
    mine = ew.part(_doubled)
    given = [ew.weigh(), ew.clip(1.0), mine(3), partial(clip, l2=2.0), {"kind": "top_k", "fraction": 0.5}, "rotate"]
    fed = ew.Federation({"privacy": "none"}, data={"a": ["x"]}, stages=given, strategy=ew.fedadam(lr=0.1), merge="sum")
    assert [s["kind"] for s in fed.recipe.stage] == ["weigh", "clip", "_doubled", "clip", "top_k", "rotate"]
    assert fed.recipe.stage[2] == {"kind": "_doubled", "level": 3}
    assert fed.recipe.strategy == {"kind": "fedadam", "lr": 0.1}
    assert fed.recipe.data.source == "jsonl"
    with pytest.raises(ew.EdgewiseError, match="E-EXTENSION: stages is a function"):
        ew.Federation({"privacy": "none"}, stages=[_doubled])
    assert not list(folder.iterdir())


def test_records_of_any_form() -> None:
    class Numbered:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, at: int) -> str:
            return "ab"[at]

    forms = (["a", "b"], ("a", "b"), iter(["a", "b"]), Numbered(), lambda: ["a", "b"])
    assert all(list(records(form, "d")) == ["a", "b"] for form in forms)
    for wrong in ("text", {"text": "row"}, 3):
        with pytest.raises(ew.EdgewiseError, match="E-DATA-FORMAT"):
            list(records(wrong, "d"))
    section = DataSection(source="jsonl", path="x", owner=OWNER, prompt="q", text="a")
    rows = {"d": [{"q": "one", "a": np.float32(2), "more": object()}]}
    assert list(device_text_lines(rows, section)) == [("d", '{"edgewise_device": "d", "a": 2.0, "q": "one"}')]
    with pytest.raises(ew.EdgewiseError, match=r"E-DATA-COLUMN.*'q'"):
        list(device_text_lines({"d": ["alone"]}, section))


def test_a_digest_is_of_what_decides_an_objects_work() -> None:
    def made(source: str, **more: object) -> object:
        names: dict[str, object] = {"__name__": "notebook", "np": np, **more}
        exec(compile(source, "<cell>", "exec"), names)
        return names["f"]

    first = made("def f(x, k=2):\n    return g(x) * k + C\ndef g(x): return x", C=1)
    same = made("\n\n# a comment\ndef f(x, k=2):\n    return g(x) * k + C  # more\ndef g(x): return x", C=1)
    assert digest(first) == digest(same)
    others = [
        made("def f(x, k=3):\n    return g(x) * k + C\ndef g(x): return x", C=1),  # a default
        made("def f(x, k=2):\n    return g(x) * k + C\ndef g(x): return x", C=2),  # a global
        made("def f(x, k=2):\n    return g(x) * k + C\ndef g(x): return -x", C=1),  # a function that it calls
        made("def make(C):\n  def g(x): return x\n  def f(x, k=2):\n    return g(x) * k + C\n  return f\nf = make(5)"),
        partial(first, 1),
        np.zeros(3),
        np.zeros(3, np.float32),
        np.ones(3),
        [1, "a"],
        [1, "b"],
    ]
    found = [digest(x) for x in (first, *others)]
    assert len(set(found)) == len(found)
    assert not any(f.startswith("unknown") for f in found)
    opaque = (i for i in ())
    assert digest(opaque).startswith("unknown:generator:")
    assert digest(opaque) != digest(opaque), "nobody can tell whether it is the same"


def test_a_grid_has_a_folder_for_each_combination() -> None:
    grid = {"training.lr": [0.1, 0.3], "strategy.kind": ["fedavg", "fed/adam"]}
    names = [t.run_dir.as_posix() for t in sweep_trials(grid, Path("out"))]
    assert names == [
        "out/lr=0.1,kind=fedavg", "out/lr=0.1,kind=fed_adam", "out/lr=0.3,kind=fedavg", "out/lr=0.3,kind=fed_adam",
    ]  # fmt: skip
    for wrong in ({}, {"training.lr": [1]}, {"training.lr": "12"}, {"training.lr": [1, 2], "name": []}):
        with pytest.raises(ew.EdgewiseError, match="E-MISSING"):
            sweep_trials(wrong, Path("out"))


def test_the_readme_of_settings_is_a_file(tmp_path: Path) -> None:
    """A path, tables and settings are one recipe."""
    text = 'privacy = "none"\n[round]\nrounds = 3\n'
    (tmp_path / "r.toml").write_text(text)
    plain = tomllib.loads(text)
    by = [
        ew.Federation(form).recipe.sha256()
        for form in (tmp_path / "r.toml", plain, ew.Recipe(privacy="none", rounds=3))
    ]
    assert len(set(by)) == 1
