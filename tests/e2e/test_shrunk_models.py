"""`edgewise shrink` and a federated run of what it wrote: masked and factored models, whole and one factor alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from commands import command, done, sim

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # whole runs


def logits(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(2, 42).reshape(2, 20) * 7 % 290 + 3).logits


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_models.project(tmp_path)
    tiny_models.save("llama-wide", tmp_path / "model")
    Path("text.txt").write_text("the cow went to the river and the old stones were found there. " * 90)
    return tmp_path


def test_a_masked_model_is_federated_inside_its_mask_and_exported(project: Path) -> None:
    said = done("shrink", "model", "--by", "prune", "--to", "0.5", "--on", "text.txt", "--length", "16",
                "--heal", "2", "--out", "small")  # fmt: skip
    assert said["smaller"]["bytes"] < 0.75 * said["model"]["bytes"]
    assert json.loads(Path("small/shrunk.json").read_text())["cut_perplexity"] == said["cut_perplexity"]
    hidden = {"privacy": "hidden", "merge__kind": "secure_sum"}
    whole = sim(out="whole", **hidden)["summary"]
    summary = sim(out="run", model__base="small", **hidden)["summary"]
    assert summary["facts"]["trainable"] == said["smaller"]["parameters"]
    assert summary["bytes"]["up_total"] < 0.75 * whole["bytes"]["up_total"]
    done("export", "run", "--dest", "merged")
    from safetensors.torch import load_file

    from edgewise.learn.models import compact
    from edgewise.learn.models.smaller_layers import layer_masks

    by_name = layer_masks(compact.read_compact(Path("small"), torch.float32))
    trained = load_file("merged/model.safetensors")
    assert by_name
    assert all(not trained[f"{name}.weight"][~mask].any() for name, mask in by_name.items())
    again = command("shrink", "small", "--by", "prune", "--on", "text.txt", "--length", "16", "--out", "again")
    assert again["code"] == "E-SHRINK"
    assert "--by unpack" in again["fix"]


def test_one_factor_of_a_factored_model_is_federated_and_exported(project: Path) -> None:
    done("shrink", "model", "--by", "factorize", "--to", "0.25", "--on", "text.txt", "--length", "16", "--out", "small")
    summary = sim(model__base="small", trainable__kind="layers", trainable__layers=["*.left.weight"])["summary"]
    ranks = json.loads(Path("small/compact.json").read_text())["ranks"]
    assert summary["facts"]["trainable"] < summary["facts"]["parameters"] / 4
    assert ranks
    done("export", "run", "--dest", "merged")
    done("shrink", "small", "--by", "unpack", "--on", "text.txt", "--length", "16", "--out", "dense")
    assert float((logits("merged") - logits("dense")).abs().max()) > 0.0
