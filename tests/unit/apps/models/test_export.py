"""An exported model is the run's model: plain transformers or peft load it and give the same logits."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from edgewise.apps.models import export
from edgewise.apps.report import numbers, privacy, summary
from edgewise.core import vector
from edgewise.core.errors import EdgewiseError
from edgewise.core.keys import derive, root
from edgewise.core.vector import unpack
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.recipe.recipe import from_plain
from edgewise.privacy.card import no_epsilon_sentence
from unit.made_run import PLAIN, RECIPES, make_run

torch = pytest.importorskip("torch")
IDS = [[3, 17, 200, 5, 99, 1024, 7]]
NOTHING_FROZEN = hashlib.sha256().hexdigest()
LORA = {"kind": "lora", "rank": 4, "targets": ["q_proj", "v_proj"]}

pytestmark = pytest.mark.slow  # every test here loads a model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of a few thousand parameters with the bundled tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    student = Path(str(resources.files("edgewise"))) / "assets" / "student"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(student / name, folder / name)
    return folder


def write(run: Path, dest: Path, *wanted: Any, **more: Any) -> dict[str, Any]:
    return export.write_export(run, dest, export.ExportRequest(*wanted, **more))


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits


def close(got: Any, wanted: Any) -> None:
    """Equal but for the last bits: kernels round differently on differently aligned memory, and a merge rounds once."""
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def trained(base: Path, section: dict[str, Any], out: Path, more: dict[str, Any] | None = None, **options: Any) -> Any:
    """A made run over ``base`` whose last model is a random step from the base: its trained tensors and its logits."""
    from edgewise.learn.models.adapters import make_trainable
    from edgewise.learn.models.load import load

    recipe = from_plain({**PLAIN, "model": {"base": base.name}, "trainable": section})
    loaded = load(str(base), base, torch.float32)
    model, flat = make_trainable(loaded.model, recipe.trainable, derive(root(recipe.seed), "model"), torch.float32)
    step = np.random.default_rng(5).normal(0, 0.05, flat.spec.dim)
    x = (flat.read() + step).astype(np.float32)
    flat.write(x)
    facts = {"recipe_dir": str(base.parent), "fingerprint": "ab" * 32, **(more or {})}
    make_run(out, params=x, spec=flat.spec, facts=facts, model={"base": base.name}, trainable=section, **options)
    return unpack(x, flat.spec), logits(model)


@pytest.mark.parametrize(
    "section", [{"kind": "full"}, {"kind": "layers", "layers": ["model.layers.1.*"]}, LORA], ids=lambda s: s["kind"]
)
def test_merged_loads_in_plain_transformers(section: dict[str, Any], base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tensors, wanted = trained(base, section, tmp_path / "run")
    written = write(tmp_path / "run", tmp_path / "out", "merged")
    assert written["rounds"] == 12
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    if section["kind"] != "lora":
        state = model.state_dict()
        assert all(np.array_equal(state[name].numpy(), x) for name, x in tensors.items())
    close(logits(model), wanted)
    assert model.config.tie_word_embeddings
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("import os").input_ids
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "no half-written folder is left"


def test_adapter_loads_in_plain_peft(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tensors, wanted = trained(base, LORA, tmp_path / "run")
    written = write(tmp_path / "run", tmp_path / "out", "peft")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(written["files"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    close(logits(model), wanted)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert saved.keys() == {f"base_model.model.{name}" for name in tensors}
    assert all(np.array_equal(saved[f"base_model.model.{name}"], x) for name, x in tensors.items())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], set(config["target_modules"])) == (4, {"q_proj", "v_proj"})
    assert config["base_model_name_or_path"] == base.name, "no path of this machine"
    assert "PeftModel.from_pretrained" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_base_that_changed_is_refused_and_the_working_folder_can_be_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(base, LORA, tmp_path / "run", more={"model_fingerprint": "0" * 64, "precision": "bfloat16"})
    assert "other weights" in refused(tmp_path / "run", tmp_path / "out", "peft")
    trained(base, {"kind": "full"}, tmp_path / "whole", more={"model_fingerprint": NOTHING_FROZEN})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(tmp_path / "whole", Path("."), "merged")
    assert (tmp_path / "here" / "model.safetensors").is_file()


def test_the_card_says_where_the_model_comes_from(base: Path, tmp_path: Path) -> None:
    trained(base, {"kind": "full"}, tmp_path / "run")
    written = write(tmp_path / "run", tmp_path / "out", "merged")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for said in (written["model_sha256"], "ab" * 32, "12 of 12 rounds", "the server sees every device's update"):
        assert said in card
    assert "| federated | 184.3 |" in card
    assert str(tmp_path) not in card
    assert str(base) not in card


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"source": "python-stdlib"}, "Python standard library, one package per device."),
        ({"partition": "iid", "devices": 3}, "Python standard library, partition `iid`."),
        ({"source": "jsonl", "path": "a.jsonl", "owner": "who"}, "jsonl data, partition `owner`."),
    ],
)
def test_the_card_says_how_text_came_to_devices(data: dict[str, Any], said: str, base: Path, tmp_path: Path) -> None:
    trained(base, {"kind": "full"}, tmp_path / "run", data=data)
    write(tmp_path / "run", tmp_path / "out", "merged")
    assert said in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("word", ["none", "hidden", "distributed_dp"])
def test_the_privacy_card_is_exported(word: str, base: Path, tmp_path: Path) -> None:
    recipe = RECIPES[word]
    trained(base, {"kind": "full"}, tmp_path / "run", **recipe)
    write(tmp_path / "run", tmp_path / "out", "merged")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    with RunStore(tmp_path / "run") as store:
        s = summary.build(store)
    assert privacy.privacy_markdown(s, 12) in text
    card = s["plan"]["privacy"]["card"]
    assert (card is None) == (word != "distributed_dp")
    if card is None:
        assert f"\n{no_epsilon_sentence(s['plan']['privacy']['servers'])}\n" in text
        assert "private" not in text
    else:
        for said in (card["unit"], card["adjacency"], card["sampling"], card["noise"], "delta 0.001"):
            assert said in text
        for honest, epsilon in card["fewer"]:
            assert f"| {honest} | {epsilon:.3g} |" in text


def test_an_earlier_round_and_the_base_itself(base: Path, tmp_path: Path) -> None:
    trained(base, {"kind": "full"}, tmp_path / "run", rounds_played=4)
    written = write(tmp_path / "run", tmp_path / "out", "merged", 3)
    assert written["rounds"] == 3
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "3 of 12 rounds" in card
    assert "Held-out perplexity" not in card, "the figures belong to another version"


def refused(*arguments: Any) -> str:
    with pytest.raises(EdgewiseError) as e:
        write(*arguments)
    assert e.value.code == "E-EXPORT"
    return str(e.value)


@pytest.mark.parametrize("field", ["base", "device"])
def test_an_empty_name_is_refused(field: str, tmp_path: Path) -> None:
    """It would be the folder that the process works in."""
    with pytest.raises(EdgewiseError, match="empty text names no"):
        write(tmp_path / "run", tmp_path / "out", **{field: ""})


def test_refusals_say_why(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    make_run(run, rounds_played=4, params=np.ones(8, np.float32))
    assert 'needs trainable.kind = "lora"' in refused(run, out, "peft", 4)
    assert "has played 4 of 12 rounds" in refused(run, out, "merged")
    assert "--round 4" in refused(run, out, "merged")
    assert "no round 9 yet" in refused(run, out, "merged", 9)
    assert "any more" in refused(run, out, "merged", 1), "old versions are swept"
    assert "no format 'onnx'" in refused(run, out, "onnx")
    out.mkdir()
    (out / "mine.txt").touch()
    assert "is not empty" in refused(run, out, "merged")
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("to", ["tensors", "merged"])
def test_an_export_removes_only_the_folder_that_it_made(base: Path, tmp_path: Path, to: str) -> None:
    """Also one that has the name which an earlier version gave."""
    trained(base, {"kind": "full"}, tmp_path / "run", more={"model_fingerprint": NOTHING_FROZEN})
    mine = tmp_path / f".out.{os.getpid()}.part" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("kept")
    try:
        write(tmp_path / "run", tmp_path / "out", to)
    except EdgewiseError:
        assert not (tmp_path / "out").exists()
    else:
        mask = os.umask(0)
        os.umask(mask)
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert [p.name for p in tmp_path.glob(".out*")] == [mine.parent.name]
    assert mine.read_text() == "kept"


def test_another_model_than_the_runs_is_refused(base: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "run", params=np.ones(7, np.float32), model={"base": str(base)})
    assert "trained 7 parameters" in refused(tmp_path / "run", tmp_path / "out", "merged")
    assert not (tmp_path / "out").exists()


def test_the_model_that_counts_is_exported_and_its_card_has_its_figures(base: Path, tmp_path: Path) -> None:
    """With ``round.keep = "best"``, the one with the lowest held-out loss, long after its round."""
    trained(base, {"kind": "full"}, tmp_path / "run", round={"rounds": 12, "keep": "best"})
    with RunStore(tmp_path / "run") as store:
        (last,) = [e for e in store.evaluations() if e.round == 11 and e.model == "federated"]
        x = store.blob(store.models()[12]) * np.float32(2 / 12)  # as ``make_run`` moves it in two rounds
        assert vector.digest(vector.to_bytes(x)) == store.models()[2]
        best = msgspec.structs.replace(last, round=1, nll={d: nll / 2 for d, nll in last.nll.items()})
        store.append(best)
        store.keep("best", x, 2)
        figures = summary.build(store)["perplexity"]["federated"]
    written = write(tmp_path / "run", tmp_path / "out", "merged")
    assert (written["rounds"], written["model_sha256"]) == (2, vector.digest(vector.to_bytes(x)))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"| federated | {numbers.perplexity(figures['weighted_mean'])} |" in card
    assert "in 2 of 12 rounds" in card
    assert write(tmp_path / "run", tmp_path / "last", "merged", 12)["rounds"] == 12
    assert "| federated |" not in (tmp_path / "last" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("model", "given", "asked"),
    [
        ("hub:a/b", None, f"hub:a/b@{'f' * 40}"),
        ("hub:a/b@main", None, f"hub:a/b@{'f' * 40}"),
        ("hub:a/b@main", "hub:a/b@v2", "hub:a/b@v2"),
    ],
)
def test_an_export_asks_for_the_commit_that_the_run_trained_on(
    model: str, given: str | None, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of the hub may have moved since. ``--base`` says another one."""
    from edgewise.learn.models import rebuilt

    read: list[str] = []

    def load(base: str, *rest: object) -> Any:
        read.append(base)
        raise EdgewiseError("E-MODEL-REMOTE", "there is no network.")

    monkeypatch.setattr(rebuilt, "load", load)
    make_run(tmp_path / "run", facts={"model_commit": "f" * 40}, model={"base": model})
    with pytest.raises(EdgewiseError, match="no network"):
        write(tmp_path / "run", tmp_path / "out", base=given)
    assert read == [asked]
