"""The trainer without torch takes the steps of the one with torch, and a process that has it never imports torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import RecipeError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import root
from edgewise.core.training import Correction, FitRequest
from edgewise.learn.keywords import light_trainer, trainer
from unit.learn.keywords.made_clips import recipe, write


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return write(tmp_path / "clips.npz")


def both(clips: Path, **training: Any) -> tuple[light_trainer.LightTrainer, trainer.KeywordTrainer]:
    read = recipe(clips, training={"batch": 4, "local_steps": 2, **training})
    return light_trainer.make(read, clips.parent, clips.parent / "c"), trainer.make(
        read, clips.parent, clips.parent / "c"
    )


SETTINGS: list[dict[str, Any]] = [
    {"lr": 1e-2}, {"lr": 1e-2, "weight_decay": 0.1, "clip_grad": 0.0}, {"lr": 1e-2, "accumulate": 2},
    {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    {"optimizer": "sgd", "lr": 0.1, "clip_grad": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
def test_an_update_is_that_of_torch_to_rounding(clips: Path, settings: dict[str, Any]) -> None:
    light, torch = both(clips, **settings)
    assert light.spec == torch.spec
    assert light.devices() == tuple(torch.devices())
    params = torch.initial()
    for correction in (Correction(), Correction(pull=0.5, shift=np.full(light.spec.dim, 0.01, np.float32))):
        for segments in ((), ("scores.weight", "norm.bias")):
            rule = LocalRule(steps=3, lr=settings["lr"], segments=segments)
            request = FitRequest("up-00", 0, params, rule, root(4), root(5), correction)
            found, wanted = light.fit(request), torch.fit(request)
            # Where a gradient is close to 0, the sign of an AdamW step is that of a rounding.
            differs = np.abs(found.x - wanted.x) > 1e-3 * np.abs(wanted.x).max()
            assert differs.mean() < 0.01
            assert found.count == wanted.count
            for name, loss in wanted.head.items():
                assert found.head[name] == pytest.approx(loss, rel=1e-3)
    scored, wanted_scores = light.evaluate("up-00", params), torch.evaluate("up-00", params)
    assert scored.tokens == wanted_scores.tokens
    assert scored.nll == pytest.approx(wanted_scores.nll, rel=1e-4)
    assert light.noted() == torch.noted()


def test_losses_that_are_not_finite_are_refused(clips: Path) -> None:
    light, _ = both(clips)
    with pytest.raises(TrainingError) as caught:
        light.fit(
            FitRequest("up-00", 0, light.initial() * np.float32(np.inf), LocalRule(steps=1, lr=1.0), root(1), root(1))
        )
    assert caught.value.code == "E-NAN"


REFUSED = [
    ("muon", {"training__optimizer": "muon"}),
    ("dp.unit", {"privacy": "local_dp", "dp": {"unit": "example", "epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0}}),
    ("zeroth_order", {"strategy": {"kind": "zeroth_order"}}),
    ("engine.device", {"engine": {"device": "cuda"}}),
]


@pytest.mark.parametrize(("named", "changes"), REFUSED)
def test_what_needs_torch_is_refused_by_name(clips: Path, named: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(clips, keywords__computes="numpy", **changes)
    assert named in str(caught.value)


@pytest.mark.slow
def test_a_whole_run_imports_no_torch(clips: Path, tmp_path: Path) -> None:
    play = (
        "import sys, json; from pathlib import Path; from edgewise.apps.simulate import simulation\n"
        "from edgewise.plan.recipe.recipe import from_plain\n"
        "r = from_plain(json.loads(sys.argv[1]))\n"
        "for _ in simulation.play(r, out=Path(sys.argv[2]), recipe_dir=Path(sys.argv[2]).parent): pass\n"
        "assert 'torch' not in sys.modules and 'edgewise.learn.keywords.light_trainer' in sys.modules\n"
    )
    read = recipe(clips, keywords__computes="numpy")
    done = subprocess.run(
        [sys.executable, "-c", play, read.model_dump_json(exclude_unset=True), str(tmp_path / "run")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
