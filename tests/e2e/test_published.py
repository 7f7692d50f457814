"""Outputs of a run beside its model: with differential privacy nothing that names a device, and marks on figures that
no epsilon is about."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from toy_recipe import make_recipe

from edgewise.apps.models import model_card
from edgewise.apps.report import summary
from edgewise.apps.simulate import simulation
from edgewise.drivers.storage.run_store import RunStore
from edgewise.privacy.card import NOT_COVERED, OUTSIDE
from unit.made_run import RECIPES, make_run

POISSON = {
    "privacy": "central_dp",
    "metrics": "none",
    "stage": [],
    "data.devices": 12,
    "round.sampling": "poisson",
    "round.cohort": 6,
    "round.minimum": 0.0,
    "dp": {"epsilon": 60.0, "delta": 1e-3, "clip_l2": 1.0},
}
DEVICE, FINGERPRINT = b"d0000", b"toy-12-"


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a Poisson cohort, which the epsilon of its models assumes to be secret."""
    out = tmp_path_factory.mktemp("run")
    simulation.run(make_recipe(POISSON), out=out, recipe_dir=Path(), extensions=["toy"], report=True)
    return out


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there are no such modes")
def test_only_files_of_the_owner_name_devices_or_the_data(played: Path) -> None:
    found = {p: p.stat().st_mode & 0o077 for p in played.rglob("*") if p.is_file()}
    shared = {p for p, mode in found.items() if mode}
    assert {"summary.json", "report.html", "recipe.toml"} <= {p.name for p in shared}
    for path in shared:
        assert DEVICE not in path.read_bytes(), path.name
        assert FINGERPRINT not in path.read_bytes(), path.name
    owners = json.loads((played / "devices.json").read_text(encoding="utf-8"))
    assert found[played / "devices.json"] == 0
    assert [row["device"] for row in owners["per_device"]] == [f"d{i:05d}" for i in range(12)]
    assert any(row["rounds"] for row in owners["per_device"])
    assert owners["fingerprint"].encode().startswith(FINGERPRINT)


@pytest.mark.slow
def test_report_and_summary_say_what_no_epsilon_is_about(played: Path) -> None:
    page = (played / "report.html").read_text(encoding="utf-8")
    saved = json.loads((played / "summary.json").read_text(encoding="utf-8"))
    assert saved["not_covered"] == OUTSIDE
    assert OUTSIDE[1:] in page[: page.index("<main>")]
    assert saved["per_device"] == []
    assert not (played / "plots" / "devices.png").exists()


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("word", RECIPES)
def test_a_model_card_names_no_data_and_marks_its_figures(word: str, tmp_path: Path) -> None:
    make_run(tmp_path, seed=987_654_321, **RECIPES[word])
    with RunStore(tmp_path) as store:
        run, s = store.run(), summary.build(store)
    assert run is not None
    recipe = make_recipe({"seed": 987_654_321, **RECIPES[word]})
    card = model_card.ModelCard(s, recipe, "merged", s["rounds"]["played"], "0" * 64).text()
    noised = word not in ("none", "hidden")
    assert "## Held-out perplexity" in card
    assert (NOT_COVERED in card) == (OUTSIDE in card) == noised
    assert ("Fingerprint" in card) == ("987654321" in card) == (not noised)
    assert ("0f" * 32 in card) == (not noised)
