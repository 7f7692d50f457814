"""Real text, the bundled model, whole runs: both engines agree to the byte, and the model learns."""

from __future__ import annotations

import json

import pytest

import edgewise
from edgewise.drivers.storage.run_store import RunStore

pytestmark = pytest.mark.slow

PHRASES = {
    "kitchen": "the kettle boils and the soup is on the stove; salt, pepper, and a spoon of oil. ",
    "garden": "roses need water in the morning, and the hedge is cut when the birds have gone. ",
    "harbour": "the ferry leaves at nine; nets are mended on the quay and gulls wait for the crates. ",
}


def texts(folder):
    for name, phrase in PHRASES.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "diary.txt").write_text(phrase * 60, encoding="utf-8")
    return str(folder)


def tables(path, **more):
    return {
        "privacy": "none",
        "name": "text",
        "data": {"source": "text", "path": path, "sequence_len": 32},
        "round": {"rounds": 3},
        "training": {"local_steps": 4, "batch": 4, "lr": 2e-3},
        "stage": [{"kind": "weigh"}, {"kind": "feedback"}, {"kind": "top_k", "fraction": 0.2}, {"kind": "quantize"}],
        "eval": {"every": 0},
        **more,
    }


def digests(out):
    with RunStore(out) as store:
        return store.models()


def test_engines_agree_and_the_federation_learns(tmp_path):
    path = texts(tmp_path / "texts")
    one = edgewise.simulate(tables(path), out=tmp_path / "one")
    two = edgewise.simulate(
        tables(path, simulation={"engine": "pool", "workers": 2}, compare={"local_only": False, "centralised": False}),
        out=tmp_path / "two",
    )
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    held = one.summary["perplexity"]
    for model in ("federated", "local_only", "centralised"):
        assert held[model]["weighted_mean"] < 0.8 * held["base"]["weighted_mean"]
    assert two.summary["perplexity"]["federated"] == held["federated"]
    assert two.summary["perplexity"]["local_only"] is None
    assert one.summary["bytes"]["up_per_device_round"] < 0.3 * one.summary["bytes"]["float32_model"]


def test_a_run_leaves_what_the_report_promises(tmp_path):
    path = texts(tmp_path / "texts")
    recipe = tables(path, trainable={"kind": "lora", "rank": 2}, compare={"local_only": False, "centralised": False})
    result = edgewise.simulate(recipe, out=tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert saved == result.summary
    assert {"total", "train", "encode", "aggregate"} <= saved["seconds"].keys()
    assert (
        saved["memory"]["process_peak"] is None or saved["memory"]["process_peak"] > 50e6
    )  # Windows does not tell it.
    assert len(saved["recipe_sha256"]) == len(saved["model_sha256"]) == 64
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "http-equiv" in page
    assert 'src="http' not in page
    assert str(tmp_path / "run") not in page
    assert list((tmp_path / "run" / "plots").glob("*.png"))
