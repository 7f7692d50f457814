"""`edgewise audit` as a command, on a small model and text: statuses, files, words; what is broken is a real part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from edgewise.apps.cli import main
from edgewise.apps.federation import poisoning
from edgewise.apps.runs import recipe_file
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import Stage
from edgewise.drivers.simulation import keys
from edgewise.learn import dp_sgd, train
from edgewise.plan.mechanisms import base, central, known
from edgewise.plan.recipe.recipe import Recipe
from edgewise.privacy import distributed, grid
from support.audited import lying_local

pytestmark = pytest.mark.slow  # every test here loads a model

WORDS = {"none": "sum", "central_dp": "sum", "distributed_dp": "secure_sum", "local_dp": "sum", "example": "sum"}
DP = ["dp.epsilon=8.0", "dp.delta=1e-5", "dp.clip_l2=0.5"]
RECIPE = """
name = "small"
privacy = "none"
[data]
source = "text"
path = "texts"
sequence_len = 32
[round]
rounds = 2
minimum = 0.9
[training]
local_steps = 2
batch = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support import tiny_model

    path = tmp_path_factory.mktemp("audited")
    tiny_model.save(path / "model")
    (path / "small.toml").write_text(RECIPE + '[model]\nbase = "model"\n', encoding="utf-8")
    for i in range(8):
        (path / "texts" / f"device{i}").mkdir(parents=True)
        lines = [f"the {i} quick brown foxes jump over {n} lazy dogs and devices" for n in range(60)]
        (path / "texts" / f"device{i}" / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    return path


def run(folder: Path, word: str, *more: str) -> Result:
    sets = [
        f'privacy="{"local_dp" if word == "example" else word}"',
        f'merge.kind="{WORDS[word]}"',
        *(DP if word != "none" else []),
    ]
    sets += ['dp.unit="example"', "dp.sample_rate=0.2"] if word == "example" else []
    flags = [flag for s in sets for flag in ("--set", s)]
    out = str(folder / word)
    return CliRunner().invoke(main.app, ["audit", str(folder / "small.toml"), "--quick", "--out", out, *flags, *more])


def found(folder: Path, word: str) -> tuple[dict, str]:
    page = (folder / word / "audit.html").read_text(encoding="utf-8")
    return json.loads((folder / word / "audit.json").read_text(encoding="utf-8")), page


@pytest.mark.long(sample=1)
@pytest.mark.parametrize("word", ["none", "distributed_dp", "example"])
def test_what_holds_is_told_in_true_words(folder: Path, word: str) -> None:
    result = run(folder, word)
    assert result.exit_code == 0, result.output
    told, page = found(folder, word)
    text = " ".join(result.stdout.split())
    trials = {
        "none": [],
        "example": ["mechanism", "grain", "steps", "one run"],
        "distributed_dp": ["length", "mechanism", "rounds", "one run"],
    }[word]
    assert [f["name"] for f in told["findings"]] == trials
    assert all(f["holds"] for f in told["findings"])
    assert ("No epsilon is claimed" in text) == ("no epsilon is claimed" in page) == (word == "none")
    assert (told["claim"] is None) == (word == "none")
    nothing, one_update, _ = told["memory"]
    assert nothing["auc"] == 0.5  # the model before any training knows no half of a text better than the other
    assert one_update["auc"] >= 0.5
    assert nothing["members"] >= 2
    assert 0 <= nothing["others"] - nothing["members"] <= 1
    if word == "none":
        assert one_update["auc"] > 0.5
        return
    assert told["claim"]["epsilon"] == pytest.approx(8.0, rel=0.01)
    z = f"{told['claim']['noise_multiplier']:.4g}"
    assert "Claimed of the whole run: epsilon 8 at delta 1e-05" in text
    assert f"at noise multiplier {z}" in text
    assert f"at noise multiplier {z}" in page
    for f in told["findings"]:
        for left_out in f["left_out"]:
            assert left_out in text
            assert left_out.replace("'", "&#x27;") in page
    leaks = [x["what"] for x in told["leaks"]]
    assert sum(x["seen"] for x in told["leaks"]) == 1
    if word == "example":
        assert "the same as it leaves the device, every step noised" in leaks
        assert any(x.startswith("whole model, the release") and x.endswith("the noise of every step") for x in leaks)


def test_the_cut_of_a_split_model_is_attacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise.apps.audit import crossings

    monkeypatch.setattr(crossings, "STEPS", 600)
    split = ("split.cut=1", 'split.activations="int4"')
    result = run(folder, "none", *(flag for s in split for flag in ("--set", s)))
    assert result.exit_code == 0, result.output
    told, page = found(folder, "none")
    one, two = told["crossings"]
    assert (one["kind"], one["cut"], one["rounding"], one["seen"]) == ("activations", 1, "int4", True)
    assert (two["kind"], two["rounding"]) == ("output_gradients", "int8")
    assert one["top1"] > one["unigram"] + 0.3
    assert "the server sees this" in " ".join(result.stdout.split())
    assert "Tokens recovered at the cut" in page


@pytest.mark.long(sample=0)
def test_the_leaks_of_record_privacy_are_of_its_dp_sgd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch, cohort and whole model train with the recipe's clip and noise; "in the clear" does not."""
    used, true = [], dp_sgd.noised_gradient

    def watched(model, loss, records, flat, dp, expected, key):
        used.append((dp, flat.spec.dim))
        return true(model, loss, records, flat, dp, expected, key)

    monkeypatch.setattr(dp_sgd, "noised_gradient", watched)
    result = run(folder, "example")
    assert result.exit_code == 0, result.output
    told, _ = found(folder, "example")
    sizes = [dim for dp, dim in used if dim not in (2048, 512, 64)]  # of the trials
    assert len(set(sizes)) == 2  # the whole model, and what the recipe trains
    assert sizes.count(max(sizes)) == 8  # one step each
    assert sizes.count(min(sizes)) == 2 * (1 + 7 + 1)  # two steps: the batch, the others, the planted secret
    assert {dp.z for dp, _ in used} == {told["claim"]["noise_multiplier"]}
    assert {dp.clip for dp, _ in used} == {0.5}


@pytest.mark.long(sample=1)
@pytest.mark.parametrize("word", ["central_dp", "distributed_dp", "local_dp", "example"])
def test_noise_of_half_the_size_ends_the_command_with_8(
    folder: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """The samplers give less; nothing of the audit is touched."""
    true = distributed.discrete_gaussian
    for module in (distributed, grid):
        monkeypatch.setattr(module, "discrete_gaussian", lambda s, n, key: true(max(1, s // 2), n, key))
    check_broken(folder, word)


@pytest.mark.long(sample=1)
@pytest.mark.parametrize("word", ["central_dp", "distributed_dp", "local_dp", "example"])
def test_a_missing_clip_ends_the_command_with_8(folder: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    true = base.clip
    monkeypatch.setattr(base, "clip", lambda l2: replace(true(l2), encode=lambda p, memory, *_: (p, memory)))
    monkeypatch.setattr(dp_sgd, "min", lambda *_: 1.0, raising=False)
    check_broken(folder, word)


def test_local_noise_accounted_at_twice_its_size_ends_the_command_with_8(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device of other text is as far away as two clips, and one is counted, by the fold and the accountant alike."""
    monkeypatch.setattr(known, "MECHANISMS", (lying_local("zero_out"),))
    check_broken(folder, "local_dp")


@pytest.mark.long(sample=1)
@pytest.mark.parametrize("word", ["central_dp", "example"])
def test_noise_that_comes_again_ends_the_command_with_8(
    folder: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """The server's in the next round, a device's in the next step."""
    module = {"central_dp": keys, "example": train}[word]
    true = module.derive
    monkeypatch.setattr(module, "derive", lambda key, *of: true(key, *(x for x in of if type(x) is not int)))
    check_broken(folder, word)


def test_a_bit_that_is_counted_by_half_ends_the_command_with_8(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adaptive clip as it was where zeroed devices are neighbours: b - 1/2 is sent, and s / 2 counted."""
    true = central.following_clip

    def old(start: float, z: float, cohort: float) -> Stage:
        stage = true(start, z, cohort)

        def infer(space: Space) -> Space:
            return stage.infer(space.but(adjacency="add_remove")).but(adjacency=space.adjacency, keeps_zero=True)

        def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
            return stage.encode(payload, memory, space.but(adjacency="add_remove"), turn)

        return replace(stage, infer=infer, encode=encode)

    generous = ("--set", "dp.adaptive_clip=true", "--set", "dp.epsilon=60.0")
    result = run(folder, "central_dp", *generous)
    assert result.exit_code == 0, result.output
    monkeypatch.setattr(central, "following_clip", old)
    check_broken(folder, "central_dp", *generous)


def check_broken(folder: Path, word: str, *more: str) -> None:
    result = run(folder, word, *more)
    assert result.exit_code == 8, result.output
    assert "E-AUDIT" in result.stderr
    told, page = found(folder, word)
    broken = [f for f in told["findings"] if not f["holds"]]
    assert broken
    assert all(f["lower"] > f["claimed"] and f["epsilon_lower"] > f["epsilon_claimed"] for f in broken)
    assert "must not run" in page
    assert "BROKEN" in page
    assert told["leaks"] == told["memory"] == []
    assert np.isfinite([f["lower"] for f in told["findings"]]).all()


def test_a_model_in_bfloat16_is_audited_as_it_is_trained(folder: Path) -> None:
    """Some layers train in float32, the frozen rest stays in bfloat16: what the attacks run has to know of both."""
    half = ['model.precision="bfloat16"', 'trainable.kind="layers"', 'trainable.layers=["model.layers.*"]']
    result = run(folder, "none", *(flag for s in half for flag in ("--set", s)))
    assert result.exit_code == 0, result.output
    assert "what the model remembers" in result.output


def small(folder: Path, **changes: object) -> Recipe:
    overrides = {"round.minimum": 1.0, "round.rounds": 2, "training.lr": 0.01, **changes}
    return recipe_file.read(folder / "small.toml", overrides, ())[0]


def test_liars_ruin_a_sum_and_no_robust_mean(folder: Path) -> None:
    recipe = small(folder, merge={"kind": "robust_mean", "byzantine": 2})
    found = poisoning.play_poisonings(recipe, folder, attacks=["flip"], shares=[0.25])
    assert (found["devices"], found["rounds"]) == (8, 2)
    rows = {(row["defence"], row["attack"]): row for row in found["rows"]}
    assert {row["liars"] for row in rows.values()} == {2}
    assert rows["sum", "flip"]["harm"]
    assert rows["sum", "none"]["worse"] == 1.0
    assert not rows["recipe", "flip"]["harm"]


def test_all_combinations_are_in_the_table_and_on_the_page(folder: Path) -> None:
    flags = ["--liars", "0.25", "--liars", "0.13", "--skew", "sorted", "--attack", "labels"]
    flags += ["--defence", "sum", "--defence", "nnm+trimmed_mean", "--set", "round.rounds=1"]
    result = CliRunner().invoke(
        main.app, ["audit", str(folder / "small.toml"), "--poison", *flags, "--out", str(folder / "poisoned")]
    )
    assert result.exit_code == 0, result.output
    found = json.loads((folder / "poisoned" / "poison.json").read_text(encoding="utf-8"))
    keys = {(r["attack"], r["defence"], r["skew"], r["liars"]) for r in found["rows"]}
    assert len(found["rows"]) == len(keys) == 2 * 2 * 2
    assert {r["factor"] > 0.5 for r in found["costs"]} == {True}
    assert {(c["defence"], c["skew"], c["share"]) for c in found["costs"]} == {
        ("nnm+trimmed_mean", "sorted", share) for share in (0.25, 0.13)
    }
    page = (folder / "poisoned" / "poison.html").read_text(encoding="utf-8")
    for words in ("1 of 8 devices lie, text dealt by likeness", "2 of 8 devices lie, text dealt by likeness"):
        assert words in page
        assert words in " ".join(result.output.split())
    assert page.count('<th scope="row">labels') == 4


def test_a_defence_that_cannot_hold_is_refused_before_any_play(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poisoning, "_play", lambda *_: pytest.fail("a play began"))
    with pytest.raises(CompositionError, match="krum"):
        poisoning.play_poisonings(small(folder), folder, shares=[0.4], defences=["sum", "krum"])


def test_what_is_not_played_against_liars_is_refused(folder: Path) -> None:
    alone = CliRunner().invoke(main.app, ["audit", str(folder / "small.toml"), "--liars", "0.2"])
    assert alone.exit_code == 2
    assert "E-VALUE" in alone.output
    many = CliRunner().invoke(main.app, ["audit", str(folder / "small.toml"), "--poison", "--liars", "0.5"])
    assert many.exit_code == 2
    assert "0.5 of the devices" in many.output
    for option, given in (("defence", "hope"), ("attack", "rudeness"), ("skew", "tilted")):
        unknown = CliRunner().invoke(main.app, ["audit", str(folder / "small.toml"), "--poison", f"--{option}", given])
        assert unknown.exit_code == 2
        assert f"no {option} is called '{given}'" in " ".join(unknown.output.split())
