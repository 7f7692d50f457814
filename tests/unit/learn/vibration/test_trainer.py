"""The trainer of vibration: its base, what crosses, and its measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core.errors import DataError, DecodeError, ModelError, RecipeError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import root
from edgewise.core.training import FitRequest
from edgewise.drivers.storage.split_sessions import SessionFiles
from edgewise.learn.vibration import crossing
from edgewise.learn.vibration.network import Encoder, ServerLayers, VibrationHead
from edgewise.learn.vibration.trainer import VibrationTrainer, make
from edgewise.plan.recipe.vibration import VibrationSection
from unit.learn.vibration.made_recordings import recipe, write


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "a.npz")


def made(file: Path, run: str = "run", **changes: Any) -> VibrationTrainer:
    at = file.parent / run
    vibration = recipe(file).vibration.model_dump(exclude_unset=True) | changes
    return make(recipe(file, vibration=vibration), file.parent, at / "cache", SessionFiles(at, False))


def with_encoder(file: Path, **changes: Any) -> VibrationTrainer:
    torch.manual_seed(0)
    tensors = {name: p.detach().numpy() for name, p in Encoder().named_parameters()}
    (file.parent / "encoder").write_bytes(save(tensors))
    return made(file, train="layers", encoder="encoder", **changes)


def request(trainer: VibrationTrainer, device: str, key: int = 1, steps: int = 2) -> FitRequest:
    return FitRequest(device, 0, trainer.initial(), LocalRule(steps=steps, lr=3e-3), root(key), root(9))


def test_the_parts_have_the_sizes_that_the_pages_say() -> None:
    parts = (Encoder(), VibrationHead(10), ServerLayers(VibrationSection(), 10))
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [2400, 2218, 69834]
    assert Encoder()(torch.randn(2, 1024)).shape == (2, 16, 16)


def test_all_runs_begin_with_the_same_vendors_model(file: Path) -> None:
    encoder, whole = made(file), made(file, run="other", train="whole")
    np.testing.assert_array_equal(made(file).initial(), encoder.initial())
    shared = encoder.spec.segments[-1].stop - sum(s.size for s in encoder.spec.segments if s.name.startswith("head."))
    np.testing.assert_array_equal(encoder.initial()[:shared], whole.initial()[:shared])
    assert not np.array_equal(made(file, run="third", base_steps=0).initial(), encoder.initial())


def test_nodes_and_factories_are_the_devices_by_what_trains(file: Path) -> None:
    nodes = ("load-1-0", "load-1-1", "load-2-0", "load-2-1")
    assert made(file).devices() == made(file, train="end_to_end").devices() == nodes
    assert made(file, train="whole").devices() == with_encoder(file).devices() == ("load-1", "load-2")
    fronts = {s.name.partition(".")[0] for s in with_encoder(file).spec.segments}
    assert fronts == {"server"}


@pytest.mark.slow
def test_activations_go_up_once_and_are_kept_by_the_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = with_encoder(file)
    first = trainer.fit(request(trainer, "load-1"))
    (note,) = trainer.noted()
    kept = sorted((file.parent / "run" / "split" / "cache").iterdir())
    assert (note.name, len(kept)) == ("activation_bytes", 2)
    windows = sum(len(trainer._dealt.nodes[node].sent.label) for node in ("load-1-0", "load-1-1"))
    assert 40 * windows < note.value < 40 * windows + 2 * windows + 2 * 110  # 4 tokens of 10 bytes, labels, headers
    monkeypatch.setattr(crossing, "written", lambda *_: pytest.fail("they cross again"))
    again = with_encoder(file)
    np.testing.assert_array_equal(again.fit(request(again, "load-1")).x, first.x)
    assert again.noted() == [note]


def test_another_encoder_sends_its_own_activations(file: Path) -> None:
    trainer = with_encoder(file)
    before = trainer.fit(request(trainer, "load-1")).x
    tensors = {name: 2.0 * p.detach().numpy() for name, p in Encoder().named_parameters()}
    (file.parent / "encoder").write_bytes(save(tensors))
    other = made(file, train="layers", encoder="encoder")
    assert not np.array_equal(other.fit(request(other, "load-1")).x, before)


@pytest.mark.slow
def test_end_to_end_each_step_crosses_both_ways(file: Path) -> None:
    trainer = made(file, train="end_to_end")
    trainer.fit(request(trainer, "load-1-0", steps=3))
    up, down = (note.value for note in trainer.noted())
    assert up > 3 * 6 * 40
    assert down > 3 * 6 * 4 * 18  # 16 bytes and a scale for each token
    whole = made(file, train="end_to_end", activations="float32", gradients="float32")
    plain = made(file, train="whole", nodes=1)
    crossed, direct = (
        t._loss(t.model, (torch.ones(2, 256).cumsum(1), torch.tensor([0, 1])))[0] for t in (whole, plain)
    )
    crossed.backward()
    direct.backward()
    torch.testing.assert_close(crossed, direct)
    torch.testing.assert_close(whole.flat.g_D, plain.flat.g_D)


def test_measures_are_of_all_tests_and_of_the_own(file: Path) -> None:
    trainer = made(file)
    found = trainer.evaluate("load-1-0", trainer.initial())
    names = {note.name for note in trainer.noted()}
    assert names == {"accuracy", "early", "false_alarms", "missed", "own_accuracy", "head_accuracy"}
    assert found.tokens == len(trainer._dealt.tests["load-1"].label)
    with pytest.raises(DataError, match="no device"):
        trainer.evaluate("nobody", trainer.initial())
    with pytest.raises(DataError, match="no device"):
        trainer.fit(request(trainer, "load-1"))
    with pytest.raises(TrainingError, match="E-NAN"):
        trainer.evaluate("load-1-0", np.full(trainer.spec.dim, np.float32(np.nan)))


def test_training_lowers_the_loss_on_what_it_trains(file: Path) -> None:
    trainer = made(file)
    update = trainer.fit(request(trainer, "load-1-0", steps=16))
    assert update.head["loss_last"] < update.head["loss_first"]


def test_windows_that_are_held_back_are_measured_and_not_trained(file: Path) -> None:
    trainer = made(file)
    whole = trainer.records("load-1-0")
    with trainer.holding_back():
        trained = trainer.records("load-1-0")
        held = trainer.evaluate("load-1-0", trainer.initial()).tokens
        assert trainer.noted() == []
    assert (trained < whole, trained + held) == (True, whole)


def test_messages_of_other_kinds_are_refused(file: Path) -> None:
    codec = TokenCodec("int4", 16)
    with pytest.raises(DecodeError):
        crossing.read([b"EWS\1nothing"], codec, 3)


def test_an_encoder_of_another_model_is_refused(file: Path) -> None:
    (file.parent / "encoder").write_bytes(save({"first.weight": np.ones(3, np.float32)}))
    with pytest.raises(ModelError, match="other tensors"):
        made(file, train="layers", encoder="encoder")
    (file.parent / "encoder").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="E-MODEL"):
        made(file, train="layers", encoder="encoder")


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("vibration.heads", {"vibration__width": 9}),
    ("vibration.encoder", {"vibration__train": "layers"}),
    ("vibration.encoder", {"vibration__encoder": "a"}),
    ("vibration.rig", {"vibration": {}}),
    ("the section [vibration]", {"data": {"source": "plays"}}),
    ("data.sequence_len", {"data__sequence_len": 64}),
    ("trainable.kind", {"trainable": {"kind": "lora"}}),
    ("engine.device", {"engine": {"device": "cuda"}}),
    ("end_to_end", {
        "vibration__train": "end_to_end", "privacy": "local_dp", "trainable": {"kind": "full"},
        "dp": {"unit": "example", "epsilon": 8.0, "delta": 1e-2, "clip_l2": 1.0, "sample_rate": 0.5},
    }),
]  # fmt: skip


@pytest.mark.parametrize(("named", "changes"), REFUSED)
def test_settings_that_do_not_fit_are_refused_by_name(tmp_path: Path, named: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path / "a.npz", **changes)
    assert named in str(caught.value)
