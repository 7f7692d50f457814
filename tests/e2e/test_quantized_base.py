"""Runs on a quantized base through the real commands: engines agree, a run resumes, and its export is its model."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from commands import command, done, sim

torch = pytest.importorskip("torch")
# Found, not imported: that takes 4 s in each process that collects the tests.
NONE = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
pytestmark = [pytest.mark.slow, NONE]  # whole runs


def plain(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(2, 42).reshape(2, 20) * 7 % 290 + 3).logits


def held_out(base: str) -> float:
    """Perplexity of a model folder as it is, measured as a run measures it."""
    from edgewise.learn.text import trainer
    from edgewise.plan.recipe.recipe import load

    made = trainer.make(load("recipe.toml", {"model.base": base}), Path(), Path("cache"))
    measured = [made.evaluate(device, made.initial()) for device in made.devices()]
    return math.exp(sum(m.nll for m in measured) / sum(m.tokens for m in measured))


@pytest.mark.parametrize(("name", "kind"), [("llama-wide", "nf4"), ("llama-wide", "int8"), ("gpt2-wide", "nf4")])
def test_the_export_is_the_trained_model(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import PeftModel

    from edgewise.learn.models import quantized

    monkeypatch.chdir(tmp_path)
    tiny_models.project(tmp_path)
    tiny_models.save(name, tmp_path / "model")
    more = {"model__quantize": kind, "trainable__kind": "lora", "round__rounds": 2, "training__lr": 0.05}
    summary = sim(**more)["summary"]
    weights = sum(p.numel() for p in plain("model").parameters())
    assert summary["facts"]["parameters"] == weights + summary["facts"]["trainable"]
    monkeypatch.setattr(quantized, "_rounded", None)  # The run has kept its quantized copy, and the exports read it.
    merged = done("export", "run", "--dest", "merged")
    moved = float((logits(plain("merged")) - logits(plain("model"))).abs().max())
    assert moved > 100 * merged["logits"]["loaded"]
    assert held_out("merged") == pytest.approx(summary["perplexity"]["federated"]["weighted_mean"], rel=1e-4)
    done("export", "run", "--to", "peft", "--dest", "adapter")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    adapted = PeftModel.from_pretrained(quantized.load_decoded_model(Path("model"), kind), "adapter")
    torch.testing.assert_close(logits(adapted), logits(plain("merged")), rtol=0, atol=max(1e-6, moved / 100))
    assert f"stored as {kind}" in Path("adapter/README.md").read_text()


def test_engines_agree_and_a_run_resumes_on_its_own_base_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_models.project(tmp_path)
    tiny_models.save("llama-wide", tmp_path / "model")
    lora = {"trainable__kind": "lora", "model__quantize": "nf4"}
    one = sim(out="one", **lora)["summary"]
    two = sim(out="two", **lora, simulation__engine="pool")["summary"]
    assert one["model_sha256"] == two["model_sha256"]
    refused = command("sim", "recipe.toml", "--out", "one", "--resume", "--set", "trainable.kind=lora")
    assert refused["code"] == "E-RESUME"


def test_a_base_that_cannot_be_4_bit_is_refused_by_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_models.project(tmp_path)
    tiny_models.save("llama-odd", tmp_path / "model")
    options = ["--set", "trainable.kind=lora", "--set", "model.quantize=nf4"]
    refused = command("check", "recipe.toml", "--fast", *options)
    assert refused["code"] == "E-QUANTIZE"
    assert "gate_proj has 88 outputs" in refused["what"]
