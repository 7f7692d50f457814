"""The text trainer behind the port: a recipe in, updates and measurements out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch

from edgewise.core import vector
from edgewise.core.errors import DataError, ModelError, StoreError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import root
from edgewise.core.training import POOLED, FitRequest, StepNoise
from edgewise.learn.shards import TensorShard
from edgewise.learn.text.trainer import TextTrainer, make
from edgewise.learn.torch_task import TorchTrainer
from edgewise.plan.recipe.recipe import Recipe, from_plain
from edgewise.plan.recipe.sections import TrainingSection

RULE = LocalRule(steps=4, lr=0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_model.save(folder / "model")
    texts = {"ann": "".join(f"the fox {i} jumps\n" for i in range(200)), "bob": "def add(a, b): return a + b\n" * 40}
    for name, text in {**texts, "cat": "hi there", "dan": ".", "eve": "\n"}.items():
        (folder / "notes" / name).mkdir(parents=True)
        (folder / "notes" / name / "1.txt").write_text(text)
    return folder


def recipe(**sections: dict) -> Recipe:
    plain = {
        "privacy": "none",
        "model": {"base": "model", "precision": "float32"},
        "data": {"source": "text", "path": "notes", "sequence_len": 32},
        "training": {"batch": 4, "lr": 0.01},
    }
    return from_plain({**plain, **{k: {**plain.get(k, {}), **v} for k, v in sections.items()}})


def trainer(place: Path, **sections: dict) -> TextTrainer:
    return make(recipe(**sections), place, place / "cache")


def ask(t: TorchTrainer, device: str, seed: int = 0) -> FitRequest:
    return FitRequest(device, 0, t.initial(), RULE, root(seed), root(seed))


@pytest.mark.slow
def test_training_lowers_held_out_loss(place: Path) -> None:
    t = trainer(place)
    assert t.devices() == ("ann", "bob", "cat", "dan", "eve")
    x = t.initial()
    before = t.evaluate("ann", x)
    for r in range(5):
        update = t.fit(FitRequest("ann", r, x, RULE, root(r), root(r)))
        x = x + update.x
    after = t.evaluate("ann", x)
    assert after.tokens == before.tokens > 50
    assert after.nll < 0.8 * before.nll
    assert update.x.dtype == np.float32
    assert update.x.shape == (t.spec.dim,)
    assert set(update.head) == {"loss_first", "loss_last"}
    assert update.count == t.describe()["devices"]["ann"] > 1000


def test_devices_with_little_text(place: Path) -> None:
    t = trainer(place)
    assert t.fit(ask(t, "cat")).count >= 2  # a short sentence trains, as one short block
    with pytest.raises(DataError, match=r"E-DEVICE-DATA.*hold-out"):
        t.evaluate("cat", t.initial())
    (place / "notes" / "eve" / "1.txt").write_text("")
    empty = trainer(place)
    assert "eve" in empty.devices()
    with pytest.raises(DataError, match=r"E-DEVICE-DATA.*two tokens"):
        empty.fit(ask(empty, "eve"))
    with pytest.raises(DataError, match=r"E-DEVICE-DATA.*no device"):
        t.fit(ask(t, "zoe"))


def test_pooled_is_all_training_text(place: Path) -> None:
    t = trainer(place)
    per_device = t.describe()["devices"]
    update = t.fit(ask(t, POOLED))
    assert update.count == sum(per_device.values())
    rows = {t._pooled_shard._pooled_row(i).tobytes() for i in range(t._pooled_shard._stops[-1])}
    assert rows == {r.tobytes() for d in per_device for r in t._open(d).blocks.train_NS}
    assert np.array_equal(update.x, t.fit(ask(t, POOLED)).x)


def test_evaluation_is_capped_exactly(place: Path) -> None:
    whole = trainer(place)
    capped = trainer(place, eval={"max_tokens": 70})
    assert whole.evaluate("ann", whole.initial()).tokens > 70
    got = capped.evaluate("ann", capped.initial())
    assert got.tokens == 70
    assert got == capped.evaluate("ann", capped.initial())


def test_batches_are_cut_to_what_is_predicted(place: Path) -> None:
    t = trainer(place)
    ((batch, n),) = next(iter(t._open("cat").batches(1, t.training, root(0))))
    assert batch.shape == (1, n + 1)  # one short block, without padding, not repeated to a batch of four


@pytest.mark.slow
def test_accumulation_is_the_same_training(place: Path) -> None:
    whole, split = (trainer(place, training={"optimizer": "sgd", "accumulate": a}) for a in (1, 4))
    np.testing.assert_allclose(split.fit(ask(split, "bob")).x, whole.fit(ask(whole, "bob")).x, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_out_of_memory_says_what_would_need_less(
    place: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    t = trainer(place)

    def loss(model: object, batch: object) -> None:
        raise error

    monkeypatch.setattr(t, "loss", loss)
    loss.autocast = torch.float32  # type: ignore[attr-defined]
    said = r"E-MEMORY.*needs about \d+ MB.*training.accumulate = 4 \d+ MB.*training.checkpointing = true also \d+ MB"
    with pytest.raises(TrainingError, match=said):
        t.fit(ask(t, "ann"))


def test_checkpointing_is_the_same_training(place: Path) -> None:
    whole, again = (trainer(place, training={"optimizer": "sgd", "checkpointing": on}) for on in (False, True))
    assert again.model.is_gradient_checkpointing
    np.testing.assert_allclose(again.fit(ask(again, "bob")).x, whole.fit(ask(whole, "bob")).x, atol=1e-6)


CHILD = """
import hashlib, json, sys
from pathlib import Path
import torch
from edgewise.core.frame import LocalRule
from edgewise.core.keys import root
from edgewise.core.training import FitRequest
from edgewise.learn.text.trainer import make
from edgewise.plan.recipe.recipe import from_plain
torch.set_num_threads(1)
torch.rand(7)
place = Path(sys.argv[1])
t = make(from_plain(json.loads(sys.argv[2])), place, place / sys.argv[3])
t.evaluate("bob", t.initial())
u = t.fit(FitRequest("ann", 0, t.initial(), LocalRule(steps=4, lr=0.01), root(0), root(0)))
print(hashlib.sha256(u.x.tobytes()).hexdigest(), u.head["loss_last"], t.fingerprint(), t.spec.digest())
"""


@pytest.mark.slow
def test_another_process_gives_the_same_bits(place: Path) -> None:
    plain = recipe(model={"precision": "bfloat16"})
    command = [sys.executable, "-c", CHILD, str(place), json.dumps(plain.resolved()), "another-cache"]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    t = make(plain, place, place / "cache")
    update = t.fit(ask(t, "ann"))
    assert child == [vector.digest(update.x.tobytes()), str(update.head["loss_last"]), t.fingerprint(), t.spec.digest()]


@pytest.mark.slow
def test_lora_and_layers_through_the_port(place: Path) -> None:
    for section in ({"kind": "lora", "rank": 2}, {"kind": "layers", "layers": ["model.layers.1.*"]}):
        t = trainer(place, trainable=section, model={"precision": "bfloat16"})
        update = t.fit(ask(t, "ann"))
        assert 0 < np.abs(update.x).max() < 1
        assert t.sizes()["trainable"] < t.sizes()["parameters"]
        assert t.evaluate("ann", t.initial() + update.x).nll < t.evaluate("ann", t.initial()).nll


@pytest.mark.slow
def test_sizes_and_description(place: Path) -> None:
    t = trainer(place)
    sizes = t.sizes()
    assert sizes["parameters"] == sizes["trainable"] == t.spec.dim
    assert sizes["memory_bytes"] > 6 * 4 * t.spec.dim
    before = t.fit(ask(t, "ann")).x
    assert t.step_s() > 0
    np.testing.assert_array_equal(t.fit(ask(t, "ann")).x, before)
    facts = json.loads(json.dumps(t.describe()))
    assert facts["model"] == "model"
    assert facts["vocabulary"] == 300
    assert facts["fingerprint"] == t.fingerprint()


def test_model_and_data_must_fit(place: Path) -> None:
    with pytest.raises(ModelError, match=r"E-MODEL.*at most 128.*is 256"):
        trainer(place, data={"sequence_len": 256})


def test_importing_the_package_is_light() -> None:
    code = "import sys, edgewise.learn; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _norms() -> tuple[torch.nn.Module, dict[str, TensorShard]]:
    """Large enough that two threads share the sums over rows."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.LayerNorm(64), torch.nn.Linear(64, 256), torch.nn.LayerNorm(256))
    x = torch.randn(4000, 64)
    return net, {"a": TensorShard((x, torch.randn(4000, 256)), (x[:500], torch.randn(500, 256)))}


def _square(net: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, float]:
    return (net(batch[0]) - batch[1]).square().mean(), float(len(batch[0]))


@pytest.mark.slow
def test_threads_outside_do_not_change_a_bit() -> None:
    threads, seen = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            net, shards = _norms()
            t = TorchTrainer(net, _square, shards, TrainingSection(batch=4000))
            torch.set_num_threads(n)
            update = t.fit(FitRequest("a", 0, t.initial(), RULE, root(0), root(0)))
            seen.append((update.x.tobytes(), update.head["loss_last"], t.evaluate("a", t.initial() + update.x)))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    assert seen[0] == seen[1]


def test_pooled_is_no_device_and_may_be_missing() -> None:
    net, shards = _norms()
    with_all = TorchTrainer(net, _square, {**shards, POOLED: shards["a"]}, TrainingSection(batch=8))
    assert with_all.devices() == ("a",)
    assert with_all.fit(ask(with_all, POOLED)).count == 4000
    without = TorchTrainer(net, _square, shards, TrainingSection(batch=8))
    with pytest.raises(DataError, match=r"E-DEVICE-DATA.*all training data together.*compare.centralised"):
        without.fit(ask(without, POOLED))
    with pytest.raises(DataError, match=r"E-DEVICE-DATA.*no device 'b'"):
        without.evaluate("b", without.initial())


def test_what_torch_says_is_a_cause_and_no_message() -> None:
    def quoting(net: torch.nn.Module, batch: object) -> tuple[torch.Tensor, float]:
        raise error("my private diary")

    net, shards = _norms()
    t = TorchTrainer(net, quoting, shards, TrainingSection(batch=8))
    error: type[Exception] = RuntimeError
    for call in (lambda: t.fit(ask(t, "a")), lambda: t.evaluate("a", t.initial())):
        with pytest.raises(TrainingError, match=r"E-TRAIN.*'a'.*RuntimeError") as caught:
            call()
        assert "diary" not in str(caught.value)
        assert "diary" in str(caught.value.__cause__)
    error = KeyError
    with pytest.raises(KeyError):
        t.fit(ask(t, "a"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["nul", "gone"])
def test_with_record_privacy_an_unreadable_document_is_no_record(place: Path, tmp_path: Path, how: str) -> None:
    """And nothing else: the device sends, noise and all, what it would send without that document."""
    texts = [f"once {i} upon a time there was {'a number ' * (i + 4)}" for i in range(4)]

    def fitted(kind: str) -> tuple[set[bytes], np.ndarray]:
        folder = tmp_path / kind / "d"
        folder.mkdir(parents=True)
        for i, text in enumerate(texts):
            if i != 1 or kind != "without":
                (folder / f"{i}.txt").write_text(text)
        data = {"source": "text", "path": str(folder.parent), "sequence_len": 16, "holdout": 0.1}
        made = make(
            from_plain(
                {
                    "privacy": "local_dp",
                    "model": {"base": str(place / "model"), "precision": "float32"},
                    "trainable": {"kind": "full"},
                    "data": data,
                    "dp": {"epsilon": 4.0, "delta": 1e-5, "clip_l2": 1.0, "unit": "example", "sample_rate": 0.9},
                    "training": {"optimizer": "sgd", "lr": 1.0, "local_steps": 2},
                }
            ),
            place,
            tmp_path / f"cache-{kind}",
        )
        if kind == "nul":
            (folder / "1.txt").write_bytes(b"once \0" + texts[1].encode())
        if kind == "gone":
            (folder / "1.txt").unlink()
        made.noise_steps(StepNoise(1.0, 1.0, 0.9))
        blocks = {block.tobytes() for block in made.text("d").blocks.train_NS}
        return blocks, made.fit(FitRequest("d", 0, made.initial(), LocalRule(steps=2, lr=1.0), root(1), root(2))).x

    whole, without, broken = (fitted(kind) for kind in ("whole", "without", how))
    assert set() < without[0] == broken[0] < whole[0]
    np.testing.assert_array_equal(without[1], broken[1])


def _of_noise(where: str) -> np.ndarray:
    class Shard(TensorShard):
        @property
        def count(self) -> float:
            if where == "count":
                raise OSError("unreadable")
            return float(self.size)

        @count.setter
        def count(self, _: float) -> None: ...

        def records(self, rows: np.ndarray) -> list:
            if where == "records":
                raise OSError("unreadable")
            return super().records(rows)

    data = torch.zeros(50, 2000), torch.zeros(50, 1)  # of no gradient: what leaves is noise
    trainer = TorchTrainer(
        torch.nn.Linear(2000, 1, bias=False),
        _square,
        {"d": Shard(data)},
        TrainingSection(optimizer="sgd", clip_grad=0.0),
    )
    trainer.step_noise = StepNoise(1.0, 2.0, 0.1)
    return trainer.fit(FitRequest("d", 0, trainer.initial(), LocalRule(steps=1, lr=1.0), root(1), root(2))).x


@pytest.mark.parametrize("where", ["nothing", "count", "records"])
def test_noise_alone_is_as_large_as_noise_with_records(where: str) -> None:
    """A device on which training fails cannot be told from others by the size of its update."""
    assert _of_noise(where).std() == pytest.approx(2.0 / (0.1 * 50), rel=0.1)


def test_noise_in_place_of_training_is_none_that_training_draws() -> None:
    """Training may fail after its noise is drawn, and an update of the same noise would tell what it had hidden."""
    assert abs(np.corrcoef(_of_noise("nothing"), _of_noise("count"))[0, 1]) < 0.1


def test_a_full_disk_is_an_error_with_record_privacy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing of the text, and noise in place of training would be another model without a word."""
    data = torch.zeros(50, 20), torch.zeros(50, 1)
    training = TrainingSection(optimizer="sgd", clip_grad=0.0)
    trainer = TorchTrainer(torch.nn.Linear(20, 1, bias=False), _square, {"d": TensorShard(data)}, training)
    trainer.step_noise = StepNoise(1.0, 2.0, 0.1)

    def full(device: str) -> TensorShard:
        raise StoreError("E-DISK", "no space left.", "free space.")

    request = FitRequest("d", 0, trainer.initial(), LocalRule(steps=1, lr=1.0), root(1), root(2))
    assert trainer.fit(request).x.any()
    monkeypatch.setattr(trainer, "_shard", full)
    with pytest.raises(StoreError):
        trainer.fit(request)
