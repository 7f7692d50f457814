"""A sweep of a toy recipe by API and command, and trackers of what is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import edgewise as ew
from edgewise.apps.cli.main import app

pytestmark = pytest.mark.slow
TEXT = 'privacy = "none"\nname = "toy"\n[round]\nrounds = 2\n[training]\nlocal_steps = 2\n[eval]\nevery = 1\n'
GRID: dict[str, Any] = {"training.lr": [0.1, 0.3]}


def test_a_sweep_goes_on_and_is_compared(tmp_path: Path) -> None:
    recipe = tmp_path / "toy.toml"
    recipe.write_text(TEXT)
    at = tmp_path / "sweep"
    found = ew.sweep(recipe, GRID, out=at, extensions=["toy"], progress=False)
    assert [t.run_dir.name for t in found.trials] == ["lr=0.1", "lr=0.3"]
    assert found.best.settings == {"training.lr": 0.3}
    assert found.table.column("training.lr") == [0.1, 0.3]
    assert found.page.is_file()
    before = [run.vector().tobytes() for run in found.runs]
    command = ["sweep", str(recipe), "training.lr=0.1,0.3", "--out", str(at), "--extension", "toy"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["best"] == {"training.lr": 0.3}
    assert [run.vector().tobytes() for run in found.runs] == before


def test_a_sweep_is_checked_before_any_run(tmp_path: Path) -> None:
    for grid, said in (({"training.lr": [0.1, -1.0]}, "E-VALUE"), ({"training.lr": [0.1]}, "E-MISSING")):
        with pytest.raises(ew.EdgewiseError, match=said):
            ew.sweep({"privacy": "none"}, grid, out=tmp_path / "sweep", extensions=["toy"])
    assert not list(tmp_path.glob("sweep/*/run.db"))


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("tensorboard", lambda: ew.TensorBoard()),
        ("trackio", lambda: ew.Trackio("project")),
        ("mlflow", lambda: ew.MLflow("experiment")),
        ("wandb", lambda: ew.WandB("project")),
    ],
)
def test_a_tracker_that_is_missing_says_so(package: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ew.EdgewiseError, match=f"E-DEPENDENCY.*{package}.*pip install {package}"):
        make()


def test_tensorboard_has_the_figures_of_the_rounds(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = tmp_path / "toy.toml"
    recipe.write_text(TEXT)
    seen: list[ew.Round] = []
    fed = ew.Federation(recipe, extensions=["toy"], callbacks=[ew.TensorBoard(), seen.append])
    fed.run(tmp_path / "run", progress=False)
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    log.Reload()
    told = [(e.step, pytest.approx(e.value)) for e in log.Scalars("held_out_loss")]
    assert told == [(r.number, r.metrics["held_out_loss"]) for r in seen]
