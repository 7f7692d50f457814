"""Samples of text in the report: only where the recipe asks for them, and never with an epsilon."""

from __future__ import annotations

import html
import json

import numpy as np
import pytest
from long import LONG
from toy_recipe import make_recipe

import edgewise
from edgewise.apps.simulate import check
from edgewise.core.errors import EdgewiseError, RecipeError
from edgewise.learn.text.openings import NEW, PROMPT, opening
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.recipe.privacy import DP_WORDS
from edgewise.plan.recipe.recipe import from_plain

SECRETS = {"ada": "the ledger of the harbour lists seven ships. ", "bob": "zinc and copper are weighed at dawn. "}


def tables(folder, **more):
    for name, phrase in SECRETS.items():
        (folder / "texts" / name).mkdir(parents=True, exist_ok=True)
        (folder / "texts" / name / "a.txt").write_text(phrase * 60, encoding="utf-8")
    return {
        "privacy": "none",
        "data": {"source": "text", "path": str(folder / "texts"), "sequence_len": 64},
        "round": {"rounds": 2},
        "training": {"local_steps": 2, "batch": 4, "lr": 2e-3},
        "compare": {"local_only": False, "centralised": False},
        **more,
    }


def written(out):
    """Everything that a run writes for others to read."""
    texts = [(out / name).read_text(encoding="utf-8") for name in ("report.html", "summary.json", "rounds.csv")]
    return "".join(html.unescape(t) for t in texts)


@pytest.mark.long
@pytest.mark.slow
def test_the_report_prints_text_only_where_it_is_asked_to(tmp_path):
    edgewise.simulate(tables(tmp_path), out=tmp_path / "quiet")
    told = written(tmp_path / "quiet")
    assert not any(word in told for phrase in SECRETS.values() for word in phrase.split() if len(word) > 5)
    assert "Samples of text" not in told
    asked = tables(tmp_path, report={"samples": 5})  # more than there are devices
    run = edgewise.simulate(asked, out=tmp_path / "asked")
    samples = run.summary["samples"]
    assert {s["device"] for s in samples} == set(SECRETS)
    told = written(tmp_path / "asked")
    for s in samples:
        assert s["prompt"].strip()
        assert s["prompt"] + s["actual"] in SECRETS[s["device"]] * 60, "it goes on where it stopped"
        assert s["base"] != s["federated"], "the models differ"
        assert all(s[m].rstrip() in told for m in ("prompt", "actual", "base", "federated"))
    assert any("but for 5 held-out texts that the report prints" in c for c in run.summary["plan"]["claims"])
    again = edgewise.simulate(asked, out=tmp_path / "asked", resume=True)
    assert again.summary["samples"] == samples
    if LONG:
        pool = edgewise.simulate({**asked, "simulation": {"engine": "pool", "workers": 2}}, out=tmp_path / "pool")
        assert pool.summary["samples"] == samples, "the same with any engine"


@pytest.mark.parametrize("word", DP_WORDS)
def test_no_epsilon_counts_printed_text(word):
    dp = {"epsilon": 8.0, "delta": 1e-3, "clip_l2": 1.0}
    with pytest.raises(RecipeError, match=r"E-COMBO.*report.samples"):
        from_plain({"privacy": word, "dp": dp, "report": {"samples": 1}})


def test_a_trainer_without_text_gives_no_samples(tmp_path):
    with pytest.raises(EdgewiseError, match=r"E-COMBO.*report.samples"):
        check.examine(make_recipe({"report.samples": 1}), tmp_path, with_extensions(["toy"]), fast=True)


def test_a_block_is_cut_where_the_models_go_on():
    ids = np.arange(1, 130, dtype=np.int32)
    text = ids.copy()
    text[0] = ~text[0]
    found = opening(text)
    assert found.prompt == ids[:PROMPT].tolist()
    assert found.actual == ids[PROMPT : PROMPT + NEW].tolist()
    short = text.copy()
    short[9:] = ~short[9:]  # eight tokens are predicted, and padding follows
    found = opening(short)
    assert found.prompt + found.actual == ids[:9].tolist()
    assert found.prompt
    assert found.actual
    asked = ids.copy()
    asked[:50] = ~asked[:50]  # instruction data: a prompt of 50 tokens
    found = opening(asked)
    assert found.prompt == ids[50 - PROMPT : 50].tolist()
    assert found.actual == ids[50 : 50 + NEW].tolist()
    assert opening(~ids) is None
    assert json.dumps(found._asdict()), "plain numbers"
