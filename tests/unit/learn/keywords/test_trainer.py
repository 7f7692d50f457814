"""The trainer of keywords: its base, its measures, and runs that it plays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.apps.federation.federation import Federation
from edgewise.apps.simulate import simulation
from edgewise.core.errors import DataError, RecipeError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import root
from edgewise.core.training import FitRequest
from edgewise.engine.ports import Arrived
from edgewise.learn.keywords.trainer import KeywordTrainer, make
from edgewise.plan.recipe.keywords import KeywordsSection
from unit.learn.keywords.made_clips import recipe, write


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return write(tmp_path / "clips.npz")


def made(clips: Path, cache: str = "cache", **changes: object) -> KeywordTrainer:
    return make(recipe(clips, **changes), clips.parent, clips.parent / cache)


def test_the_base_is_trained_and_the_same_with_and_without_the_cache(clips: Path) -> None:
    section = recipe(clips).keywords
    base = made(clips).initial()
    np.testing.assert_array_equal(made(clips).initial(), base)
    np.testing.assert_array_equal(made(clips, cache="other").initial(), base)
    untrained = made(clips, keywords=section.model_copy(update={"base_steps": 0}).model_dump()).initial()
    assert not np.array_equal(untrained, base)
    (file,) = (clips.parent / "other").iterdir()
    file.write_bytes(file.read_bytes()[:-4])
    np.testing.assert_array_equal(made(clips, cache="other").initial(), base)


def test_a_device_is_measured_on_its_own_keyword(clips: Path) -> None:
    trainer = made(clips)
    params = trainer.initial()
    scores = trainer.scores(params)
    assert scores.shape == (12, 3)
    measured = {device: trainer.evaluate(device, params) for device in trainer.devices()}
    assert measured["down-00"] == measured["down-01"] != measured["up-00"]
    assert measured["down-00"].tokens == 12
    assert [(note.device, note.name) for note in trainer.noted()] == [(d, "false_negatives") for d in measured]
    assert trainer.noted() == []
    with pytest.raises(DataError, match="no device"):
        trainer.evaluate("nobody", params)


def test_clips_that_are_held_back_are_measured_and_not_trained(clips: Path) -> None:
    trainer = made(clips)
    params = trainer.initial()
    with trainer.holding_back():
        assert trainer.records("up-00") == 2
        measured = trainer.evaluate("up-00", params)
    assert (measured.tokens, trainer.records("up-00")) == (1, 3)
    assert trainer.noted() == []
    assert trainer.evaluate("up-00", params) != measured


def test_scores_that_are_not_finite_are_refused(clips: Path) -> None:
    trainer = made(clips)
    with pytest.raises(TrainingError) as caught:
        trainer.evaluate("up-00", np.full(trainer.spec.dim, np.float32(np.nan)))
    assert caught.value.code == "E-NAN"


def test_training_learns_and_the_request_decides(clips: Path) -> None:
    trainer = made(clips)
    params = trainer.initial()

    def update(key: int) -> np.ndarray:
        request = FitRequest("up-00", 0, params, LocalRule(steps=30, lr=3e-3), root(key), root(9))
        return trainer.fit(request).x

    x = update(1)
    np.testing.assert_array_equal(update(1), x)
    assert not np.array_equal(update(2), x)
    before, after = (trainer.evaluate("up-00", p).nll for p in (params, params + x))
    assert after < before


@pytest.mark.slow
def test_a_run_compares_false_negatives_and_no_frame_holds_a_clip(clips: Path, tmp_path: Path) -> None:
    """Every run of 12 bytes of a home's spectrograms is looked for in all frames of the run."""
    frames: list[bytes] = []

    class Listening:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def send(self, device: str, frame: bytes) -> None:
            frames.append(bytes(frame))
            self._inner.send(device, frame)

        def receive(self, timeout_s: float) -> object:
            found = self._inner.receive(timeout_s)
            if isinstance(found, Arrived):
                frames.append(bytes(found.frame))
            return found

    for _ in simulation.play(recipe(clips), out=tmp_path / "run", recipe_dir=tmp_path, wrap=Listening):
        pass
    seen = b"\0".join(frames)
    assert len(seen) > 12 * 4 * made(clips).spec.dim  # six homes send a whole update in each of two rounds
    with np.load(clips) as opened:
        arrays = {word: opened[word] for word in opened.files}
    for found in arrays.values():
        for clip in found:
            raw = clip.tobytes()
            assert not any(raw[at : at + 12] in seen for at in range(0, len(raw), 12))


@pytest.mark.slow
def test_a_run_has_the_metric_of_each_model(clips: Path, tmp_path: Path) -> None:
    run = Federation(recipe(clips).model_dump(exclude_unset=True), home=tmp_path).run(tmp_path / "run")
    found = {m["model"]: m for m in run.summary["simulator_metrics"]}
    assert set(found) == {"base", "federated", "local_only", "centralised"}
    assert {m["measured"] for m in found.values()} == {6}
    assert found["local_only"]["round"] == found["centralised"]["round"] == 1
    drawn = run.rounds.column("false_negatives")
    assert drawn[-1] == found["federated"]["mean"]


REFUSED = [
    ("keywords.width", {"keywords": {"width": 9}}),
    ("the section [keywords]", {"data": {"source": "plays"}}),
    ("data.sequence_len", {"data__sequence_len": 64}),
    ("data.owner", {"data__owner": "speaker"}),
    ("trainable.kind", {"trainable": {"kind": "lora"}}),
    ("report.samples", {"report": {"samples": 2}}),
    ("engine.batch_devices", {"engine": {"batch_devices": 2}}),
    ("several", {"data__path": ["a.npz", "b.npz"]}),
]


@pytest.mark.parametrize(("named", "changes"), REFUSED)
def test_settings_of_text_are_refused_by_name(tmp_path: Path, named: str, changes: dict[str, object]) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path / "clips.npz", **changes)
    assert named in str(caught.value)


def test_the_section_counts_for_a_run_only_where_it_is_used() -> None:
    from edgewise.plan.recipe.recipe import from_plain

    assert "keywords" not in from_plain({"privacy": "none"}).resolved()
    assert KeywordsSection().width == 48


PRIVATE: list[dict[str, Any]] = [
    {"privacy": "hidden"},
    {"privacy": "central_dp", "dp": {"epsilon": 8.0, "delta": 1e-2, "clip_l2": 1.0}},
    {
        "privacy": "local_dp",
        "dp": {"unit": "example", "epsilon": 8.0, "delta": 1e-2, "clip_l2": 1.0, "sample_rate": 0.5},
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("private", PRIVATE)
def test_keywords_train_under_each_kind_of_privacy(clips: Path, tmp_path: Path, private: dict[str, Any]) -> None:
    compared = {"local_only": False, "centralised": False}
    plain = recipe(clips, trainable={"kind": "full"}, compare=compared, **private)
    run = Federation(plain.model_dump(exclude_unset=True), home=tmp_path).run(tmp_path / "run")
    assert run.summary["rounds"]["met"] == 2


def test_adapters_that_differential_privacy_chooses_are_named_with_the_cure(clips: Path) -> None:
    with pytest.raises(RecipeError, match='kind = "full"'):
        recipe(clips, **PRIVATE[1])
