"""Statistics of the devices' text before training: the numbers, their bounds, and their way through the pipeline."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.apps.simulate import statistics
from edgewise.apps.simulate.statistics import statistics_recipe
from edgewise.apps.terminal import statistics_screen
from edgewise.core.errors import RecipeError
from edgewise.learn.text.statistics import (
    BOUND_L2,
    POWERS,
    DeviceTextCounts,
    first_statistics,
    histogram_divergence,
    power_buckets,
    second_statistics,
)
from edgewise.plan.recipe import recipe as recipes

TEXT = """
name = "counted"
privacy = "{word}"
[data]
source = "text"
path = "texts"
partition = "owner"
{more}
"""
DP = "[dp]\nepsilon = 8\ndelta = 1e-3\nclip_l2 = 1.0\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five devices: device i has i + 1 documents of 10 (i + 1) words. Four are about the weather."""
    made = tmp_path_factory.mktemp("counted")
    for i in range(5):
        (made / "texts" / f"site-{i}").mkdir(parents=True)
        word = "rain and sun " if i else "bolts "
        for d in range(i + 1):
            (made / "texts" / f"site-{i}" / f"{d}.txt").write_text(word * (10 * (i + 1)))
    return made


def counted(folder: Path, out: Path, word: str, more: str = "") -> dict[str, Any]:
    return statistics.play_statistics(recipes.parse(TEXT.format(word=word, more=more)), folder, out)


@pytest.mark.slow
def test_a_hidden_sum_of_histograms_is_their_mean(folder: Path, tmp_path: Path) -> None:
    plain = counted(folder, tmp_path / "plain", "none")
    hidden = counted(folder, tmp_path / "hidden", "hidden")
    assert (plain["devices"], plain["contributed"], hidden["contributed"]) == (5, [5, 5], [5, 5])
    documents = np.bincount(power_buckets(np.arange(1, 6)), minlength=POWERS) / 5
    assert plain["parts"]["documents"]["values"] == pytest.approx(documents.tolist())
    for name, part in plain["parts"].items():
        assert sum(part["values"]) == pytest.approx(1.0, abs=1e-5), name
        assert hidden["parts"][name]["values"] == pytest.approx(part["values"], abs=2e-4), name
    far = np.array(plain["parts"]["distance"]["values"])
    assert far.nonzero()[0].min() < 3, "four devices write of the weather"
    assert far.nonzero()[0].max() > 5, "one writes of bolts"
    shown = list(statistics_screen.statistics_lines(hidden, {}))
    assert "5 devices" in shown[0]


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.parametrize("word", ["distributed_dp", "central_dp"])
def test_noised_statistics_are_charged_and_say_their_noise(folder: Path, tmp_path: Path, word: str) -> None:
    found = counted(folder, tmp_path / "noised", word, DP)
    assert 0.0 < found["epsilon"] <= found["budget"] == 8.0
    vocabulary = found["parts"]["vocabulary"]
    assert len(vocabulary["values"]) > 1000
    assert np.std(vocabulary["values"]) == pytest.approx(vocabulary["noise_std"], rel=0.1)
    with closing(sqlite3.connect(tmp_path / "noised" / "run.db")) as c:
        assert c.execute("SELECT count(*) FROM charges").fetchone() == (2,)
    text = "\n".join(statistics_screen.statistics_lines(found, {}))
    assert "epsilon" in text


@pytest.mark.slow
def test_a_models_loss_at_every_site_is_a_hidden_sum_too(folder: Path, tmp_path: Path) -> None:
    from edgewise.learn.text.cross_site import LARGEST, make_cross_site_trainer

    recipe = recipes.parse(TEXT.format(word="hidden", more="sequence_len = 32\n[eval]\nmax_tokens = 64"))
    found = statistics.play_statistics(recipe, folder, tmp_path / "loss", "loss")
    sites = make_cross_site_trainer(statistics_recipe(recipe, folder, "loss"), folder, tmp_path / "cache")
    held = [sites.evaluate(site, sites.initial()) for site in sites.devices()]
    mean = np.mean([one.nll / one.tokens for one in held])
    assert found["parts"]["loss"]["values"][0] * LARGEST == pytest.approx(mean, abs=0.01)
    assert sum(found["parts"]["losses"]["values"]) == pytest.approx(1.0, abs=1e-3)
    assert "nats per token" in "\n".join(statistics_screen.statistics_lines(found, {}))


def test_a_contribution_is_within_its_bound() -> None:
    draw = np.random.default_rng(0)
    for size in (1, 7, 4096):
        for documents in (1, 3, 2000):
            text = DeviceTextCounts(
                draw.integers(1, 10**6, documents), draw.integers(0, 10**6, (2, size)).astype(float)
            )
            for parts in (first_statistics(text), second_statistics(text, draw.normal(0, 1, size).astype(np.float32))):
                assert np.sqrt(sum(np.sum(part.astype(np.float64) ** 2) for part in parts.values())) <= BOUND_L2 + 1e-6
    one_word = DeviceTextCounts(np.array([5]), np.array([[3.0, 0.0], [2.0, 0.0]]))
    norm = np.sqrt(sum(np.sum(part.astype(np.float64) ** 2) for part in first_statistics(one_word).values()))
    assert norm == pytest.approx(BOUND_L2), "the bound is reached"


def test_a_divergence_is_zero_for_equal_and_one_for_disjoint_histograms() -> None:
    assert histogram_divergence(np.array([1.0, 3.0]), np.array([2.0, 6.0])) == pytest.approx(0.0, abs=1e-12)
    assert histogram_divergence(np.array([1.0, 0.0]), np.array([0.0, 5.0])) == pytest.approx(1.0)
    assert histogram_divergence(np.zeros(2), np.array([0.0, 5.0])) == 0.0
    assert power_buckets(np.array([0, 1, 2, 3, 4, 7, 8, 2**40])).tolist() == [0, 1, 2, 2, 3, 3, 4, POWERS - 1]


def test_noise_alone_is_seldom_shown() -> None:
    draw, size = np.random.default_rng(1), 4096
    least = statistics_screen.least_told(0.1, size)
    shown = sum(bool((draw.normal(0.0, 0.1, size) > least).any()) for _ in range(200))
    assert shown < 25
    assert statistics_screen.least_told(0.0, size) > 0.0


def test_the_recipe_of_the_statistics_keeps_privacy_and_cohorts() -> None:
    made = statistics_recipe(recipes.parse(TEXT.format(word="distributed_dp", more=DP)), Path("/somewhere"))
    assert (made.privacy, made.dp.epsilon, made.round.rounds) == ("distributed_dp", 8.0, 2)
    assert made.dp.clip_l2 == pytest.approx(BOUND_L2)
    assert made.data.path == "/somewhere/texts"
    of_records = TEXT.format(word="local_dp", more=DP + 'unit = "example"\nsample_rate = 0.1\n')
    with pytest.raises(RecipeError, match="E-COMBO"):
        statistics_recipe(recipes.parse(of_records), Path())
