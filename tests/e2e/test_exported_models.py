"""Through the real commands: whatever the architecture and whatever is trained, the export is the trained model."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from commands import command, done, sim

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(2, 42).reshape(2, 20) * 7 % 290 + 3).logits


def plain(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def held_out(base: str) -> float:
    """Perplexity of a model folder as it is, measured as a run measures it."""
    from edgewise.learn.text import trainer
    from edgewise.plan.recipe.recipe import load

    made = trainer.make(load("recipe.toml", {"model.base": base}), Path(), Path("cache"))
    measured = [made.evaluate(device, made.initial()) for device in made.devices()]
    return math.exp(sum(m.nll for m in measured) / sum(m.tokens for m in measured))


LM_HEAD, EMBED = '["lm_head"]', '["embed_tokens"]'
CASES = [
    *((name, "full", "") for name in ("llama", "llama-tied", "gpt2", "mamba", "gemma3", "bert-decoder", "mixtral")),
    *((name, "lora", '["all-linear"]') for name in tiny_models.CAUSAL),
    *(("llama-tied", "lora", targets) for targets in (LM_HEAD, EMBED, '["lm_head", "embed_tokens", "q_proj"]')),
    *(("qwen2-tied", "lora", targets) for targets in (LM_HEAD, EMBED)),
    *(("gpt2", "lora", targets) for targets in (LM_HEAD, '["wte", "c_attn"]')),
    ("gemma3", "lora", LM_HEAD),
    ("llama-tied", "ffa", EMBED),
    ("llama-tied", "rolora", EMBED),
    ("llama-tied", "reffa", EMBED),
    ("llama", "fed_sb", '["q_proj", "up_proj"]'),
    ("llama", "fedex", '["q_proj", "up_proj"]'),
    ("llama", "whole", '["q_proj", "up_proj"]'),
    ("llama", "dora", '["q_proj", "up_proj"]'),
]


@pytest.mark.long(sample=7)
@pytest.mark.parametrize(("name", "kind", "targets"), CASES)
def test_exported_is_trained(name: str, kind: str, targets: str, tmp_path: Path) -> None:
    tiny_models.project(tmp_path)
    tiny_models.save(name, tmp_path / "model")
    rule, more = kind, {"trainable__targets": targets, "trainable__rank": 2, "round__rounds": 2} if targets else {}
    whole = {"trainable__modules_to_save": '["embed_tokens", "norm", "lm_head"]'}
    if kind in ("whole", "dora"):
        kind, more = "lora", {**more, **(whole if kind == "whole" else {"trainable__magnitudes": "true"})}
    if kind not in ("full", "lora"):
        kind, more = "lora", {**more, "trainable__rule": kind, **({"trainable__folds": 2} if kind == "reffa" else {})}
    summary = sim(trainable__kind=kind, **more)["summary"]
    merged = done("export", "run", "--dest", "merged")
    assert merged["dtype"] == "float32", merged
    moved = float((logits(plain("merged")) - logits(plain("model"))).abs().max())
    assert moved > 100 * merged["logits"]["loaded"], "training moves the model, and writing it does not"
    assert held_out("merged") == pytest.approx(summary["perplexity"]["federated"]["weighted_mean"], rel=1e-4)
    if rule == "fedex":
        assert "changed the base itself" in command("export", "run", "--to", "peft", "--dest", "adapter")["what"]
    elif targets:
        from peft import PeftModel

        done("export", "run", "--to", "peft", "--dest", "adapter")
        adapted = PeftModel.from_pretrained(plain("model"), "adapter")
        torch.testing.assert_close(logits(adapted), logits(plain("merged")), rtol=0, atol=max(1e-6, moved / 100))


def test_bfloat16_does_not_hide_a_little_of_the_future(tmp_path: Path) -> None:
    tiny_models.project(tmp_path)
    tiny_models.save("bert", tmp_path / "model")
    for kind in ("full", "lora"):
        assert "is not causal" in sim(model__precision="bfloat16", trainable__kind=kind)["what"]


@pytest.mark.long(sample=2)
@pytest.mark.parametrize("name", sorted({*tiny_models.BUILDERS} - {*tiny_models.CAUSAL}))
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_models_that_see_what_they_predict_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    tiny_models.project(tmp_path)
    tiny_models.save(name, tmp_path / "model")
    options = ["--set", f"trainable.kind={kind}"]
    for refused in (command("check", "recipe.toml", "--fast", *options), sim(*options)):
        assert (refused["code"], "is not causal" in refused["what"]) == ("E-MODEL", True)
        assert ("is_decoder" in refused["fix"]) == (name in ("bert", "electra"))


def test_check_says_what_is_never_trained_and_what_the_tokenizer_asks(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tiny_models.project(tmp_path)
    tiny_models.save("gpt-oss", tmp_path / "model")
    whole = sim(out="whole", trainable__kind="lora")["summary"]
    path = str(tmp_path / "model" / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=512)
    tokenizer.model.dropout = 0.5
    tokenizer.save(path)
    notes = command("check", "recipe.toml", "--fast", "--set", "trainable.kind=lora")["notes"]
    assert ["cut" in n or "padding" in n or "dropout" in n for n in notes] == [True, True, True, False]
    assert "never trained" in notes[3]
    assert "mlp.experts.gate_up_proj" in notes[3]
    again = sim(out="again", trainable__kind="lora")["summary"]
    assert again["perplexity"] == whole["perplexity"]
    assert again["facts"]["fingerprint"] == whole["facts"]["fingerprint"]
    assert again["facts"]["notes"] == notes


def test_check_says_what_no_text_reaches(tmp_path: Path) -> None:
    tiny_models.project(tmp_path)
    tiny_models.save("gemma3", tmp_path / "model")
    (note,) = command("check", "recipe.toml", "--fast")["notes"]
    assert "no text runs through (model.multi_modal_projector, model.vision_tower)" in note
    adapted = command("check", "recipe.toml", "--fast", "--set", "trainable.kind=lora")
    assert "vision_tower" in adapted["notes"][0]
    assert adapted["trainable"] < 5000, "no adapter on what no text reaches"


def test_lora_targets_that_cannot_be(tmp_path: Path) -> None:
    tiny_models.project(tmp_path)
    tiny_models.save("mamba", tmp_path / "model")
    for target, reason in (("out_proj", "peft refuses"), ("dt_proj", "no text runs through")):
        refused = sim(trainable__kind="lora", trainable__targets=f'["{target}"]')
        assert (refused["code"], reason in refused["what"]) == ("E-TARGETS", True), refused
        assert "in_proj" in refused["fix"]


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    tiny_models.project(tmp_path)
    tiny_models.save("llama", tmp_path / "model")
    sim(trainable__kind="lora")
    done("export", "run", "--to", "peft", "--dest", "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(f"adapter/{name}", f"model/{name}")
    for base in ("model", "adapter"):
        refused = sim(out="again", model__base=base)
        assert (refused["code"], "an adapter" in refused["what"]) == ("E-MODEL", True)


@pytest.mark.long(sample=1)
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_merged_weights_keep_the_dtype_of_the_base(stored: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tiny_models.project(tmp_path)
    tiny_models.save("llama", tmp_path / "model", stored)
    sim(trainable__kind="lora")
    written = done("export", "run", "--dest", "as-base")
    assert written["dtype"] == stored
    assert {x.dtype for x in load_file("as-base/model.safetensors").values()} == {getattr(torch, stored)}
    assert (written["logits"]["rounding"] > 0) == (stored != "float32")
    assert f"The weights are {stored}." in Path("as-base/README.md").read_text(encoding="utf-8")
    done("export", "run", "--dest", "exact", "--dtype", "float32")
    assert {x.dtype for x in load_file("exact/model.safetensors").values()} == {torch.float32}
    assert command("export", "run", "--dest", "x", "--to", "peft", "--dtype", "float16")["code"] == "E-EXPORT"
    assert command("export", "run", "--dest", "x", "--dtype", "int8")["code"] == "E-EXPORT"


def snippet(card: Path) -> str:
    """The card's code with its own folder in place of the placeholder."""
    text = card.read_text(encoding="utf-8")
    return re.search(r"```python\n(.*?)```", text, re.S)[1].replace("path/to/this/folder", str(card.parent))  # type: ignore[index]


@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("model", ["--to", "merged"]),
        ("bundled", ["--to", "merged"]),
        ("bundled", ["--to", "peft"]),
        ("model", ["--to", "peft", "--with-base"]),
        ("model", ["--to", "peft"]),
    ],
)
def test_the_snippet_of_the_card_runs(
    base: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    tiny_models.project(tmp_path, base)
    tiny_models.save("llama-tied", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\nlanguage: [en, de]\n---\n", encoding="utf-8")
    sim(trainable__kind="lora", trainable__targets=EMBED)
    done("export", "run", "--dest", "out", *options)
    card = tmp_path / "out" / "README.md"
    text = card.read_text(encoding="utf-8")
    if base == "model":
        assert 'license: "mit"\n' in text
        assert "language" not in text, "devices may write in another one"
        (tmp_path / "path" / "to").mkdir(parents=True)
        shutil.move("model", "path/to/model")
    else:
        assert 'license: "other"\n' in text
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(snippet(card), "card", "exec"), {})
    assert "Once upon a time" in capsys.readouterr().out
    if "--with-base" in options or (base, options[1]) == ("bundled", "peft"):
        from peft import AutoPeftModelForCausalLM

        monkeypatch.chdir(tmp_path / "out")
        assert sum(p.numel() for p in AutoPeftModelForCausalLM.from_pretrained(".").parameters()) > 1000
        assert str(tmp_path) not in (tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8")
